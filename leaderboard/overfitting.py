"""Best against last epoch: what the training curves in records say about robust overfitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunebench.bench.facts import Validated
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Row


@dataclass(frozen=True)
class Course:
    """The last training of a row: PGD accuracy on validation images, in [0, 1], after `epochs`, mean over seeds."""

    epochs: tuple[int, ...]
    robust: tuple[float, ...]


def losses(row: Row, records: Mapping[Path, Record]) -> list[float]:
    """By how much the last epoch is below the best of those validated, in [0, 1], for each seed of the `row`.

    Each seed has its own best epoch. Empty unless all records of the row hold a curve.
    """
    curves = [_last_curve(records[Path(path)]) for path in row.records]
    return [max(point.robust for point in curve) - curve[-1].robust for curve in curves] if all(curves) else []


def course(row: Row, records: Mapping[Path, Record]) -> Course | None:
    """The course of the `row`; None unless all its records hold a curve with the same epochs."""
    curves = [_last_curve(records[Path(path)]) for path in row.records]
    epochs = tuple(point.epoch for point in curves[0])
    if not epochs or any(tuple(point.epoch for point in curve) != epochs for curve in curves):
        return None
    points = zip(*curves, strict=True)
    return Course(epochs, tuple(sum(point.robust for point in at) / len(at) for at in points))


def _last_curve(record: Record) -> tuple[Validated, ...]:
    """The curve of the last stage that has one, empty if none has."""
    return next((stage.curve for stage in reversed(record.cost.stages) if stage.curve), ())
