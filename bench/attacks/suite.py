"""Attacks, each a function `attack(model, images, labels, threat, *, generator) -> proposals`.

`images`: float32 (n, c, h, w) in [0, 1]. `labels`: int64 (n,). `model` maps images to logits (n, classes). Proposals
have the shape of the images; an image that an attack gives up on comes back unchanged. An attack only proposes: nothing
it says about success enters a number.

The four attacks of AutoAttack *standard* (Croce & Hein 2020, arXiv 2003.01690): in Linf, and FAB-T in L2 too, they
are our own of `bench.attacks.base`, which find the same points sooner; the others run as its authors publish them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack
from torch import Tensor

from prunebench.bench.attacks import apgd, fab
from prunebench.bench.attacks.base import Model as Model
from prunebench.bench.attacks.square import square as linf_square
from prunebench.bench.protocol import Threat

Loss = Callable[[Tensor, Tensor], Tensor]

_QUIET = logging.getLogger("prunebench.autoattack")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class Attack(Interface):
    """What every attack looks like."""

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
    ) -> Tensor: ...


def within(proposals: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """`proposals` projected to the ball of `threat` around `images` and to [0, 1]; what lies inside is not touched.

    The radius is eps * (1 + 1e-6): in float32 `x + eps` itself leaves the exact ball for 7.5 % of the pixels.
    """
    radius = threat.radius * (1 + 1e-6)
    if threat.norm == "Linf":
        inside = torch.clamp(proposals, images - radius, images + radius)
    else:
        offsets = proposals - images
        length = offsets.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        inside = torch.where(length > radius, images + offsets * (radius / length), proposals)
    return inside.clamp(0.0, 1.0)


def apgd_ce(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on cross-entropy, 100 steps, one start."""
    if threat.norm == "Linf":
        return apgd.apgd_ce(model, images, labels, threat.radius, generator.initial_seed())
    attack = APGDAttack(
        model,
        n_restarts=1,
        n_iter=100,
        eps=threat.radius,
        norm=threat.norm,
        eot_iter=1,
        rho=0.75,
        loss="ce",
        seed=generator.initial_seed(),
        device=images.device,
        logger=_QUIET,
    )
    return _contained(attack.perturb, images, labels)


def apgd_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Auto-PGD on the DLR loss, 100 steps for each of the 9 likeliest wrong classes.

    The targeted DLR loss takes four logits. With three classes the untargeted DLR loss runs instead; with two, where CE
    already orders the points as the margin does, CE from another start.
    """
    classes, seed = _classes(model, images), generator.initial_seed()
    if classes == 2:
        return apgd_ce(model, images, labels, threat, generator=torch.Generator().manual_seed(seed ^ 1))
    targets = min(9, classes - 1)
    if threat.norm == "Linf" and classes >= 4:
        return apgd.apgd_t(model, images, labels, threat.radius, targets, seed)
    common = dict(
        n_restarts=1,
        n_iter=100,
        eps=threat.radius,
        norm=threat.norm,
        eot_iter=1,
        rho=0.75,
        device=images.device,
        logger=_QUIET,
        seed=seed,
    )
    if classes >= 4:
        attack = APGDAttack_targeted(model, n_target_classes=targets, **common)
    else:
        attack = APGDAttack(model, loss="dlr", **common)
    return _contained(attack.perturb, images, labels)


def fab_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Fast Adaptive Boundary attack, 100 steps for each of the 9 likeliest wrong classes."""
    return fab.fab_t(model, images, labels, threat.norm, threat.radius, min(9, _classes(model, images) - 1))


def square(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Square attack, 5,000 queries; sees logits only."""
    if threat.norm == "Linf":
        return linf_square(model, images, labels, threat.radius, generator.initial_seed())
    attack = SquareAttack(
        model,
        p_init=0.8,
        n_queries=5000,
        eps=threat.radius,
        norm=threat.norm,
        n_restarts=1,
        resc_schedule=False,
        seed=generator.initial_seed(),
        device=images.device,
    )
    return _contained(attack.perturb, images, labels)


STANDARD: dict[str, Attack] = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square}


def fgsm(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """One step of length eps from the image itself (Goodfellow et al. 2015, arXiv 1412.6572)."""
    return pgd(
        model, images, labels, threat, generator=generator, steps=1, step_size=threat.radius, start=images.clone()
    )


def _usual_pgd(steps: int) -> Attack:
    """PGD on cross-entropy as papers report it: a random start, that many steps of 2.5 eps / steps."""

    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        step_size = 2.5 * threat.radius / steps
        return pgd(model, images, labels, threat, generator=generator, steps=steps, step_size=step_size)

    return attack


# What papers usually claim robustness by; shown beside AutoAttack, never part of it.
WEAK: dict[str, Attack] = {"fgsm": fgsm, "pgd-20": _usual_pgd(20), "pgd-50": _usual_pgd(50)}


def adapted(classes: int) -> tuple[str, ...]:
    """What each attack of STANDARD really runs on `classes` classes, in words for the record."""
    targets = min(9, classes - 1)
    second = {
        2: "apgd-t: cross-entropy from a second start, for 2 classes have no DLR loss",
        3: "apgd-t: untargeted DLR, for the targeted one needs 4 classes",
    }
    return ("apgd-ce", second.get(classes, f"apgd-t: {targets} targets"), f"fab-t: {targets} targets", "square")


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    generator: torch.Generator,
    steps: int,
    step_size: float,
    loss: Loss = F.cross_entropy,
    start: Tensor | None = None,
    autocast: torch.autocast | None = None,
) -> Tensor:
    """Projected gradient ascent on `loss(logits, labels)` from a random start (Madry et al. 2018, arXiv 1706.06083).

    Every gradient is taken at the clipped image, never through the clipping: where pixels sit at 0 and 1 it would
    vanish. `start` replaces the uniform random start. The perturbation stays float32 whatever `autocast` does to the
    net.
    """
    radius = threat.radius
    if start is None:
        noise = torch.empty_like(images).uniform_(-radius, radius, generator=generator)
        start = within(images + noise, images, threat)
    adversarial = start
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            if autocast is None:
                value = loss(model(adversarial), labels)
            else:
                with autocast:
                    logits = model(adversarial)
                value = loss(logits.float(), labels)
            (gradient,) = torch.autograd.grad(value, adversarial)
        adversarial = within(adversarial.detach() + step_size * _direction(gradient, threat), images, threat)
    return adversarial.detach()


def _direction(gradient: Tensor, threat: Threat) -> Tensor:
    if threat.norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _classes(model: Model, images: Tensor) -> int:
    with torch.no_grad():
        return int(model(images[:1]).shape[-1])


def _contained(perturb: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Run an attack that seeds the global random state, and put that state back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the attacks seed every card
        return perturb(images, labels).detach()
