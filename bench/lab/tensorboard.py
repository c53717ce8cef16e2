"""Training curves as TensorBoard event files: one folder per stage, one step per epoch."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunebench.bench.errors import PrunebenchError

TAGS = {"loss": "loss", "lr": "lr", "clean": "validation/clean", "robust": "validation/robust"}  # of a curve's columns


def require() -> None:
    """Raise PrunebenchError when the package `tensorboard`, an extra, is missing."""
    if find_spec("tensorboard") is None:
        raise PrunebenchError(
            "--tensorboard needs the package tensorboard: from a checkout, pip install '.[tensorboard]'."
        )


class Curves:
    """The event files of one job below `folder`.

    Files from an earlier run of the job are removed. Every training writes its whole curve, including the part before
    a kill and finished stages, so no step appears twice.
    """

    def __init__(self, folder: Path) -> None:
        require()
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self._stages = folder, 0

    def stage(self, name: str, *, images: int, sparsity: float) -> Curve:
        """The curve of the next stage, with `images` images per epoch under masks of `sparsity` in [0, 1)."""
        self._stages += 1
        readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        return Curve(self.folder / f"{self._stages:02}-{readable}", images, sparsity)


class Curve:
    """The event file of one training."""

    def __init__(self, folder: Path, images: int, sparsity: float) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder))
        self._images, self._sparsity, self._told = images, sparsity, 0

    def add(self, row: dict[str, Any], seconds: float) -> None:
        """Write a row of the curve and its epoch's images per second; no row is written twice."""
        epoch = row["epoch"]
        if epoch <= self._told:
            return
        self._told = epoch
        values = {tag: row[column] for column, tag in TAGS.items() if column in row}
        values |= {"sparsity": self._sparsity, "images per second": self._images / max(seconds, 1e-9)}
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self, rows: list[dict[str, Any]], times: list[float]) -> None:
        """Write the rows of the whole curve that are still missing, and close the file."""
        for row, seconds in zip(rows, times, strict=True):
            self.add(row, seconds)
        self._writer.close()
