"""A suite: the attacks, their order and prices, and the purpose of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prunebench.bench.attacks.base import Attack
from prunebench.bench.executor.surrogate import OWN, Surrogate
from prunebench.bench.protocol import Threat

Shape = tuple[int, int, int]  # of an image: (c, h, w)


@dataclass(frozen=True)
class Listed:
    """An attack with its price: the sample passes of an image that survives it, or a function that returns them.

    `surrogate`: the gradient that this attack sees in place of the net's own. `exact`: it runs in exact float32,
    whatever the arithmetic of the others, since it proposes points without knowing whether they fool the net.
    """

    attack: Attack
    passes: int | Callable[[Threat, Shape], int]
    surrogate: Surrogate = OWN
    exact: bool = False

    def price(self, threat: Threat, shape: Shape) -> int:
        """The sample passes of an image of this shape that survives."""
        return self.passes if isinstance(self.passes, int) else self.passes(threat, shape)


@dataclass(frozen=True)
class Pursuit:
    """The attacks on the survivors of a suite, for the best-known number, each run on the survivors of those before.

    `short`: run on every survivor. `long`: run in a shard where the short attacks and the suite's black box fool more
    than the share `trigger` of its images, or where the gradient vanishes on more than that share.
    """

    name: str
    short: Mapping[str, Listed]
    long: Mapping[str, Listed]
    trigger: float

    @property
    def attacks(self) -> dict[str, Listed]:
        """All attacks, in order."""
        return dict(self.short) | dict(self.long)


@dataclass(frozen=True)
class Suite:
    """The attacks that `attacks` in a protocol selects.

    `ranked`: the attacks that decide the score, each run on the survivors of the previous ones. `weak`: attacks run
    alone, on all images classified correctly when clean. `curve`: the weak attack for the security curve. `black_box`:
    the ranked attack that sees only logits, after all that use gradients. `quick`: the ranked attacks of a quick
    verification. `ran`: the variant of each ranked attack for a number of classes, in words for the record. `best`:
    the attacks on its survivors.
    """

    name: str
    ranked: Mapping[str, Listed]
    weak: Mapping[str, Listed]
    curve: str
    black_box: str
    quick: tuple[str, ...]
    ran: Callable[[int], tuple[str, ...]]
    best: Pursuit

    @property
    def by_gradient(self) -> str:
        """The last ranked attack before the black box."""
        names = list(self.ranked)
        return names[names.index(self.black_box) - 1]

    def prices(self, threat: Threat, shape: Shape) -> dict[str, int]:
        """Sample passes per attack of an image of this shape that survives."""
        return {name: listed.price(threat, shape) for name, listed in (dict(self.ranked) | dict(self.weak)).items()}
