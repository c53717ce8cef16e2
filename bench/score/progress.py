"""The progress of a scoring and its expected cost, in sample passes, from the prices of a suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from prunebench.bench.attacks.suite import Listed, Shape
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.data import Split
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol
from prunebench.bench.score.curve import radii

Listen = Callable[[int], None]  # receives the sample passes of every forward


def expected(rules: Protocol, test: Split, *, clean: float, robust: float, best: bool = False) -> dict[str, float]:
    """Sample passes per attack for scoring a net with accuracies `clean` and `robust`, in [0, 1], on the images `test`.

    With `best`, the short attacks of the suite for the best-known number are among them.

    Assumes that every fooled image is fooled by the first attack, which runs to its end.
    """
    images, shape, suite = len(test), shape_of(test), suite_of(rules)
    runs = dict.fromkeys(suite.ranked, images * robust) | dict.fromkeys(suite.weak, images * clean)
    runs[next(iter(suite.ranked))] = images * clean
    runs[suite.curve] *= len(radii(rules.threat, math.prod(shape)))
    again = suite.best.short if best else {}
    prices = suite.prices(rules.threat, shape) | {name: of.price(rules.threat, shape) for name, of in again.items()}
    runs |= dict.fromkeys(again, images * robust)
    return {attack: price * runs[attack] for attack, price in prices.items()}


def shape_of(test: Split) -> Shape:
    """The shape (c, h, w) of an image."""
    _, channels, height, width = test.images.shape
    return channels, height, width


class ProgressEstimate:
    """The work done in a scoring, and the work remaining if images are fooled at the same rates as so far."""

    def __init__(
        self,
        rules: Protocol,
        test: Split,
        images: int,
        report: ProgressCallback,
        also: Mapping[str, Listed],
        only: Sequence[str] | None = None,
        *,
        best: bool = False,
    ) -> None:
        """`images`: the number of images of `test` to attack; `also`, `only`: as in `cascade.attack_shard`.

        `best`: the survivors are attacked again; the long attacks are not part of the estimate.
        """
        suite, shape = suite_of(rules), shape_of(test)
        self.images, self.report = images, report
        self.done = self.current = self.estimate = 0.0
        self.price = suite.prices(rules.threat, shape)
        self.price |= {name: listed.price(rules.threat, shape) for name, listed in also.items()}
        if only is not None:
            self.price = {name: self.price[name] for name in only}
        again = suite.best.short if best else {}
        self.price |= {name: listed.price(rules.threat, shape) for name, listed in again.items()}
        self.in_turn = {*suite.ranked, *again}  # each on the survivors of those before
        self.seen = dict.fromkeys(self.price, (0, 0))  # attack -> images attacked, images that survived
        self.runs = dict.fromkeys(self.price, 1) | {suite.curve: len(radii(rules.threat, math.prod(shape)))}

    def listener(self, attack: str, label: str, shard: int) -> Listen:
        """The callback that receives the sample passes of every forward of `attack` on shard number `shard`."""
        self.estimate = self._remaining()

        def listen(passes: int) -> None:
            self.current += passes
            so_far = self.done + self.current
            self.report(f"shard {shard + 1}, {label}", so_far, so_far + max(self.estimate - self.current, 1.0))

        return listen

    def finished(self, attack: str, reached: int, survived: int) -> None:
        """Record how many images of a shard an attack reached, and how many survived it."""
        self.done, self.current = self.done + self.current, 0.0
        before = self.seen.get(attack, (0, 0))
        self.seen[attack] = (before[0] + reached, before[1] + survived)

    def _remaining(self) -> float:
        """The sample passes remaining."""
        total, share = 0.0, 1.0
        for attack, price in self.price.items():
            reached, survived = self.seen[attack]
            ranked = attack in self.in_turn
            total += (self.images * self.runs[attack] - reached) * (share if ranked else 1.0) * price
            if ranked and reached:
                share = survived / reached
        return total
