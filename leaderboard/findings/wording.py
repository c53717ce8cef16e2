"""Verdicts in words: every sentence follows from tests and figures by rule."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from prunebench.bench import stats
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.findings.compared import Compared, Key
from prunebench.leaderboard.overlap import NEAR, Agreement
from prunebench.leaderboard.render.text import TOO_FEW, VERDICTS, listed, percent, points, seeds_of, short, short_list
from prunebench.leaderboard.roles import PRIMARY, RANDOM

Say = Callable[[Sequence[Compared]], str]
TITLES = ("Sparsity", "Row", "Minus", "Seeds", "Difference, points", "Verdict", "p, Holm", "Power for 3 points")
OVERLAP = ("Sparsity", "Row", "And", "Pairs of nets", "Overlap / chance", "Jaccard", "Chance")
APART = 1.4  # points: of two nets equally robust at 43 %, 10,000 images of each show less in 95 % of draws
SAID = {"+": "clearly better", "-": "clearly worse", "=": "the test cannot tell", "?": f"{TOO_FEW} for a test"}
_HOLDS, _TURNED, _EQUAL = "as published", "against the published order", "no order published"
_UNKNOWN = "no number published"
_WORDS = VERDICTS | {"?": TOO_FEW}


def line(each: Compared) -> tuple[str, ...]:
    """A comparison as the cells of a table with the columns TITLES."""
    (sparsity, ours), (other, theirs) = each.ours, each.theirs
    minus = theirs if other == sparsity else f"{theirs} at {other:f}"
    power = "" if each.power is None else f"{each.power:.2f}".removeprefix("0")
    p = "" if each.verdict == "?" else f"{each.adjusted:.3f}"
    seeds = str(each.test.seeds)
    return f"{sparsity:f}", ours, minus, seeds, points(each.test), _WORDS[each.verdict], p, power


def pairs(found: Sequence[Compared]) -> str:
    """A sentence for each pair of labels, with the figures of every sparsity."""
    groups: defaultdict[tuple[str, str], list[Compared]] = defaultdict(list)
    for each in found:
        groups[each.ours[1], each.theirs[1]].append(each)
    return " ".join(f"{short(a)} against {short(b)}: {_by_verdict(those)}." for (a, b), those in groups.items())


def _by_verdict(found: Sequence[Compared]) -> str:
    said = []
    for sign, word in SAID.items():
        those = [each for each in found if each.verdict == sign]
        if those:
            figures = [f"{_at(each.ours)} ({points(each.test)})" for each in those]
            said.append(f"{word} {listed(figures)}")
    return "; ".join(said)


def _at(key: Key) -> str:
    return f"at {key[0]:f}" if key[0] else "without pruning"


def every(found: Sequence[Compared], control: str, board: Board) -> str:
    """Who is clearly ahead of the control, who clearly behind, who cannot be told from it, and who is not tested."""
    if all(each.verdict == "?" for each in found):
        return f"No method shares enough seeds with {control}, so no difference can be tested."
    control = "their own shuffle" if control == "its own shuffle" else control
    sparsities = {each.ours[0] for each in found}
    ahead, behind, equal, few = (
        _where([of for of in found if of.verdict == sign], len(sparsities)) for sign in (*VERDICTS, "?")
    )
    if not ahead:
        said = f"No method clearly beats {control}"
    elif not behind and not equal and not few:
        where = "every sparsity" if len(sparsities) > 1 else f"{min(sparsities):f}"
        said = f"Every method clearly beats {control} at {where}"
    else:
        said = f"Clearly ahead of {control}: {ahead}"
    others = ("clearly behind", behind), ("not told apart", equal), (TOO_FEW, few)
    said += "".join(f"; {word}: {those}" for word, those in others if those)
    return f"{said}.{_powers(board, sparsities) if control == PRIMARY else ''}"


def _where(found: Sequence[Compared], sparsities: int) -> str:
    """The rows with their sparsities, of `sparsities` in all: "awt at every sparsity, imp and iwi at 0.95 and 0.98"."""
    at: defaultdict[str, list[str]] = defaultdict(list)
    for each in sorted(found, key=lambda each: (each.ours[1], each.ours[0])):
        at[each.ours[1]].append(f"{each.ours[0]:f}")
    names: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, where in at.items():
        names[tuple(where)].append(name)
    ranked = sorted(names.items(), key=lambda pair: (-len(pair[0]), pair[0]))
    every = sparsities > 1
    return ", ".join(
        f"{short_list(those)} at {'every sparsity' if every and len(where) == sparsities else short_list(where)}"
        for where, those in ranked
    )


def _powers(board: Board, sparsities: Iterable[Decimal]) -> str:
    """With which probability the board's seeds find a difference of 3 points, in a sentence; empty if unknown."""
    known = {power.sparsity: power for power in board.powers if power.mean is not None}
    there = [known[at] for at in sorted(sparsities) if at in known]
    if not there:
        return ""
    chances = [
        f"{power.mean:.2f}".removeprefix("0") + f" at {power.sparsity:f} ({seeds_of(power)} seeds)" for power in there
    ]
    what = f"A true difference of {100 * there[0].gap:.0f} points"
    return f" {what} is found with probability {listed(chances)}."


def order(ours: str, theirs: str, found: Sequence[tuple[Compared, float | None]]) -> str:
    """Whether the order of two rows is the published one, sparsity by sparsity.

    `found`: our comparisons, each with the published difference in points at its sparsity, None if there is none.
    """
    said = defaultdict[str, list[str]](list)
    for each, gap in found:
        held = _held(each, gap)
        there = "" if gap is None else f"{gap:+.1f} published, "
        clear = f", {SAID[each.verdict]}" if held in (_EQUAL, _UNKNOWN) else ""
        said[held].append(f"{_at(each.ours)} ({there}{points(each.test)} here{clear})")
    kinds = (_HOLDS, _TURNED, SAID["="], SAID["?"], _EQUAL, _UNKNOWN)
    return f"{short(ours)} against {short(theirs)}: {'; '.join(f'{k} {listed(said[k])}' for k in kinds if said[k])}."


def _held(each: Compared, gap: float | None) -> str:
    """How our verdict stands to a published difference in points."""
    if gap is None:
        return _UNKNOWN
    if abs(gap) < APART:
        return _EQUAL
    if each.verdict in "=?":
        return SAID[each.verdict]
    return _HOLDS if (gap > 0) == (each.verdict == "+") else _TURNED


def slack(test: stats.SeedTest) -> str:
    """A slack in points, with its interval, cut at 0 because no net's slack is negative."""
    gap = test.gap or 0.0
    if test.low is None or test.high is None:
        return percent(gap)
    return f"{percent(gap)} [{percent(max(0.0, test.low))}, {percent(test.high)}]"


def slacks(tests: Sequence[tuple[Row, stats.SeedTest]]) -> str:
    """Which rows AutoAttack flatters most and least."""

    def told(pair: tuple[Row, stats.SeedTest]) -> str:
        return f"{short(pair[0].pruner)} {_at((pair[0].sparsity, ''))} ({slack(pair[1])} points)"

    ranked = sorted(tests, key=lambda pair: pair[1].gap or 0.0)
    if not ranked[-1][1].gap:
        return "Stronger attacks take nothing from AutoAttack's number."
    methods = [pair for pair in ranked if pair[0].role == "method"] or ranked
    plain = [pair for pair in ranked if pair[0].role != "control"] or ranked
    said = f"AutoAttack flatters {told(methods[-1])} most, and {told(plain[0])} least."
    sure = [pair for pair in tests if (pair[1].low or 0.0) > 0]
    return f"{said} The interval of the slack excludes 0 for {len(sure)} of {len(tests)} rows."


def overlap(sparsity: Decimal, each: Agreement) -> tuple[str, ...]:
    """An agreement as the cells of a table with the columns OVERLAP."""
    theirs = "the same, other seed" if not each.same_seed else each.theirs
    interval = "" if each.low is None or each.high is None else f" [{each.low:.2f}, {each.high:.2f}]"
    figures = f"{each.ratio:.2f}{interval}", f"{each.jaccard:.3f}", f"{each.chance:.3f}"
    return f"{sparsity:f}", each.ours, theirs, str(each.pairs), *figures


def overlaps(found: Sequence[tuple[Decimal, Agreement]]) -> str:
    """How far above chance the largest and the smallest overlap of methods are."""
    methods = [(at, each) for at, each in found if RANDOM not in (each.ours, each.theirs)] or list(found)
    ranked = sorted(methods, key=lambda pair: pair[1].ratio)
    (low_at, low), (high_at, high) = ranked[0], ranked[-1]
    what = "two nets of one seed" if high.same_seed else "two seeds of one method"
    if abs(low.ratio - 1) <= NEAR and abs(high.ratio - 1) <= NEAR:
        return f"The kept positions of {what} overlap as by chance: {low.ratio:.2f} to {high.ratio:.2f} times."
    return (
        f"The kept positions of {what} overlap {low.ratio:.2f} times ({_who(low)} at {low_at:f}) to {high.ratio:.2f} "
        f"times ({_who(high)} at {high_at:f}) as much as by chance."
    )


def _who(each: Agreement) -> str:
    return short_list([each.ours, each.theirs]) if each.same_seed else short(each.ours)


def lost(values: Sequence[float]) -> str:
    """The mean loss in points, with its range over seeds."""
    mean = statistics.fmean(values)
    return f"{percent(mean)} ({percent(min(values))} to {percent(max(values))})"


def overfitting(found: Sequence[tuple[Row, Sequence[float]]]) -> str:
    """Who loses most between the best epoch and the last."""
    row, values = max(found, key=lambda pair: statistics.fmean(pair[1]))
    return (
        f"{short(row.pruner)} {_at((row.sparsity, ''))} loses most of all rows with a curve: {lost(values)} points of "
        "validation accuracy from each seed's best validated epoch to its last. The best of several noisy epochs lies "
        "above the last even without overfitting."
    )
