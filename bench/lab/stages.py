"""A store of training stages, each computed once and keyed by everything that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.bench.checkpoint import pack, unpack
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_outside, sole_user, write_bytes
from prunebench.bench.mask import State

LARGEST_STAGE = 2**31  # bytes: weights, their average and momentum, and what a pruner keeps
# Seconds, at least, between two checkpoints of a stage, by device. On a card an epoch takes as long as a checkpoint.
PAUSE = {"cpu": 0.0, "cuda": 30.0}
_DONE, _PARTIAL = "done.safetensors", "partial.safetensors"


@dataclass(frozen=True)
class StageStore:
    """A folder of finished stages, shared by the jobs of a run and by parallel processes."""

    folder: Path

    def remember(self, key: str, compute: Callable[[Path], tuple[State, Any]]) -> tuple[State, Any]:
        """The tensors and the JSON value of the stage `key`: from the store, or computed now and stored.

        `compute` gets the path of a file for partial results, from which it resumes after a kill. While one process
        computes a stage, others that need it wait.
        """
        place = self.folder / key
        with sole_user(place, wait=True):
            if (kept := load_stage(place / _DONE)) is None:
                kept = compute(place / _PARTIAL)
                save_stage(place / _DONE, *kept)
            (place / _PARTIAL).unlink(missing_ok=True)
        return kept


def progress_in(folder: Path) -> tuple[int, int]:
    """How many stages below `folder` are finished, and how many have been begun."""
    return len(list(folder.glob(f"*/{_DONE}"))), len(list(folder.glob(f"*/{_PARTIAL}")))


def save_stage(path: Path, tensors: State, about: Any) -> None:
    """Write tensors and a JSON value to `path` atomically."""
    write_bytes(path, pack(tensors, about))


def load_stage(path: Path) -> tuple[State, Any] | None:
    """What `save_stage` wrote to `path`; None if the file is missing or incomplete."""
    try:
        return unpack(read_outside(path, "a stage of training", LARGEST_STAGE), str(path))
    except PrunebenchError:
        return None
