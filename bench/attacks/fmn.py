"""Fast minimum-norm attack: adversarial images as near as it finds them, in Linf or L2.

Pintor, Roli, Brendel & Biggio 2021, arXiv 2102.12827. A ball around each image grows until the net is fooled in it and
shrinks while the net is fooled, and steps down the margin stay inside the ball. Other than published, steps are in
units of the ball's radius, and in Linf they go along the gradient's signs: the published steps of one length for all
images leave median distances 3 to 14 % larger on nets of the digits. The ball also grows a little past the linear
estimate of where the boundary is, since the estimate may approach it from inside for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prunebench.bench.attacks.base import Model, pulled
from prunebench.bench.attacks.losses import margin as margin_loss
from prunebench.bench.protocol import Threat

STEPS = 30
STARTS = 9  # classes whose images the search starts from
_PACE = (1.0, 0.01)  # first and last length of a step, in units of the ball's radius
_CHANGE = (0.1, 0.001)  # first and last change of the radius, as a share of it
_HALVINGS = 10  # of the way from a start to its image


@torch.no_grad()
def nearest(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """The nearest adversarial images that `fmn` finds in the norm of `threat`; its eps does not bound them.

    It starts from the images themselves, then from the nearest of `images` of each of up to STARTS other classes,
    finally from the best point found. An image of another class is a start where the gradient leads nowhere.
    """
    norm = threat.norm
    best = fmn(model, images, labels, norm, generator=generator)
    for start in _others(images, labels, norm):
        best = _nearer(images, best, fmn(model, images, labels, norm, generator=generator, start=start), norm)
    return _nearer(images, best, fmn(model, images, labels, norm, generator=generator, start=best), norm)


@torch.no_grad()
def fmn(
    model: Model,
    images: Tensor,
    labels: Tensor,
    norm: str,
    *,
    generator: torch.Generator,
    steps: int = STEPS,
    start: Tensor | None = None,
) -> Tensor:
    """The nearest adversarial images found in `norm` ("Linf" or "L2"); an image without any comes back unchanged.

    `start`: images of the same shape; those that fool the net are drawn towards their image up to the boundary, where
    the search begins. All others begin at the image. `generator` draws a direction where the gradient vanishes.
    """
    origin = images.flatten(1)
    largest = 1.0 if norm == "Linf" else math.sqrt(origin.shape[1])
    offsets, shortest = torch.zeros_like(origin), origin.new_full((len(origin),), math.inf)
    if start is not None:
        offsets, shortest = _drawn_in(model, images, labels, start, norm)
    best, radius = offsets, shortest.nan_to_num(posinf=0.0)
    for number in range(steps):
        pace, change = (_faded(number / steps, *ends) for ends in (_PACE, _CHANGE))
        margin, gradient = _looked(model, origin + offsets, labels, images.shape)
        length = lengths(offsets, norm)
        nearer = (margin <= 0) & (length < shortest)
        best = torch.where(nearer.unsqueeze(1), offsets, best)
        shortest = torch.where(nearer, length, shortest)

        way, slope = _downhill(gradient, norm, generator)
        reach = torch.where(shortest.isinf(), length + margin / slope, radius) * (1 + change)
        radius = torch.where(margin <= 0, torch.minimum(radius * (1 - change), shortest), reach).clamp_max(largest)
        offsets = inside(offsets + pace * radius.unsqueeze(1) * way, radius, norm)
        offsets = (origin + offsets).clamp_(0.0, 1.0) - origin
    return (origin + best).clamp_(0.0, 1.0).view_as(images)


def inside(offsets: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The `offsets` (n, d) projected to balls around zero with `radius` (n,) in `norm`."""
    limit = radius.unsqueeze(1)
    if norm == "Linf":
        return torch.minimum(torch.maximum(offsets, -limit), limit)
    length = lengths(offsets, norm).unsqueeze(1)
    return torch.where(length > limit, offsets * (limit / length), offsets)


def lengths(offsets: Tensor, norm: str) -> Tensor:
    """The lengths (n,) of `offsets` (n, d) in `norm`."""
    return offsets.abs().amax(1) if norm == "Linf" else offsets.norm(dim=1)


def _faded(part: float, first: float, last: float) -> float:
    """The value after `part` in [0, 1] of the way from `first` to `last`, along a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


def _looked(model: Model, points: Tensor, labels: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The label's logit minus the largest other logit at `points` (n, d), and its gradient in their shape."""
    with torch.enable_grad():
        lent = points.view(shape).requires_grad_()
        logits = model(lent)
    values, slopes = margin_loss(labels)(logits.detach())
    return -values, pulled(logits, lent, -slopes).flatten(1)


def _downhill(gradient: Tensor, norm: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The steps (n, d) of length 1 along which `gradient` falls fastest, and how fast it does; at random where flat."""
    top = gradient.abs().amax(1, keepdim=True)
    flat = ~(top > 0)
    if flat.any():
        drawn = torch.randn(gradient.shape, generator=generator, device=gradient.device)
        gradient = torch.where(flat, drawn, gradient)
    scaled = gradient / torch.where(flat, 1.0, top)  # squares of tiny gradients would vanish
    slope = scaled.abs().sum(1) if norm == "Linf" else scaled.norm(dim=1)
    way = -scaled.sign() if norm == "Linf" else -scaled / slope.unsqueeze(1)
    return way, (slope * top.squeeze(1)).clamp_min(torch.finfo(top.dtype).tiny)


def _drawn_in(model: Model, images: Tensor, labels: Tensor, start: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Offsets (n, d) from `images` to points near the boundary, and their lengths; 0 and infinity without a `start`."""

    def across(offsets: Tensor) -> Tensor:
        return model((origin + offsets).view_as(images)).argmax(1) != labels

    origin = images.flatten(1)
    offsets = start.flatten(1) - origin
    fooled, low, high = across(offsets), offsets.new_zeros(len(offsets)), lengths(offsets, norm)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        there = across(inside(offsets, middle, norm))
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    offsets = torch.where(fooled.unsqueeze(1), inside(offsets, high, norm), 0.0)
    return offsets, torch.where(fooled, lengths(offsets, norm), math.inf)


def _others(images: Tensor, labels: Tensor, norm: str) -> Iterator[Tensor]:
    """For each image the nearest of `images` of another class, then the nearest of a third class, and so on."""
    flat = images.flatten(1)
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(flat, flat, p=math.inf if norm == "Linf" else 2.0, compute_mode=exact)
    apart[labels.unsqueeze(1) == labels] = math.inf
    for _ in range(min(STARTS, len(labels.unique()) - 1)):
        chosen = apart.argmin(1)
        yield images[chosen]
        apart[labels[chosen].unsqueeze(1) == labels] = math.inf


def _nearer(images: Tensor, one: Tensor, other: Tensor, norm: str) -> Tensor:
    """For each image the nearer of two proposals; one that equals its image is none."""
    both = [lengths((proposals - images).flatten(1), norm) for proposals in (one, other)]
    first, second = (torch.where(length > 0, length, math.inf) for length in both)
    return torch.where((second < first).view(-1, 1, 1, 1), other, one)
