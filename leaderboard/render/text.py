"""The wording for rows and contrasts that all outputs share, not yet escaped for any of them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from prunebench.bench import stats
from prunebench.bench.progress import duration
from prunebench.bench.stats import SeedTest
from prunebench.leaderboard.board import Board, Rate, Row
from prunebench.leaderboard.contrasts import Contrast, Power
from prunebench.leaderboard.published import rows_for
from prunebench.leaderboard.roles import PRIMARY, RANDOM

_NAME = 40  # characters of a processor's name
LONGEST = 300  # characters shown in a table of a text from a record
FEW = 4  # messages of flags that a terminal or a LaTeX table shows below its figures
SIGN = "\N{WARNING SIGN}"  # beside a number that a flag puts in doubt
ODDS = "\N{DAGGER}"  # beside a verdict on which test and bootstrap disagree
VERDICTS = {"+": "better", "-": "worse", "=": "cannot tell"}
TOO_FEW = "too few seeds"  # in place of a verdict
CONTRASTS = (
    "A difference is the robust accuracy of the pruner minus that of the control, in points, over the seeds that both "
    "have. Its 95 % interval is for this comparison alone; the verdict corrects for all comparisons of its family "
    f"(Holm, 5 %). One family is methods against {PRIMARY}, another methods against {RANDOM} and their own shuffles, "
    "a third methods against themselves with one part replaced, a fourth all other pairs of methods. "
    "The bootstrap is a second opinion: it resamples seeds and test images 2,000 times, and "
    f"{ODDS} marks where only one of the two intervals contains 0."
)
FURTHER = (
    f"A distance minus {PRIMARY} is the pruner's median distance minus that of {PRIMARY}, mean over common seeds, with "
    "the 95 % interval of the same resampling; nets of one seed are compared on the same images."
)
SHUFFLES = (
    f"Methods against {RANDOM} and against their own shuffle. A method that does not beat its own shuffle has found "
    "only layer densities."
)


def clean(text: str) -> str:
    """`text` on one line, without control, formatting (bidirectional) or unpaired surrogate characters."""
    shown = flat(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def flat(text: str) -> str:
    """As `clean`, of any length: for generated sentences, in which names are already short."""
    return "".join(char for char in " ".join(text.split()) if unicodedata.category(char)[0] != "C")


def short(name: str, longest: int = 28) -> str:
    """A name shortened for a label or a sentence."""
    shown = flat(name)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def short_list(names: Sequence[str]) -> str:
    """Names in a sentence, as `listed`, each shortened."""
    return listed([short(name) for name in names])


def first_clause(verdict: str) -> str:
    """The first clause of a verdict, which holds without the others, as a sentence."""
    return verdict.partition(";")[0].partition(". ")[0].rstrip(".") + "."


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def percent(rate: float) -> str:
    """A rate in per cent, with one decimal and without the sign: "66.4"."""
    return f"{100 * rate:.1f}"


def with_interval(rate: Rate) -> str:
    """A rate in percent with its interval: "66.4 [64.1, 68.6]"."""
    return f"{percent(rate.mean)} [{percent(rate.low)}, {percent(rate.high)}]"


def took(board: Board) -> str:
    """How long the nets of a board took: "7 h 48 min of training and scoring, scored on AMD EPYC, model 17"."""
    names = sorted({short(name, _NAME).strip() or "unknown" for name in board.processors})
    where = listed(["an unknown processor" if name == "unknown" else name for name in names[:FEW]])
    where += " and others" * (len(names) > FEW)
    if not board.timed:
        return f"An unknown time of training, scored on {where}"
    nets = "" if board.timed == board.records else f" of {board.timed} of {board.records} nets"
    return f"{duration(board.seconds)} of training and scoring{nets}, scored on {where}"


def best_known(best: Rate, robust: Rate) -> str:
    """The best-known rate in percent, with its difference from AutoAttack's in points: "53.2 (-4.8)"."""
    return f"{percent(best.mean)} ({_signed(best.mean - robust.mean)})"


def points(test: Contrast | SeedTest) -> str:
    """A difference in points with its interval: "+1.3 [-4.2, +6.8]"; no interval with too few seeds."""
    if test.gap is None:
        return "no common seed"
    return _signed(test.gap) + _interval(test.low, test.high)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"


def _signed(rate: float) -> str:
    return f"{round(100 * rate, 1) + 0:+.1f}"  # + 0: no -0.0


def verdict(contrast: Contrast) -> str:
    """The test's verdict on a contrast, with a sign if the bootstrap disagrees; TOO_FEW where there is no test."""
    if contrast.low is None:
        return TOO_FEW
    return VERDICTS[contrast.verdict] + f" {ODDS}" * (contrast.agrees is False)


def resampled(contrast: Contrast) -> str:
    """The bootstrap's interval in points, or a note that raw outcomes are missing; empty where there is no test."""
    if contrast.low is None:
        return ""
    return "not available" if contrast.bootstrap is None else _interval(*contrast.bootstrap).strip()


def apart(contrast: Contrast) -> str:
    """A difference of median distances with its interval: "+0.0031 [-0.0012, +0.0075]"; empty where unknown."""
    if contrast.further is None:
        return ""
    difference, low, high = (f"{round(value, 4) + 0:+.4f}" for value in contrast.further)
    return f"{difference} [{low}, {high}]"


def explained(board: Board) -> list[str]:
    """What the differences on a board mean, in a paragraph each."""
    compared = any(contrast.family != "places" for contrast in board.contrasts)
    far = any(contrast.further is not None for contrast in board.contrasts)
    return [CONTRASTS] * compared + [FURTHER] * far


def number(value: float) -> str:
    """A number with one decimal, or without decimals if that decimal is 0."""
    return f"{value:.1f}".removesuffix(".0")


def doubts(board: Board) -> list[str]:
    """The messages of raised flags, a line per row and sentence, with what other attacks found; not yet escaped."""
    return [
        f"{SIGN} {row.pruner} at {row.sparsity:f}{_found_since(row)}, seed{'s' * (len(doubt.seeds) > 1)} "
        f"{', '.join(map(str, doubt.seeds))}: {doubt.sentence} ({doubt.name})"
        for row in board.rows
        for doubt in row.flags
    ]


def main_doubts(board: Board) -> list[str]:
    """What fits below a table: the messages of raised flags if they are few, else how many rows carry which flag."""
    found = doubts(board)
    if len(found) <= FEW:
        return found
    return [f"{SIGN} {flags_in_short(board)} The board's site explains each (prunebench site)."]


def flags_in_short(board: Board) -> str:
    """How many rows carry a flag, and which ones, in a sentence; empty if none does."""
    counts = Counter(name for row in board.rows for name in {doubt.name for doubt in row.flags})
    if not counts:
        return ""
    rows = sum(bool(row.flags) for row in board.rows)
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    whose = f"{rows} of {len(board.rows)} rows" if len(board.rows) > 1 else "The row"
    names = listed([f"{short(name)} ({count})" for name, count in most])
    return f"{whose} {'carries' if rows == 1 else 'carry'} a flag: {names}."


def _found_since(row: Row) -> str:
    """How far the row's best-known rate lies below AutoAttack's: " (best known -4.8 points)"; empty where unknown."""
    return "" if row.best is None else f" (best known {_signed(row.best.mean - row.robust.mean)} points)"


def odds(board: Board) -> list[str]:
    """The meaning of the sign beside a verdict against magnitude pruning, if any row has it."""
    there = any(contrast.family == "primary" and contrast.agrees is False for contrast in board.contrasts)
    return [
        f"{ODDS} a bootstrap over seeds and images disagrees with the test on whether there is a difference."
    ] * there


def powers(board: Board) -> list[str]:
    """The sentences of `power_of`, a line per sparsity."""
    return [f"At {power.sparsity:f}: {power_of(board, power.sparsity)}" for power in board.powers]


def power_of(board: Board, sparsity: Decimal) -> str:
    """How large a difference is detectable at a sparsity, in a sentence or two; empty if nothing is compared."""
    power = next((power for power in board.powers if power.sparsity == sparsity), None)
    if power is None:
        return ""
    asked = f"a true difference of {100 * power.gap:.0f} points to {PRIMARY}"
    if power.mean is None:
        return f"No method shares {stats.FEWEST} seeds with {PRIMARY}, so no difference to it can be detected."
    said = f"{seeds_of(power)} seeds detect {asked} with probability {_probability(power.mean)}"
    if power.lowest != power.highest:
        said += f" on average ({_probability(power.lowest or 0)} to {_probability(power.highest or 0)} by method)"
    if power.planned:
        least = " or more" * (power.fewest < power.most)
        more = [f"{seeds}{least} would with {_probability(chance)}" for seeds, chance in power.planned.items()]
        said += f"; {', '.join(more)}"
    return f"{said}." + (" Such a difference is more likely missed than detected here." if power.mean < 0.5 else "")


def seeds_of(power: Power) -> str:
    """The number of seeds that its comparisons rest on, as "15" or "4 to 15"."""
    return f"{power.fewest}" if power.fewest == power.most else f"{power.fewest} to {power.most}"


def _probability(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def references(board: Board) -> list[dict[str, str]]:
    """Cells for tables of the numbers that others published on the board's task, not yet escaped."""
    return [
        {
            "Place": reference.place_shown,
            "Method": reference.net.name,
            "Sparsity": f"{reference.net.sparsity:g}",
            "AutoAttack %": f"{reference.net.robust:g}",
            "Clean %": f"{reference.net.clean:g}",
            "Source": reference.source.title,
            "Differs in": "; ".join(reference.differs),
        }
        for reference in rows_for(board.protocol)
    ]
