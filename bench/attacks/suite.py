"""A suite: which attacks run, in which order, at what price, and what each is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prunebench.bench.attacks.base import Attack
from prunebench.bench.protocol import Threat

Shape = tuple[int, int, int]  # of an image: (c, h, w)


@dataclass(frozen=True)
class Listed:
    """An attack with its price: the sample passes of an image that survives it, or a function that tells them."""

    attack: Attack
    passes: int | Callable[[Threat, Shape], int]

    def price(self, threat: Threat, shape: Shape) -> int:
        """The sample passes of an image of this shape that survives."""
        return self.passes if isinstance(self.passes, int) else self.passes(threat, shape)


@dataclass(frozen=True)
class Suite:
    """What `attacks` in a protocol names.

    `ranked`: the attacks that decide the number, each on the survivors of those before it. `weak`: each alone, on all
    images that are right when clean. `curve`: the weak attack that makes the security curve. `black_box`: the ranked
    attack that sees logits alone, after all that follow gradients. `quick`: the ranked attacks of a quick verification.
    `ran`: what each ranked attack runs on so many classes, in words for the record.
    """

    name: str
    ranked: Mapping[str, Listed]
    weak: Mapping[str, Listed]
    curve: str
    black_box: str
    quick: tuple[str, ...]
    ran: Callable[[int], tuple[str, ...]]

    @property
    def by_gradient(self) -> str:
        """The last ranked attack before the black box."""
        names = list(self.ranked)
        return names[names.index(self.black_box) - 1]

    def prices(self, threat: Threat, shape: Shape) -> dict[str, int]:
        """Sample passes, by attack, of an image of this shape that survives."""
        return {name: listed.price(threat, shape) for name, listed in (dict(self.ranked) | dict(self.weak)).items()}
