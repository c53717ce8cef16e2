"""Targeted attacks that choose their targets by the net's gradients, in Linf and L2."""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench.bench.attacks.apgd import STEPS, climbed
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.losses import Loss, dlr, margin, unit_spread
from prunebench.bench.protocol import Threat

CANDIDATES = 9  # the likeliest wrong classes, among which targets are chosen
TARGETS = 3
LONG, RESTARTS = 500, 5


@torch.no_grad()
def malt(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on the targeted margin, 100 steps towards each of the three nearest classes (MALT, NeurIPS 2024)."""
    ranked, standing = nearest(model, images, labels, threat)
    losses = [lambda now, k=k: _towards(labels[now], ranked[now, k]) for k in range(min(TARGETS, ranked.shape[1]))]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses)


@torch.no_grad()
def long_malt(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """As `malt`, from five starts with 500 steps each, towards the three classes in turn, on logits of unit spread."""
    ranked, standing = nearest(model, images, labels, threat)
    turns = [start % min(TARGETS, ranked.shape[1]) for start in range(RESTARTS)]
    losses = [lambda now, k=k: _spread(labels[now], ranked[now, k]) for k in turns]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses, LONG)


@torch.no_grad()
def every_target(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on the targeted margin, 100 steps towards each of the nine likeliest wrong classes, nearest first."""
    ranked, standing = nearest(model, images, labels, threat)
    losses = [lambda now, k=k: _towards(labels[now], ranked[now, k]) for k in range(ranked.shape[1])]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses)


@torch.no_grad()
def nearest(model: Model, images: Tensor, labels: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """The likeliest wrong classes, those first whose boundary is nearest; and which images are right, bool (n,).

    The distance to a boundary is that of a linear net: the margin divided by the dual norm of its gradient (L1 for
    Linf, L2 for L2). Shape (n, candidates), int64. Source: MALT (Melamed, Yehudai & Vardi, NeurIPS 2024).
    """
    with torch.enable_grad():
        lent = images.detach().requires_grad_()
        logits = model(lent)
    standing = logits.detach().argmax(1) == labels
    others = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf)
    candidates = others.topk(min(CANDIDATES, logits.shape[1] - 1), dim=1).indices
    distances = []
    for target in candidates.T:
        values, slopes = margin(labels, target)(logits.detach())
        with torch.enable_grad():
            gradient = torch.autograd.grad((logits * slopes).sum(), lent, retain_graph=True)[0]
        dual = gradient.flatten(1).norm(p=1 if threat.norm == "Linf" else 2, dim=1)
        distances.append(-values / dual.clamp_min(1e-12))
    order = torch.stack(distances, dim=1).argsort(dim=1, stable=True)
    return candidates.gather(1, order), standing


def _towards(labels: Tensor, targets: Tensor) -> Loss:
    """The margin in units of the logits' spread where there are enough classes for one, otherwise the margin alone."""
    return lambda logits: (dlr if logits.shape[1] >= 4 else margin)(labels, targets)(logits)


def _spread(labels: Tensor, targets: Tensor) -> Loss:
    """As `_towards`, on logits of unit spread where there are enough classes; a spread of two or three says nothing."""
    whole, few = unit_spread(dlr(labels, targets)), margin(labels, targets)
    return lambda logits: (whole if logits.shape[1] >= 4 else few)(logits)


def passes(targets: int, restarts: int = 1, steps: int = STEPS) -> int:
    """The sample passes of an image that survives: one gradient for the choice of targets, then those of each climb."""
    return 3 + restarts * targets * (steps + 1) * 3
