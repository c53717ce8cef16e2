"""Untargeted attacks by the margin between the label and the largest other class, in Linf and L2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunebench.bench.attacks.apgd import climbed
from prunebench.bench.attacks.ball import ball
from prunebench.bench.attacks.base import Model, pulled
from prunebench.bench.attacks.losses import margin, other_logit, own_logit, probability_margin
from prunebench.bench.protocol import Threat

STEPS, ALONE = 50, 20  # of margin decomposition per start; those on one term of the margin alone


@torch.no_grad()
def apgd_pm(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on the probability margin (arXiv 2411.15210), 100 steps, one start."""
    standing = model(images).argmax(1) == labels
    losses = [lambda now: probability_margin(labels[now])]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses)


@torch.no_grad()
def margin_decomposition(
    model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
) -> Tensor:
    """Margin decomposition (Ma et al. 2020, arXiv 2006.13726): first one term of the margin, then both.

    Two starts of STEPS steps each. The first ALONE steps lower the label's logit (first start) or raise the largest
    other one (second start), which restores a gradient where the two terms cancel. Steps shrink from twice the radius
    along a cosine, once per phase.
    """
    draw = torch.Generator().manual_seed(generator.initial_seed())
    proposals = images.clone()
    standing = model(images).argmax(1) == labels
    for term in (own_logit, other_logit):
        now = standing.nonzero().squeeze(1)
        if not len(now):
            break
        around, right = ball(images[now], threat), labels[now]
        point, fooled = around.start(draw), torch.zeros_like(right, dtype=torch.bool)
        found = images[now].clone()
        for step in range(STEPS + 1):
            with torch.enable_grad():
                lent = point.detach().requires_grad_()
                logits = model(lent)
            across = logits.detach().argmax(1) != right
            found[across], fooled = point[across], fooled | across
            if step < STEPS:
                loss = term(right) if step < ALONE else margin(right)
                gradient = pulled(logits, lent, loss(logits.detach())[1]).contiguous()
                size = torch.full((len(now), 1, 1, 1), _size(step) * threat.radius, device=images.device)
                point = around.inside(around.stepped(point, gradient, size))
        proposals[now[fooled]], standing[now[fooled]] = found[fooled], False
    return proposals


def _size(step: int) -> float:
    """The length of a step in units of the radius."""
    phase, length = (step, ALONE) if step < ALONE else (step - ALONE, STEPS - ALONE)
    return 1 + math.cos(math.pi * phase / length)
