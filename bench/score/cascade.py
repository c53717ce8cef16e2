"""Attack after attack on a net's test images, shard by shard, through the journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from prunebench.bench.attacks import square
from prunebench.bench.attacks.suite import STANDARD, WEAK, Attack
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.schema import exact
from prunebench.bench.score.journal import Entry, Finding, Journal
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

Report = Callable[[str, float, float], None]  # what is at work, how much is done, of how much (sample passes)


def prices(threat: Threat, shape: tuple[int, int, int]) -> dict[str, int]:
    """Sample passes, by attack, that a point of `shape` (c, h, w) costs which survives it: forwards + 2 * backwards."""
    search = square.price(shape) if threat.norm == "Linf" else square.QUERIES
    return {
        "apgd-ce": 102 + 2 * 101,
        "apgd-t": 910 + 2 * 909,
        "fab-t": 1800 + 2 * 900,
        "square": search,
        "fgsm": 4,
        "pgd-20": 61,
        "pgd-50": 151,
    }


def expected(threat: Threat, test: Split, *, clean: float, robust: float) -> dict[str, float]:
    """Sample passes, by attack, of a scoring of which the shares `clean` and `robust` of the images are assumed.

    It is taken that what falls falls to the first attack, which runs to its end.
    """
    images, shape = len(test), _shape(test)
    runs = dict.fromkeys(STANDARD, images * robust) | dict.fromkeys(("apgd-ce", *WEAK), images * clean)
    runs["pgd-20"] *= len(radii(threat, math.prod(shape)))
    return {attack: price * runs[attack] for attack, price in prices(threat, shape).items()}


def _shape(test: Split) -> tuple[int, int, int]:
    _, channels, height, width = test.images.shape
    return channels, height, width


@dataclass
class Trial:
    """One net before all attacks. Every measurement is kept in the journal, so that a killed one goes on.

    `also`: weak attacks beside ours, by name. `entries` are the journal's, in order. `images`: float32 (n, c, h, w),
    zero but where `keep_images` and AutoAttack fooled the net: there, what fooled it. `only`: the number of the one
    shard to attack, where others see to the rest; what is returned then means nothing for images of other shards.
    """

    referee: Referee
    test: Split
    journal: Journal
    report: Report | None = None
    also: Mapping[str, Attack] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    images: Tensor | None = None
    only: int | None = None

    def __post_init__(self) -> None:
        images = sum(shard.stop - shard.start for _, shard in self._shards())
        price = prices(self.referee.rules.threat, _shape(self.test))
        self._progress = _Progress(images, len(self._radii()), price, self.report, tuple(self.also))

    def standard(self, clean: Tensor, *, keep_images: bool = False) -> dict[str, Tensor]:
        """AutoAttack *standard* on the images in `clean`, bool (n,): who still stands after each attack."""
        after = {name: torch.zeros(len(self.test), dtype=torch.bool) for name in STANDARD}
        if keep_images:
            self.images = torch.zeros_like(as_float(self.test.images))
        for number, shard in self._shards():
            seed = derive(self.referee.rules.attack_seed, "attack", f"shard-{number}")
            standing = clean[shard]
            for name, attack in STANDARD.items():
                standing = after[name][shard] = self._run(name, attack, shard, number, seed, standing, self.images)
        return after

    def weak(self, clean: Tensor) -> dict[str, Tensor]:
        """Each weak attack alone on the images in `clean`: who stands after it."""
        return {name: self._alone(name, attack, clean) for name, attack in (WEAK | dict(self.also)).items()}

    def curve(self, clean: Tensor, at_eps: Tensor) -> dict[str, Tensor]:
        """PGD-20 at growing eps, each alone on the images in `clean`: who stands; `at_eps`: at the threat's."""
        threat = self.referee.rules.threat
        bits = {}
        for eps in self._radii():
            if exact(eps) == exact(threat.eps):
                bits[eps] = at_eps
            else:
                bits[eps] = self._alone("pgd-20", WEAK["pgd-20"], clean, threat.model_copy(update={"eps": eps}))
        return bits

    def _shards(self) -> list[tuple[int, slice]]:
        """The shards to attack, with their numbers."""
        shards = list(enumerate(self.referee.shards(len(self.test))))
        return shards if self.only is None else shards[self.only : self.only + 1]

    def _radii(self) -> tuple[str, ...]:
        return radii(self.referee.rules.threat, math.prod(_shape(self.test)))

    def _alone(self, name: str, attack: Attack, clean: Tensor, threat: Threat | None = None) -> Tensor:
        after = torch.zeros(len(self.test), dtype=torch.bool)
        for number, shard in self._shards():
            seed = derive(self.referee.rules.attack_seed, "weak", f"shard-{number}")
            after[shard] = self._run(name, attack, shard, number, seed, clean[shard], None, threat)
        return after

    def _run(
        self,
        name: str,
        attack: Attack,
        shard: slice,
        number: int,
        seed: int,
        standing: Tensor,
        images: Tensor | None,
        threat: Threat | None = None,
    ) -> Tensor:
        """Who of `standing` still stands after `attack` on this shard; what fooled the others goes into `images`."""
        label = name.replace(":", " ") if threat is None else f"{name} eps {threat.eps.replace('/', ':')}"
        self.referee.listener = self._progress.listener(name, label, number)

        def measure() -> Finding:
            referee, before, left = self.referee, self.referee.passes, standing.clone()
            if not left.any():
                return Finding(left, 0, 0, referee.batch, 0, as_float(self.test.images[:0]))
            part = self.test.take(shard).take(left.nonzero().squeeze(1))
            found = referee.fooled(attack, as_float(part.images), part.labels, seed, threat)
            left[standing] = ~found.fooled
            return Finding(
                left,
                found.disagreements,
                found.unconfirmed,
                referee.batch,
                referee.passes - before,
                found.images[found.fooled],
            )

        entry, found = self.journal.entry(label, shard, seed, standing, measure, keep_images=images is not None)
        self._progress.finished(name, len(standing), int(entry.bits.sum()))
        self.entries.append(entry)
        if images is not None and found is not None:
            images[shard][standing & ~entry.bits] = found
        return entry.bits


_FACTORS = ("1/4", "1/2", "3/4", "1", "3/2", "2", "3")  # of the threat's eps


def radii(threat: Threat, pixels: int) -> tuple[str, ...]:
    """The eps of the security curve, exact and growing; at the last one every image of `pixels` values can be grey."""
    if threat.norm == "Linf":
        grey = Fraction(1, 2)
    else:  # half the square root of `pixels`, or the next multiple of a hundredth above it
        grey = Fraction(next(k for k in range(int(50 * pixels**0.5), 2**62) if k * k >= 2500 * pixels), 100)
    return (*(str(r) for f in _FACTORS if (r := exact(threat.eps) * Fraction(f)) < grey), str(grey))


class _Progress:
    """How far a scoring is, in sample passes: what is done, and what is left if images keep falling as they did."""

    def __init__(
        self, images: int, points: int, price: Mapping[str, int], report: Report | None, also: Sequence[str] = ()
    ) -> None:
        """`points`: how often PGD-20 runs, on all images each time. `also`: attacks that are priced as PGD-50 is."""
        self.images, self.report = images, report
        self.done = self.current = self.estimate = 0.0
        self.price = dict(price) | dict.fromkeys(also, price["pgd-50"])
        self.seen = dict.fromkeys(self.price, (0, 0))  # attack -> images it reached, images that survived it
        self.runs = {name: points if name == "pgd-20" else 1 for name in self.price}

    def listener(self, attack: str, label: str, shard: int) -> Callable[[int], None] | None:
        """What to call with the sample passes of every forward of `attack` on shard number `shard`."""
        if self.report is None:
            return None
        report, self.estimate = self.report, self._left()

        def listen(passes: int) -> None:
            self.current += passes
            so_far = self.done + self.current
            report(f"shard {shard + 1}, {label}", so_far, so_far + max(self.estimate - self.current, 1.0))

        return listen

    def finished(self, attack: str, reached: int, survived: int) -> None:
        """Note what an attack left of a shard."""
        self.done, self.current = self.done + self.current, 0.0
        before = self.seen[attack]
        self.seen[attack] = (before[0] + reached, before[1] + survived)

    def _left(self) -> float:
        """Sample passes still to come."""
        total, share = 0.0, 1.0
        for attack, price in self.price.items():
            reached, survived = self.seen[attack]
            cascade = attack in STANDARD
            total += (self.images * self.runs[attack] - reached) * (share if cascade else 1.0) * price
            if cascade and reached:
                share = survived / reached
        return total
