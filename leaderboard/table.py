"""Records -> boards -> rows: what may be compared, how seeds become one number, who is ahead of whom."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from bench import stats
from bench.errors import PrunebenchError
from bench.protocol import PROTOCOLS, Job, as_sparsity
from bench.record import Record, Refusal, load_all
from leaderboard.comparable import refuse_incomparable

ALPHA = 0.05  # of the places; the intervals are at 1 - ALPHA
AS_HANDED_IN = "as handed in"  # how a record came of which nothing else is known
Results = Mapping[Path, Record | Refusal]


@dataclass(frozen=True)
class Rate:
    """A rate over seeds: `counts` (one a seed) of `n` images each, their mean rate, and its 95 % interval.

    `half` is half the width of a symmetric interval; None when `low` and `high` are Wilson's. All in [0, 1] but
    `half`, so that `low` and `high` are cut where `half` reaches beyond.
    """

    counts: tuple[int, ...]
    mean: float
    low: float
    high: float
    half: float | None


@dataclass(frozen=True)
class Doubt:
    """A flag that is up: for which seeds it is, and what it says of the one where its value is largest."""

    name: str
    sentence: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One pruner at one sparsity, its seeds taken together; costs are means over the seeds.

    `sparsity` was asked for, `true_sparsity` counted in the net. `place` is among the rows of the same asked
    sparsity; `tied` when another of them shares it. `survived` holds mean counts, in the order of the attacks; so do
    `weak`, by attack, and `curve`, by eps, as far as every seed has them. `train_seconds` is None when it is unknown
    for a seed. `origin`: how its records came, in the words of `leaderboard.provenance`.
    """

    pruner: str
    sparsity: Decimal
    true_sparsity: float
    place: int
    tied: bool
    robust: Rate
    clean: Rate
    survived: dict[str, float]
    weak: dict[str, float]
    curve: dict[str, float]
    flags: tuple[Doubt, ...]
    disagreements: int
    seeds: tuple[int, ...]
    train_passes: float
    train_seconds: float | None
    score_seconds: float
    devices: tuple[str, ...]
    official: bool
    records: tuple[str, ...]
    origin: str = AS_HANDED_IN

    @property
    def standing(self) -> str:
        """The place as it is shown: "2", "1=" in a tie, "ref" for an unpruned net alone at sparsity 0."""
        if self.sparsity == 0 and not self.tied:
            return "ref"
        return f"{self.place}{'=' if self.tied else ''}"


@dataclass(frozen=True)
class Contrast:
    """A method against one of its controls at one sparsity: random or magnitude pruning, or its own shuffle.

    `gap`: robust accuracy of the method less that of the control, in [-1, 1]; `half`: half its 95 % interval, None
    when no job has two seeds. `clear`: the gap is significant (t-tests with the pooled spread, Holm-adjusted over the
    contrasts of the sparsity).
    """

    pruner: str
    control: str
    sparsity: Decimal
    gap: float
    half: float | None
    clear: bool


@dataclass(frozen=True)
class Board:
    """The rows that may be compared: one protocol, one version of it, the same test images.

    `official` when the built-in protocol of that name has these very rules and every record says that it followed
    them. `df`: degrees of freedom behind the pooled spread; 0 when no job has two seeds.
    """

    protocol: str
    version: int
    sha256: str
    data: str
    data_sha256: str
    n: int
    official: bool
    attacks: tuple[str, ...]
    df: int
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def records(self) -> int:
        """How many records stand behind the rows."""
        return sum(len(row.records) for row in self.rows)

    @property
    def note(self) -> str:
        """How the intervals and places were made, in a sentence or two."""
        if self.df == 0:
            return (
                "No job has two seeds, so the spread between seeds is unknown: intervals are Wilson's 95 % for the "
                "images alone, and all rows of one sparsity tie."
            )
        return (
            "Each accuracy is the mean over seeds with its 95 % interval, from the spread between seeds pooled over "
            f"the board (t with {self.df} degrees of freedom). Place = 1 + the number of rows at the same sparsity "
            "that are significantly more robust (pooled two-sided t-tests, Holm-adjusted within the sparsity, at 5 %); "
            "rows that share a place are marked =."
        )


@dataclass(frozen=True)
class Refused:
    """A net that the referee did not score, and why."""

    record: str
    protocol: str | None
    pruner: str | None
    check: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """All there is to show: a board a protocol, by name, and the nets that were not scored."""

    boards: tuple[Board, ...]
    refused: tuple[Refused, ...]


def read(folder: str | Path) -> dict[Path, Record | Refusal]:
    """The records and refusals below `folder`, by their path from there.

    Raises PrunebenchError when one was edited or is none, and when there are none at all.
    """
    folder = Path(folder)
    results = {path.relative_to(folder): result for path, result in load_all(folder).items()}
    if not results:
        raise PrunebenchError(
            f"There are no records (*.json) below {folder}; score a net first or name another folder."
        )
    return results


def rank(results: Results) -> Ranking:
    """The boards of these records. Raises PrunebenchError when two records of one protocol cannot be compared."""
    by_protocol: defaultdict[str, dict[Path, Record]] = defaultdict(dict)
    refused = []
    for path, result in sorted(results.items()):
        if isinstance(result, Record):
            by_protocol[result.protocol.name][path] = result
        else:
            name = result.protocol.name if result.protocol else None
            pruner = result.job.label if result.job else None
            refused.append(Refused(path.as_posix(), name, pruner, result.refused, result.reason))
    return Ranking(tuple(_board(by_protocol[name]) for name in sorted(by_protocol)), tuple(refused))


def _board(records: Mapping[Path, Record]) -> Board:
    refuse_incomparable(records)
    first = next(iter(records.values()))
    groups = _groups(records)
    step = 1 / first.score.n
    robust_spread = stats.pooled([_robust(group) for group in groups.values()], step)
    clean_spread = stats.pooled([_rates(group, lambda r: r.score.clean) for group in groups.values()], step)
    places = _places(groups, robust_spread)
    rows = []
    for key, group in groups.items():
        tied = sum(places[other] == places[key] for other in groups if other[0] == key[0]) > 1
        rows.append(_row(key, group, (places[key], tied), robust_spread, clean_spread))
    rows.sort(key=lambda row: (row.sparsity, row.place, -row.robust.mean, row.pruner))
    protocol = first.protocol
    return Board(
        protocol=protocol.name, version=protocol.version, sha256=protocol.sha256,
        data=first.data.name, data_sha256=first.data.sha256, n=first.score.n,
        official=_built_in(first) and all(row.official for row in rows),
        attacks=tuple(first.score.survived), df=robust_spread.df, rows=tuple(rows),
        contrasts=_contrasts(groups, robust_spread),
    )  # fmt: skip


Key = tuple[Decimal, str]
Group = Sequence[tuple[Path, Record]]


def _groups(records: Mapping[Path, Record]) -> dict[Key, Group]:
    groups: defaultdict[Key, list[tuple[Path, Record]]] = defaultdict(list)
    for path, record in records.items():
        groups[as_sparsity(record.job.sparsity), record.job.label].append((path, record))
    return {key: sorted(group, key=lambda pair: pair[1].job.seed) for key, group in sorted(groups.items())}


def _rates(group: Group, count: Callable[[Record], int]) -> list[float]:
    return [count(record) / record.score.n for _, record in group]


def _places(groups: Mapping[Key, Group], spread: stats.Spread) -> dict[Key, int]:
    places: dict[Key, int] = {}
    for sparsity in {sparsity for sparsity, _ in groups}:
        rivals = {label: group for (asked, label), group in groups.items() if asked == sparsity}
        found = stats.places({label: _robust(group) for label, group in rivals.items()}, spread, ALPHA)
        places |= {(sparsity, label): place for label, place in found.items()}
    return places


CONTROLS = ("random", "magnitude")


def _contrasts(groups: Mapping[Key, Group], spread: stats.Spread) -> tuple[Contrast, ...]:
    """Every method at every sparsity against those of its controls that are on the board there."""
    found: list[Contrast] = []
    for sparsity in sorted({sparsity for sparsity, _ in groups if sparsity > 0}):
        rivals = {label: group for (asked, label), group in groups.items() if asked == sparsity}
        pairs = [(label, control) for label in rivals for control in _controls(label, rivals)]
        gaps = [_mean(_robust(rivals[a])) - _mean(_robust(rivals[b])) for a, b in pairs]
        sizes = [(len(rivals[a]), len(rivals[b])) for a, b in pairs]
        p_values = [stats.difference(gap, spread, *size) for gap, size in zip(gaps, sizes, strict=True)]
        for (a, b), gap, size, p in zip(pairs, gaps, sizes, stats.holm(p_values), strict=True):
            half = spread.half_width(1, 1 - ALPHA) * math.sqrt(1 / size[0] + 1 / size[1])
            found.append(Contrast(a, b, sparsity, gap, half if spread.df else None, p < ALPHA))
    return tuple(found)


def _controls(label: str, rivals: Mapping[str, Group]) -> list[str]:
    """Which of `rivals` are controls of the method `label`; a shuffle has none."""
    job = rivals[label][0][1].job
    if job.options.get("shuffle"):
        return []
    plain = [name for name in CONTROLS if name in rivals and label != name and label != CONTROLS[0]]
    own = [name for name, group in rivals.items() if _shuffled(group[0][1].job, job)]
    return plain + own


def _shuffled(other: Job, job: Job) -> bool:
    return other.pruner == job.pruner and other.options == job.options | {"shuffle": True}


def _robust(group: Group) -> list[float]:
    return _rates(group, lambda record: record.score.robust)


def _row(key: Key, group: Group, standing: tuple[int, bool], robust: stats.Spread, clean: stats.Spread) -> Row:
    records = [record for _, record in group]
    seconds = [record.cost.train_seconds for record in records]
    known = [value for value in seconds if value is not None]
    return Row(
        pruner=key[1],
        sparsity=key[0],
        true_sparsity=_mean(record.net.sparsity for record in records),
        place=standing[0],
        tied=standing[1],
        robust=_rate([record.score.robust for record in records], records[0].score.n, robust),
        clean=_rate([record.score.clean for record in records], records[0].score.n, clean),
        survived=_means([record.score.survived for record in records]),
        weak=_means([record.score.weak for record in records]),
        curve=_means([{point.eps: point.robust for point in record.score.curve} for record in records]),
        flags=_doubts(records),
        disagreements=sum(record.score.disagreements for record in records),
        seeds=tuple(record.job.seed for record in records),
        train_passes=_mean(record.cost.train_passes for record in records),
        train_seconds=_mean(known) if len(known) == len(seconds) else None,
        score_seconds=_mean(record.cost.score_seconds for record in records),
        devices=tuple(sorted({record.cost.device for record in records})),
        official=all(record.official for record in records),
        records=tuple(path.as_posix() for path, _ in group),
    )


def _rate(counts: Sequence[int], n: int, spread: stats.Spread) -> Rate:
    seeds, total = len(counts), sum(counts)
    mean = total / (seeds * n)
    if spread.df == 0:
        low, high = stats.wilson(total, seeds * n, 1 - ALPHA)
        return Rate(tuple(counts), mean, low, high, None)
    half = spread.half_width(seeds, 1 - ALPHA)
    return Rate(tuple(counts), mean, max(0.0, mean - half), min(1.0, mean + half), half)


def _means(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    return {name: _mean(of[name] for of in counts) for name in counts[0] if all(name in of for of in counts)}


def _doubts(records: Sequence[Record]) -> tuple[Doubt, ...]:
    raised: defaultdict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for record in records:
        for flag in record.score.flags:
            if flag.up:
                raised[flag.name].append((flag.value or 0.0, record.job.seed, flag.sentence))
    return tuple(
        Doubt(name, max(those)[2], tuple(sorted(seed for _, seed, _ in those)))
        for name, those in sorted(raised.items())
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _built_in(record: Record) -> bool:
    rules = PROTOCOLS.get(record.protocol.name)
    return rules is not None and rules.sha256 == record.protocol.sha256
