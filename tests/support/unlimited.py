"""An attacker without limits: knows from which net a deceiver was built, replaces gradients, and queries at will.

It estimates how many images a net really withstands. It is for tests: slow, simple, and independent of the suites.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench.attacks.base import Attack, Model, within
from prunebench.bench.protocol import Threat

LEAKS = (0.01, 0.05, 0.2, 1.0)  # slopes of a dead unit, in the backward pass
WIDTHS = (0.3, 1.0)  # of a unit's softened kink, in standard deviations of the unit's input
MIXES = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))  # weights of the target's and of the label's logit


class _Pulled(torch.autograd.Function):
    """ReLU whose gradient is multiplied by given slopes instead of 0 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slopes: Tensor) -> Tensor:
        """The exact ReLU."""
        ctx.save_for_backward(slopes)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient times the slopes."""
        (slopes,) = ctx.saved_tensors
        return gradient * slopes, None


class Surrogate(nn.Module):
    """A ReLU forwards; backwards, `slopes` of its input decides."""

    def __init__(self, slopes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.slopes = slopes

    def forward(self, x: Tensor) -> Tensor:
        """`x`: any shape."""
        return _Pulled.apply(x, self.slopes(x.detach()))


def leaking(leak: float) -> Callable[[Tensor], Tensor]:
    """Slope 1 where the input is positive, `leak` elsewhere."""
    return lambda x: torch.where(x > 0, 1.0, leak)


def softened(width: float) -> Callable[[Tensor], Tensor]:
    """The slope of a softplus, `width` standard deviations wide; two steep opposed units become one smooth step."""

    def slopes(x: Tensor) -> Tensor:
        spread = x.std(0, correction=0).mean() if len(x) > 1 else x.abs().mean()
        return torch.sigmoid(x / (width * spread + 1e-30))

    return slopes


class Surrogates(nn.Module):
    """A net with the logits of `net`, whose ReLUs pass gradients by `slopes`."""

    def __init__(self, net: nn.Module, slopes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        for module in list(self.net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, Surrogate(slopes))

    def forward(self, images: Tensor) -> Tensor:
        """`images`: (n, c, h, w)."""
        return self.net(images)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one: (n,)."""
    label = labels.unsqueeze(1)
    return (logits.gather(1, label) - logits.scatter(1, label, -math.inf).amax(1, keepdim=True)).squeeze(1)


@dataclass
class Hunt:
    """Images under attack by all means; `lowest`: the smallest margin found for each, at the points `best`."""

    net: Model
    images: Tensor
    labels: Tensor
    threat: Threat
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.best, self.lowest = self.images.clone(), margins(self.net(self.images), self.labels)

    @property
    def left(self) -> Tensor:
        """The images not fooled yet, int64 (k,)."""
        return (self.lowest > 0).nonzero().squeeze(1)

    def look(self, points: Tensor, left: Tensor) -> Tensor:
        """Measure `points` of the images `left`, keep what is better, and give their margins."""
        found = margins(self.net(points), self.labels[left])
        better = found < self.lowest[left]
        self.best[left[better]], self.lowest[left[better]] = points[better], found[better]
        return found

    def ascend(self, guide: Model, steps: int) -> None:
        """Signed gradient ascent on the logits of `guide`, towards each class; every point on the way is measured."""
        classes = guide(self.images[:1]).shape[1]
        for mix in MIXES:
            for offset in range(1, classes if mix[0] else 2):
                self._towards(guide, offset, mix, steps)

    def _towards(self, guide: Model, offset: int, mix: tuple[float, float], steps: int) -> None:
        if not len(left := self.left):
            return
        images, labels = self.images[left], self.labels[left]
        radius = self.threat.radius
        noise = torch.empty_like(images).uniform_(-radius, radius, generator=self.generator)
        point = within(images + noise, images, self.threat)
        for step in range(steps):
            with torch.enable_grad():
                logits = guide(point.requires_grad_())
                other = logits.gather(1, ((labels + offset) % logits.shape[1]).unsqueeze(1))
                (gradient,) = torch.autograd.grad(
                    (mix[0] * other - mix[1] * logits.gather(1, labels.unsqueeze(1))).sum(), point
                )
            size = 2 * radius * (1 - step / steps)
            point = within(point.detach() + size * gradient.sign(), images, self.threat)
            self.look(point, left)

    def query(self, queries: int) -> None:
        """Set random rectangles of the best points to a corner of the ball, as long as the margin does not rise."""
        height, width = self.images.shape[2:]
        for _ in range(queries):
            if not len(left := self.left):
                return
            images, points = self.images[left], self.best[left].clone()
            sides = [min(side, int(torch.randint(1, 4, (), generator=self.generator))) for side in (height, width)]
            top = int(torch.randint(0, height - sides[0] + 1, (), generator=self.generator))
            start = int(torch.randint(0, width - sides[1] + 1, (), generator=self.generator))
            signs = 2.0 * torch.randint(0, 2, (len(left), images.shape[1], 1, 1), generator=self.generator) - 1
            window = (slice(None), slice(None), slice(top, top + sides[0]), slice(start, start + sides[1]))
            points[window] = images[window] + self.threat.radius * signs
            self.look(within(points, images, self.threat), left)


def unlimited(net: Model, guides: Sequence[Model], *, steps: int, queries: int) -> Attack:
    """An attack on `net` along the gradients of each of the `guides`, then by `queries`."""

    @torch.no_grad()
    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        hunt = Hunt(net, images, labels, threat, generator)
        for guide in guides:
            hunt.ascend(guide, steps)
        hunt.query(queries)
        return hunt.best

    return attack
