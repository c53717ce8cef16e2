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

    @property
    def lost(self) -> float:
        """The best of these accuracies minus the last."""
        return max(self.robust) - self.robust[-1]


def last_curve(record: Record) -> tuple[Validated, ...]:
    """The curve of the last stage that has one, empty if none has."""
    return next((stage.curve for stage in reversed(record.cost.stages) if stage.curve), ())


def course(row: Row, records: Mapping[Path, Record]) -> Course | None:
    """The course of the `row`; None unless all its records hold a curve with the same epochs."""
    curves = [last_curve(records[Path(path)]) for path in row.records]
    epochs = tuple(point.epoch for point in curves[0])
    if not epochs or any(tuple(point.epoch for point in curve) != epochs for curve in curves):
        return None
    points = zip(*curves, strict=True)
    return Course(epochs, tuple(sum(point.robust for point in at) / len(at) for at in points))
