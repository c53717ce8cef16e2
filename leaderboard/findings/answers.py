"""Questions answered on one board: a verdict in a sentence, and a table with differences and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from prunebench.bench import stats
from prunebench.bench.record import Record
from prunebench.leaderboard import published
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.contrasts import ALPHA
from prunebench.leaderboard.findings import wording
from prunebench.leaderboard.findings.compared import Compared, Key, at_every_sparsity, compare, named
from prunebench.leaderboard.findings.questions import (
    Every,
    Order,
    Overfitting,
    Overlaps,
    Pairs,
    Question,
    Slack,
    Unpruned,
)
from prunebench.leaderboard.nets import Mask, mask_of
from prunebench.leaderboard.overfitting import losses
from prunebench.leaderboard.overlap import agreements
from prunebench.leaderboard.render.text import percent
from prunebench.leaderboard.roles import PRIMARY, RANDOM


@dataclass(frozen=True)
class Answer:
    """What a board says about a question.

    `verdict`: a sentence or two. `titles` and `lines`: a table with the figures behind it. `rows`: those
    that were compared, for the command that makes them.
    """

    board: Board
    verdict: str
    titles: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Evidence:
    """A board, its records by path, and the folder below which they and the files beside them are."""

    board: Board
    records: Mapping[Path, Record]
    source: Path

    def of(self, row: Row) -> list[tuple[Path, Record]]:
        """The records of a row, with their paths."""
        return [(self.source / path, self.records[Path(path)]) for path in row.records]


def answer(question: Question, evidence: Evidence) -> Answer | None:
    """The answer of one board; None where it lacks the rows or what is measured on them.

    Raises PrunebenchError for nets other than those that the records name.
    """
    match question.asked:
        case Pairs(pairs=pairs):
            return _compared(evidence.board, at_every_sparsity(evidence.board, pairs), wording.pairs)
        case Every(control=control):
            return _every(evidence.board, control)
        case Unpruned():
            return _unpruned(evidence.board)
        case Order() as order:
            return _order(evidence.board, order)
        case Slack():
            return _slack(evidence)
        case Overlaps(seeds=seeds):
            return _overlaps(evidence, between_seeds=seeds)
        case Overfitting():
            return _overfitting(evidence)


def _compared(board: Board, pairs: Sequence[tuple[Key, Key]], say: wording.Say) -> Answer | None:
    found = compare(board, pairs)
    if not found:
        return None
    lines = [wording.line(each) for each in found]
    return _answer(board, say(found), wording.TITLES, lines, _rows(board, found))


def _answer(
    board: Board, verdict: str, titles: Sequence[str], lines: Sequence[Sequence[str]], rows: Iterable[Row]
) -> Answer:
    return Answer(board, verdict, tuple(titles), tuple(map(tuple, lines)), tuple(rows))


def _rows(board: Board, found: Sequence[Compared]) -> list[Row]:
    """The rows on either side of what was compared, in the board's order."""
    keys = {key for each in found for key in (each.ours, each.theirs)}
    return [row for row in board.rows if (row.sparsity, row.pruner) in keys]


def _every(board: Board, control: str) -> Answer | None:
    """Every method against its control, as the board pairs them; the wording counts who is clearly ahead or behind."""
    wanted = {PRIMARY: {("primary", PRIMARY)}, RANDOM: {("secondary", RANDOM)}}.get(control)
    pairs = []
    for each in board.contrasts:
        kind = each.family, each.control
        if kind in wanted if wanted else each.family == "secondary" and each.control != RANDOM:
            pairs.append(((each.sparsity, each.pruner), (each.sparsity, each.control)))
    return _compared(board, pairs, lambda found: wording.every(found, control, board))


def _unpruned(board: Board) -> Answer | None:
    dense = (Decimal(0), "dense")
    pairs = [((row.sparsity, row.pruner), dense) for row in board.rows if row.role == "method"]
    return _compared(board, pairs, lambda found: wording.every(found, "the unpruned net", board))


def _order(board: Board, order: Order) -> Answer | None:
    """Each published pair beside our difference; the published one is of the paper's own net and budget."""
    told = {
        (net.name, Decimal(str(net.sparsity))): net.robust
        for net in published.load().rows
        if (net.arch, net.source) == (order.arch, order.source)
    }
    lines, verdicts, found = [], [], []
    for (first, ours), (second, theirs) in order.pairs:
        here = [
            (each, _gap(told.get((first, each.ours[0])), told.get((second, each.ours[0]))))
            for each in compare(board, at_every_sparsity(board, [(ours, theirs)]))
        ]
        for each, gap in here:
            cells = wording.line(each)
            lines.append((*cells[:4], "" if gap is None else f"{gap:+.1f}", *cells[4:]))
            found.append(each)
        if here:
            verdicts.append(wording.order(named(board, ours), named(board, theirs), here))
    titles = (*wording.TITLES[:4], "Published", *wording.TITLES[4:])
    return _answer(board, " ".join(verdicts), titles, lines, _rows(board, found)) if found else None


def _gap(first: float | None, second: float | None) -> float | None:
    """By how many points the `first` accuracy is above the `second`; None if either is unknown."""
    return None if first is None or second is None else first - second


def _slack(evidence: Evidence) -> Answer | None:
    known = [(row, row.best) for row in evidence.board.rows if row.best is not None]
    if not known:
        return None
    tests = []
    for row, best in known:
        lost = [ours - theirs for ours, theirs in zip(row.robust.counts, best.counts, strict=True)]
        tests.append((row, stats.by_seed(lost, evidence.board.n, 1 - ALPHA)))
    tests.sort(key=lambda pair: (pair[0].sparsity, -(pair[1].gap or 0.0), pair[0].pruner))
    lines = [
        (
            f"{row.sparsity:f}",
            row.pruner,
            str(test.seeds),
            wording.slack(test),
            percent(row.robust.mean),
            percent(best.mean),
        )
        for row, test in tests
        for best in [row.best]
        if best is not None
    ]
    titles = ("Sparsity", "Row", "Seeds", "Slack, points", "AutoAttack %", "Best known %")
    return _answer(evidence.board, wording.slacks(tests), titles, lines, [row for row, _ in tests])


def _overlaps(evidence: Evidence, *, between_seeds: bool) -> Answer | None:
    """The agreements of the methods and random pruning, sparsity by sparsity."""
    lines, found, there = [], [], []
    for sparsity in sorted({row.sparsity for row in evidence.board.rows if row.sparsity}):
        rows = [r for r in evidence.board.rows if r.sparsity == sparsity and (r.role == "method" or r.pruner == RANDOM)]
        masks: dict[str, dict[int, Mask]] = {}
        for row in sorted(rows, key=lambda row: row.pruner):
            nets = {record.job.seed: mask_of(path, record) for path, record in evidence.of(row)}
            if kept := {seed: mask for seed, mask in nets.items() if mask is not None}:
                masks[row.pruner] = kept
        for each in agreements(masks):
            if each.same_seed != between_seeds:
                found.append((sparsity, each))
                lines.append(wording.overlap(sparsity, each))
        there += [row for row in rows if row.pruner in masks]
    if not found:
        return None
    return _answer(evidence.board, wording.overlaps(found), wording.OVERLAP, lines, there)


def _overfitting(evidence: Evidence) -> Answer | None:
    lines, found = [], []
    for row in evidence.board.rows:
        if lost := losses(row, evidence.records):
            found.append((row, lost))
            lines.append((f"{row.sparsity:f}", row.pruner, str(len(lost)), wording.lost(lost)))
    if not found:
        return None
    titles = ("Sparsity", "Row", "Seeds", "Best epoch minus last, points")
    return _answer(evidence.board, wording.overfitting(found), titles, lines, [row for row, _ in found])
