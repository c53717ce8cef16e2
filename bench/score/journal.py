"""The measurements of a scoring so far, one file per shard and attack, so that a killed scoring can resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from safetensors.torch import load, save
from torch import Tensor

from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Seconds, Sha256
from prunebench.bench.files import canonical_json, read_known, read_outside, sha256_of, write_bytes
from prunebench.bench.outcomes import LARGEST_ARRAYS
from prunebench.bench.record import LARGEST, Hashed
from prunebench.bench.schema import Natural
from prunebench.bench.score.arithmetic import FLOAT32, Arithmetic


class Entry(Hashed):
    """One attack on one shard: a digit per image (1: still classified correctly), and the attack's cost.

    Its own hash covers every field, including the key of its facts, so that a damaged entry is never trusted.

    `images`: the sha256 of the file beside it that holds the adversarials; None when they were not kept. `repaired`:
    images attacked again in exact float32; written only where there are any.
    """

    key: Sha256
    standing: Annotated[str, Field(pattern=r"^[01]*$")]
    rejected: Natural
    kernel_only: Natural
    batch: Natural
    passes: Natural
    seconds: Seconds
    images: Sha256 | None = None
    repaired: Natural = 0

    @property
    def bits(self) -> Tensor:
        """The digits as a bool tensor (images,)."""
        return torch.tensor([digit == "1" for digit in self.standing], dtype=torch.bool)

    @model_serializer(mode="wrap")
    def _without_repairs_that_did_not_happen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "repaired" or value}


@dataclass(frozen=True)
class Finding:
    """One measurement: the images still `standing`, bool (images,); `rejected` proposals; the batch; the passes.

    `kernel_only`: proposals that fooled only the fast net. `images`: float32 (k, c, h, w), one adversarial per fooled
    image, in order. `repaired`: images attacked again in exact float32.
    """

    standing: Tensor
    rejected: int
    kernel_only: int
    batch: int
    passes: int
    images: Tensor
    repaired: int = 0


class Journal:
    """Entries below `folder` (None: nothing is kept).

    An entry is valid only for the same key: the `facts` (net, data, rules, machine, kernels), the shard, the attack,
    its arithmetic, its seed and the images still standing. A resumed scoring therefore gives the same bits as an
    uninterrupted one.
    """

    def __init__(self, folder: Path | None, facts: list[object]) -> None:
        self.folder, self.facts = folder, facts

    def entry(
        self,
        attack: str,
        shard: slice,
        seed: int,
        before: Tensor,
        measure: Callable[[], Finding],
        *,
        arithmetic: Arithmetic = FLOAT32,
        keep_images: bool = False,
    ) -> tuple[Entry, Tensor | None]:
        """The entry of `attack` on `shard`: read from the journal, or measured now by `measure`.

        `before`: bool (images,), the images standing. `arithmetic`: that of the attack; exact float32 is not named, so
        exact attacks are shared by scorings in any arithmetic. With `keep_images` the adversarials are stored and
        returned too; an entry stored without them is measured again.
        """
        named = [] if arithmetic.exact else [arithmetic.name]
        facts = [*self.facts, attack, shard.start, shard.stop, seed, _digits(before), *named]
        key = sha256_of(canonical_json(facts))
        name = f"shard-{shard.start:05}-{shard.stop:05}-{attack.replace(' ', '-')}"
        path = self.folder and self.folder / f"{name}.json"
        if path and (kept := _read(path, key, before)):
            images = _read_images(path, kept, before) if keep_images else None
            if images is not None or not keep_images:
                return kept, images
        began = time.perf_counter()
        found = measure()
        seconds = time.perf_counter() - began
        images = found.images if keep_images else None
        packed = None if images is None else save({"images": images.contiguous()})
        entry: Entry = Entry.sealed(
            key=key,
            standing=_digits(found.standing),
            rejected=found.rejected,
            kernel_only=found.kernel_only,
            batch=found.batch,
            passes=found.passes,
            seconds=seconds,
            images=None if packed is None else sha256_of(packed),
            repaired=found.repaired,
        )
        if path:
            if packed is not None:
                write_bytes(_images_path(path), packed)
            entry.save(path)
        return entry, images


def _read(path: Path, key: str, before: Tensor) -> Entry | None:
    """The entry at `path` if its key and images match; otherwise None, and the attack is measured again."""
    try:
        entry = Entry.model_validate(json_of(read_outside(path, "an entry of a journal", LARGEST)))
    except (PrunebenchError, ValueError, ValidationError):
        return None
    sound = entry.own_sha256 == entry.sha256 and entry.key == key
    return entry if sound and len(entry.standing) == len(before) and not (entry.bits & ~before).any() else None


def _read_images(path: Path, entry: Entry, before: Tensor) -> Tensor | None:
    """The adversarials of `entry`, if their file exists and is undamaged."""
    if entry.images is None:
        return None
    try:
        packed = read_known(
            _images_path(path), entry.images, "images of a journal", LARGEST_ARRAYS, missing="", other=""
        )
    except PrunebenchError:
        return None
    images = load(packed)["images"]
    return images if len(images) == int((before & ~entry.bits).sum()) else None


def _images_path(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _digits(bits: Tensor) -> str:
    return "".join("1" if bit else "0" for bit in bits.tolist())
