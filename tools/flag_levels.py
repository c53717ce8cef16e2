"""What do honest nets show of each flag, and how often is a flag right? A page of the docs, made from records.

    python -m tools.flag_levels leaderboard/records/digits-linf leaderboard/records/mnist-linf-4k > docs/flags.md

A flag is right where the net has slack: attacks of the suite for the best-known number (`beyond.best` in a record) fool
more of the images than AutoAttack. A folder may also hold what `tools.extend` leaves, in the middle of its work: of two
records of one net, those with a best-known number count.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunebench.bench.attacks.square import QUERIES, Squares
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Flag
from prunebench.bench.names import JOURNAL
from prunebench.bench.protocol import as_sparsity
from prunebench.bench.record import Record, load_record
from prunebench.bench.score.flags import THRESHOLDS
from prunebench.leaderboard.roles import role_of

LIMITS = (1, 2)  # slack, in percent of the images, above which a flag should have been up
SWEPT, OTHERS = "black-box-wins", (0.005, 0.01, 0.015, 0.03, 0.05)
SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
_ROLES = {"reference": "unpruned", "method": "methods", "control": "controls"}


@dataclass(frozen=True)
class Level:
    """What `nets` nets show of a flag: the median and the 99th percentile of its value, and how many raise it.

    The percentile is the smallest value that 99 % of the nets do not exceed: the largest of fewer than 100.
    """

    median: float
    high: float
    up: int
    nets: int

    def __str__(self) -> str:
        return f"{self.median:.3g}, {self.high:.3g}, {self.up} of {self.nets}"


@dataclass(frozen=True)
class Slack:
    """A net under the best-known suite: by how many of `n` images its best-known number is below AutoAttack's."""

    images: int
    n: int

    def above(self, percent: int) -> bool:
        """Whether the slack exceeds this percentage of the images."""
        return 100 * self.images > percent * self.n


@dataclass(frozen=True)
class Hits:
    """How a flag's verdicts match those of slack: counts of nets by (flag up, slack above the limit)."""

    counts: Mapping[tuple[bool, bool], int]

    @property
    def cells(self) -> list[str]:
        """Sensitivity, specificity, and the share of raised flags that are right, each as "3 of 4 (75 %)"."""
        return [
            self._share((True, True), (False, True)),
            self._share((False, False), (True, False)),
            self._share((True, True), (True, False)),
        ]

    def _share(self, right: tuple[bool, bool], wrong: tuple[bool, bool]) -> str:
        part, whole = self.counts[right], self.counts[right] + self.counts[wrong]
        return f"{part} of {whole} ({part / whole:.0%})".replace("%", " %") if whole else "none"


def records_in(folders: Iterable[Path]) -> list[Record]:
    """One record per net below `folders`, by path; the last with a best-known number, or else the first.

    Journals and refusals are passed over. Raises PrunebenchError as `load_record` does, and for no record at all.
    """
    found: dict[str, Record] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            if JOURNAL in path.relative_to(folder).parts or not isinstance(record := load_record(path), Record):
                continue
            if record.beyond.best is not None or record.net.sha256 not in found:
                found[record.net.sha256] = record
    if not found:
        raise PrunebenchError("These folders hold no record; name folders of records (*.json).")
    return list(found.values())


def level(flags: Sequence[Flag]) -> Level | None:
    """The level of one flag over nets, each by the threshold in its own record; None if no net was measured."""
    values = [flag.value for flag in flags if flag.value is not None]
    if not values:
        return None
    high = float(np.quantile(values, 0.99, method="inverted_cdf"))
    return Level(statistics.median(values), high, sum(flag.up for flag in flags), len(values))


def groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by role and sparsity: "unpruned", then "methods .9" and so on, then controls."""
    made: defaultdict[tuple[int, float, str], list[Record]] = defaultdict(list)
    for record in records:
        role, sparsity = role_of(record.job), as_sparsity(record.job.sparsity)
        title = f"{_ROLES[role]} {sparsity:f}".replace(" 0.", " .") if sparsity else _ROLES[role]
        made[list(_ROLES).index(role), float(sparsity), title].append(record)
    return {title: made[order, sparsity, title] for order, sparsity, title in sorted(made)}


def slack_of(record: Record) -> Slack | None:
    """The slack of a record; None if its best-known number was not measured."""
    best = record.beyond.best
    return None if best is None else Slack(record.score.robust - best.robust, record.score.n)


def hits(nets: Iterable[tuple[bool, Slack]], percent: int) -> Hits:
    """How often a flag, up or not, goes with a slack above `percent` of the images."""
    counts = {(up, there): 0 for up in (False, True) for there in (False, True)}
    for up, slack in nets:
        counts[up, slack.above(percent)] += 1
    return Hits(counts)


def flags_of(records: Iterable[Record], name: str) -> list[Flag]:
    """The flags of this name in `records`."""
    return [flag for record in records for flag in record.score.flags if flag.name == name]


def measured(records: Iterable[Record], name: str) -> list[tuple[Flag, Slack]]:
    """The flag `name` and the slack of each net where both were measured."""
    pairs = [(flag, slack_of(record)) for record in records for flag in flags_of([record], name)]
    return [(flag, slack) for flag, slack in pairs if flag.value is not None and slack is not None]


def levels_table(records: Sequence[Record]) -> str:
    """A row per flag, with its threshold and its level in each group."""
    by_group = groups(records)
    rows = []
    for name, threshold in THRESHOLDS.items():
        found = [level(flags_of(group, name)) for group in by_group.values()]
        rows.append([f"`{name}`", f"{threshold:g}", *("not measured" if one is None else str(one) for one in found)])
    return table(["flag", "threshold", *by_group], rows)


def slack_table(records: Sequence[Record]) -> str:
    """A row per flag that some net raises: how its verdicts match slack above each limit, and the median slacks."""
    rows = []
    for name in THRESHOLDS:
        known = [(flag.up, slack) for flag, slack in measured(records, name)]
        if up := sum(raised for raised, _ in known):
            rows.append([f"`{name}`", f"{up} of {len(known)}", *_matches(known)])
    return table(["flag", "up", *_titles()], rows)


def swept_table(records: Sequence[Record]) -> str:
    """The same for the flag SWEPT if its threshold were another."""
    known = measured(records, SWEPT)
    rows = []
    for threshold in sorted({THRESHOLDS[SWEPT], *OTHERS}):
        ups = [((flag.value or 0.0) > threshold, slack) for flag, slack in known]
        rows.append([f"{threshold:g}", str(sum(up for up, _ in ups)), *_matches(ups)])
    return table(["threshold", "up", *_titles()], rows)


def pruners_table(records: Sequence[Record]) -> str:
    """The same for the flag SWEPT at its recorded threshold, a row per pruner: one method may make all the hits."""
    rows = []
    for label in sorted({record.job.label for record in records}):
        known = measured((record for record in records if record.job.label == label), SWEPT)
        if nets := [(flag.up, slack) for flag, slack in known]:
            rows.append([f"`{label}`", f"{sum(up for up, _ in nets)} of {len(nets)}", *_matches(nets)])
    return table(["pruner", "up", *_titles()], rows)


def _titles() -> list[str]:
    asked = [f"> {limit} %: {what}" for limit in LIMITS for what in ("found", "quiet", "right")]
    return [*asked, "median slack where up", "where down"]


def _matches(nets: Sequence[tuple[bool, Slack]]) -> list[str]:
    cells = [cell for limit in LIMITS for cell in hits(nets, limit).cells]
    for side in (True, False):
        shares = [100 * slack.images / slack.n for up, slack in nets if up is side]
        cells.append(f"{statistics.median(shares):.1f} %" if shares else "none")
    return cells


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with right-aligned columns, the first excepted."""
    ruler = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ruler, *rows))


def distinct(shape: tuple[int, int, int]) -> int:
    """How many of the squares that Square draws for an image of `shape` (channels, height, width) are different."""
    return int((Squares.drawn(shape, QUERIES, torch.Generator().manual_seed(0)).before == -2).sum())


_INTRO = """# Flags: what honest nets show

A flag is up when its value exceeds its threshold; [the rules](../bench/PROTOCOL.md) say what each measures. This page
says which values the nets of the boards have, and how often a raised flag is right. It is made from their records:

    {command}

A cell of the first table of a board holds the median of a flag's value over the nets, its 99th percentile, and how
many nets raise the flag. With fewer than 100 nets, that percentile is their largest value. Most values are shares of
the images; `out-of-range` is a ratio, `budget-overrun` an excess as a share, and `constant` a number of reasons. Each
net counts by the threshold in its own record. Controls are random pruning, shuffles, and methods with one part
replaced; many shuffles have collapsed.

The second table shows whether flags foretell slack: AutoAttack's robust accuracy minus the best-known one (see
[beyond AutoAttack](beyond.md)). For slack above 1 % and above 2 % of the images it counts:

- *found*: of the nets with such a slack, how many raise the flag (sensitivity);
- *quiet*: of the other nets, how many do not raise it (specificity);
- *right*: of the nets that raise it, how many have such a slack.

A flag that no measured net raises is left out. Slack is only what the known attacks reveal, so a flag may be right
where there is none: *right* is a lower limit. Some flags report other faults; a net that gives all images one answer
has no slack."""

_PIXELS = """## One threshold for images of all sizes

Square tries {queries:,} squares per image. The number of different squares among them is
{squares}.
On few pixels they are nearly all the squares there are, so `black-box-wins` is up more easily than on many. The
threshold is the same nevertheless. An image that falls to Square was missed by all gradient attacks, whatever its size.
The size matters for a flag that is down: the more pixels, the less it says."""


def page(records: Sequence[Record], command: str) -> str:
    """The whole page, a section per protocol; `command`: how it is made."""
    squares = [f"{distinct(shape):,} on {shape[1]}x{shape[2]} pixels" for shape in SHAPES]
    parts = [_INTRO.format(command=command), _PIXELS.format(queries=QUERIES, squares=", ".join(squares))]
    protocols: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        protocols[record.protocol.name].append(record)
    for name, group in sorted(protocols.items()):
        known = sum(record.beyond.best is not None for record in group)
        parts += [f"## {name}: {len(group)} nets", levels_table(group)]
        if known:
            parts += [f"### Right and wrong: {known} nets with a best-known number", slack_table(group)]
            parts += [f"`{SWEPT}` by pruner, over all sparsities:", pruners_table(group)]
            parts += [f"`{SWEPT}` with other thresholds:", swept_table(group)]
        else:
            parts.append("No best-known number has been measured here.")
    return "\n\n".join(parts)


def main() -> None:
    """Print the page for some folders of records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    folders = parser.parse_args().records
    print(page(records_in(folders), " ".join(["python -m tools.flag_levels", *map(str, folders)])))


if __name__ == "__main__":
    main()
