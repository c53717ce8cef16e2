"""Records -> boards -> rows: what may be compared, how seeds become one number, which rows rank higher."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import fmean

import numpy as np

from prunebench.bench import stats
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import as_sparsity
from prunebench.bench.record import Record, Refusal, load_all
from prunebench.leaderboard import distances
from prunebench.leaderboard.board import Board, Doubt, Ranking, Rate, Refused, Row
from prunebench.leaderboard.comparable import refuse_incomparable
from prunebench.leaderboard.contrasts import (
    ALPHA,
    Contrast,
    Group,
    Power,
    contrasts,
    image_draws,
    places,
    power,
)
from prunebench.leaderboard.roles import Role, role_of
from prunebench.leaderboard.survivors import MOST_IMAGES, raw_outcomes

Results = Mapping[Path, Record | Refusal]


def read(folder: str | Path) -> dict[Path, Record | Refusal]:
    """The records and refusals below `folder`, by relative path.

    Raises PrunebenchError for an edited or invalid record, and for a folder without any.
    """
    folder = Path(folder)
    results = {path.relative_to(folder): result for path, result in load_all(folder).items()}
    if not results:
        raise PrunebenchError(
            f"There are no records (*.json) below {folder}; score a net first or name another folder."
        )
    return results


def rank(results: Results, folder: str | Path | None = None) -> Ranking:
    """The boards of these records, with a bootstrap where raw outcomes are beside them in `folder`.

    Official boards come first, and among them those with the most records: the first board is the leading one.
    Raises PrunebenchError when two records of one protocol are not comparable, or outcomes do not match their record.
    """
    by_protocol: defaultdict[str, dict[Path, Record]] = defaultdict(dict)
    refused = []
    for path, result in sorted(results.items()):
        if isinstance(result, Record):
            by_protocol[result.protocol.name][path] = result
        else:
            name = result.protocol.name if result.protocol else None
            pruner = result.job.label if result.job else None
            refused.append(Refused(path.as_posix(), name, pruner, result.refused, result.reason))
    boards = []
    for _, records in sorted(by_protocol.items()):
        refuse_incomparable(records)
        outcomes = {} if folder is None else raw_outcomes(Path(folder), records)
        boards.append(_board(records, outcomes, {} if folder is None else _far(Path(folder), records)))
    boards.sort(key=lambda board: (not board.official, -board.records, board.protocol))
    return Ranking(tuple(boards), tuple(refused))


_ORDER: tuple[Role, ...] = ("reference", "method", "control")


def _far(folder: Path, records: Mapping[Path, Record]) -> dict[Path, np.ndarray]:
    """The images' distances for those `records` that have them beside them in `folder`, by path."""
    small = {path: record for path, record in records.items() if record.score.n <= MOST_IMAGES}
    found = {path: distances.raw_distances(folder / path, record) for path, record in small.items()}
    return {path: far for path, far in found.items() if far is not None}


def _board(
    records: Mapping[Path, Record], outcomes: Mapping[Path, np.ndarray], far: Mapping[Path, np.ndarray]
) -> Board:
    first = next(iter(records.values()))
    groups = _groups(records)
    images = image_draws(first) if outcomes or far else np.empty(0)
    rows: list[Row] = []
    found: list[Contrast] = []
    powers: list[Power | None] = []
    for sparsity in sorted({sparsity for sparsity, _ in groups}):
        rivals = {label: group for (asked, label), group in groups.items() if asked == sparsity}
        here = contrasts(sparsity, rivals, outcomes, far, images)
        taken = places(here, [label for label, group in rivals.items() if role_of(group[0][1].job) == "method"])
        rows += [_row(sparsity, label, group, taken) for label, group in rivals.items()]
        found += here
        powers.append(power(here))
    rows.sort(key=lambda row: (row.sparsity, _ORDER.index(row.role), row.place or 0, -row.robust.mean, row.pruner))
    protocol = first.protocol
    timed = [record for record in records.values() if record.cost.train_seconds is not None]
    return Board(
        protocol=protocol.name,
        version=protocol.version,
        sha256=protocol.sha256,
        rules=next((rules for record in records.values() if (rules := record.known_rules)), None),
        data=first.data.name,
        data_sha256=first.data.sha256,
        n=first.score.n,
        official=first.built_in and all(row.official for row in rows),
        attacks=tuple(first.score.survived),
        rows=tuple(rows),
        contrasts=tuple(found),
        powers=tuple(each for each in powers if each),
        seconds=_seconds(timed),
        timed=len(timed),
        processors=tuple(sorted({record.processor for record in records.values()})),
    )


def _seconds(records: Iterable[Record]) -> float:
    """Of training and scoring these nets, each stage once: nets of one seed may share the first."""
    costs = [record.cost for record in records]
    stages = {(stage.name, stage.passes, stage.seconds) for cost in costs for stage in cost.stages}
    return math.fsum(seconds or 0.0 for *_, seconds in stages) + math.fsum(cost.score_seconds for cost in costs)


def _groups(records: Mapping[Path, Record]) -> dict[tuple[Decimal, str], Group]:
    groups: defaultdict[tuple[Decimal, str], list[tuple[Path, Record]]] = defaultdict(list)
    for path, record in records.items():
        groups[as_sparsity(record.job.sparsity), record.job.label].append((path, record))
    return {key: sorted(group, key=lambda pair: pair[1].job.seed) for key, group in sorted(groups.items())}


def _row(sparsity: Decimal, label: str, group: Group, taken: Mapping[str, int]) -> Row:
    """The row of a group; `taken`: the places of the methods of the same sparsity."""
    records = [record for _, record in group]
    seconds = [record.cost.train_seconds for record in records]
    known = [value for value in seconds if value is not None]
    place = taken.get(label)
    return Row(
        pruner=label,
        sparsity=sparsity,
        true_sparsity=fmean(record.net.sparsity for record in records),
        role=role_of(records[0].job),
        place=place,
        tied=place is not None and list(taken.values()).count(place) > 1,
        robust=_rate([record.score.robust for record in records], records[0].score.n),
        clean=_rate([record.score.clean for record in records], records[0].score.n),
        survived=_means([record.score.survived for record in records]),
        best=_best(records),
        weak=_means([record.score.weak for record in records]),
        distance=_distance(records),
        curve=_means([{point.eps: point.robust for point in record.score.curve} for record in records]),
        flags=_doubts(records),
        rejected=sum(record.score.rejected for record in records),
        seeds=tuple(record.job.seed for record in records),
        train_passes=fmean(record.cost.train_passes for record in records),
        train_seconds=fmean(known) if len(known) == len(seconds) else None,
        score_seconds=fmean(record.cost.score_seconds for record in records),
        devices=tuple(sorted({record.cost.device for record in records})),
        official=all(record.official for record in records),
        records=tuple(path.as_posix() for path, _ in group),
        patterns=tuple(
            pattern for pattern in records[0].patterns or () if all(pattern in (r.patterns or ()) for r in records)
        ),
        inexact=tuple(sorted({r.attack_arithmetic.name for r in records if not r.attack_arithmetic.exact})),
    )


def _rate(counts: Sequence[int], n: int) -> Rate:
    mean = sum(counts) / (len(counts) * n)
    if len(counts) == 1:
        return Rate(tuple(counts), mean, *stats.wilson(counts[0], n, 1 - ALPHA), "wilson")
    return Rate(tuple(counts), mean, *stats.logit_interval(counts, n, 1 - ALPHA), "logit-t")


def _best(records: Sequence[Record]) -> Rate | None:
    """The best-known rate; None unless one suite attacked the nets of all seeds.

    Its transfer runs only beside the dense net of the same seed, and fools too few images to part nets with and
    without.
    """
    found = [record.beyond.best for record in records]
    known = [best for best in found if best is not None]
    if len(known) < len(found) or len({(best.suite, *sorted(best.by.keys() - {"transfer"})) for best in known}) > 1:
        return None
    return _rate([best.robust for best in known], records[0].score.n)


def _distance(records: Sequence[Record]) -> float | None:
    """The mean of the median distances of `records`; None unless each of them has one."""
    known = [found.median for record in records if (found := distances.measured(record)) is not None]
    medians = [median for median in known if median is not None]
    return fmean(medians) if len(medians) == len(records) else None


def _means(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    return {name: fmean(of[name] for of in counts) for name in counts[0] if all(name in of for of in counts)}


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
