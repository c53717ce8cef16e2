"""Random images in place of a data set that is not here, of its shape and size: enough to time and to plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunebench.bench.data import Split, Store
from prunebench.bench.datasets import DATASETS


@dataclass(frozen=True)
class StandIn(Store):
    """A store that reads no file: data sets of the table consist of noise, the same each time.

    Nets must never be trained or scored on it.
    """

    def _arrays(self, name: str, train: bool) -> Split:
        if name not in DATASETS:
            return super()._arrays(name, train)
        known = DATASETS[name]
        count, noise = known.images[0 if train else 1], torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, *known.info.shape), generator=noise, dtype=torch.uint8)
        return Split(images, torch.arange(count) % known.info.classes)


def stand_in(store: Store, name: str) -> Store:
    """`store`, or noise in its place if a data set of the table is not in it."""
    return store if store.present(name) else StandIn(store.root)
