"""Stages of training that are computed once: a store keyed by everything that a stage depends on."""

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
_DONE, _PARTIAL = "done.safetensors", "partial.safetensors"


@dataclass(frozen=True)
class Stages:
    """A folder of finished stages, shared by the jobs of a run and by processes side by side."""

    folder: Path

    def remember(self, key: str, compute: Callable[[Path], tuple[State, Any]]) -> tuple[State, Any]:
        """The tensors and the JSON value of the stage `key`: from the store, or computed now and put there.

        `compute` is given the path of a file for what it has so far, from which it goes on after it was killed. While
        one process computes a stage, the others that want it wait.
        """
        place = self.folder / key
        with sole_user(place, wait=True):
            if (kept := load_kept(place / _DONE)) is None:
                kept = compute(place / _PARTIAL)
                keep(place / _DONE, *kept)
            (place / _PARTIAL).unlink(missing_ok=True)
        return kept


def keep(path: Path, tensors: State, about: Any) -> None:
    """Write tensors and a JSON value to `path`, whole or not at all."""
    write_bytes(path, pack(tensors, about))


def load_kept(path: Path) -> tuple[State, Any] | None:
    """What `keep` wrote to `path`; None when it is not there or not whole."""
    try:
        return unpack(read_outside(path, "a stage of training", LARGEST_STAGE), str(path))
    except PrunebenchError:
        return None
