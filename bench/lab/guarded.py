"""A training that refuses to begin under masks with an empty layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunebench.bench.lab.schemes import Scheme
from prunebench.bench.mask import Masks, refuse_empty


@dataclass(frozen=True)
class Guarded(Scheme):
    """Plain training under masks that keep `counts[name]` weights in each layer, of which none may be 0.

    Rehearsals, whose weights are not trained and may be cut to nothing, pass.
    """

    counts: Mapping[str, int]

    def check(self) -> None:
        """Refuse a layer without weights."""
        refuse_empty(self.counts)


def guarded(masks: Masks) -> Guarded:
    """The plain training under `masks`, which refuses an empty layer before it begins."""
    return Guarded({name: int(mask.sum()) for name, mask in masks.items()})
