"""What a scoring has measured so far, a file per shard and attack, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from bench.files import canonical_json, sha256_of, write_json
from bench.protocol import Natural, Rules
from bench.record import Seconds, Sha256


class Entry(Rules):
    """One attack on one shard: a digit per image (1: still classified rightly), and what the attack took."""

    key: Sha256
    standing: Annotated[str, Field(pattern=r"^[01]*$")]
    disagreements: Natural
    batch: Natural
    passes: Natural
    seconds: Seconds

    @property
    def bits(self) -> Tensor:
        """The digits as a bool tensor (images,)."""
        return torch.tensor([digit == "1" for digit in self.standing], dtype=torch.bool)


class Journal:
    """Entries below `folder` (None: nothing is kept).

    An entry counts only under the very same key: the `facts` (net, data, rules, machine), the shard, the attack, its
    seed and who was still standing. So a resumed scoring ends in the bits of an uninterrupted one.
    """

    def __init__(self, folder: Path | None, facts: list[object]) -> None:
        self.folder, self.facts = folder, facts

    def entry(
        self, attack: str, shard: slice, seed: int, before: Tensor, measure: Callable[[], tuple[Tensor, int, int, int]]
    ) -> Entry:
        """The entry of `attack` on `shard`: the kept one, or what `measure` finds now.

        `before`: bool (images,), who was standing. `measure` returns who is standing afterwards, disagreements, batch
        size and sample passes.
        """
        facts = [*self.facts, attack, shard.start, shard.stop, seed, _digits(before)]
        key = sha256_of(canonical_json(facts))
        path = self.folder and self.folder / f"shard-{shard.start:05}-{shard.stop:05}-{attack}.json"
        kept = path and _read(path, key, before)
        if kept:
            return kept
        began = time.perf_counter()
        standing, disagreements, batch, passes = measure()
        entry = Entry(
            key=key, standing=_digits(standing), disagreements=disagreements, batch=batch, passes=passes,
            seconds=time.perf_counter() - began,
        )  # fmt: skip
        if path:
            write_json(path, entry.model_dump(mode="json"))
        return entry


def _read(path: Path, key: str, before: Tensor) -> Entry | None:
    """The entry at `path` if it has this key and speaks of these images; anything else is measured anew."""
    try:
        entry = Entry.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None
    sound = entry.key == key and len(entry.standing) == len(before) and not (entry.bits & ~before).any()
    return entry if sound else None


def _digits(bits: Tensor) -> str:
    return "".join("1" if bit else "0" for bit in bits.tolist())
