"""The set of allowed images, as attacks by gradient move in it: random starts, steps, projections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunebench.bench.protocol import Threat

_TINY = 1e-12  # where a length of 0 would divide


@dataclass(frozen=True)
class LinfBall:
    """The images in [0, 1] whose pixels differ from those of `images` by at most `radius`."""

    images: Tensor
    radius: float

    def start(self, generator: torch.Generator) -> Tensor:
        """A random point for each image, on the surface before it is clipped to [0, 1]."""
        noise = 2 * torch.rand(self.images.shape, generator=generator).to(self.images.device) - 1
        noise /= noise.flatten(1).abs().amax(1).view(-1, 1, 1, 1) + _TINY
        return (self.images + self.radius * noise).clamp_(0.0, 1.0)

    def stepped(self, points: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """`points` moved by the step of length `size`, (n, 1, 1, 1), that raises a linear loss most; not projected."""
        return gradient.sign().mul_(size).add_(points)

    def inside(self, points: Tensor) -> Tensor:
        """The projection of `points`, which it may overwrite."""
        return points.clamp_(*self._ends)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of each pixel."""
        return (self.images - self.radius).clamp_(0.0, 1.0), (self.images + self.radius).clamp_(0.0, 1.0)


@dataclass(frozen=True)
class L2Ball:
    """The images in [0, 1] whose Euclidean distance from those of `images` is at most `radius`."""

    images: Tensor
    radius: float

    def start(self, generator: torch.Generator) -> Tensor:
        """A random point for each image, on the surface before it is clipped to [0, 1]."""
        noise = torch.randn(self.images.shape, generator=generator).to(self.images.device)
        return (self.images + self.radius * noise / _length(noise)).clamp_(0.0, 1.0)

    def stepped(self, points: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """`points` moved by the step of length `size`, (n, 1, 1, 1), that raises a linear loss most; not projected."""
        return points + size * gradient / _length(gradient)

    def inside(self, points: Tensor) -> Tensor:
        """`points`, pulled straight towards their images until they are in the ball, then clipped to [0, 1]."""
        offset = points - self.images
        return (self.images + offset * (self.radius / _length(offset)).clamp_max(1.0)).clamp_(0.0, 1.0)


Ball = LinfBall | L2Ball


def ball(images: Tensor, threat: Threat) -> Ball:
    """The ball of `threat` around `images`, float32 (n, c, h, w)."""
    return (LinfBall if threat.norm == "Linf" else L2Ball)(images, threat.radius)


def _length(offsets: Tensor) -> Tensor:
    return offsets.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(_TINY)
