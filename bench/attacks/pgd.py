"""PGD and FGSM: the attack used in training, and the ones that papers usually report."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.bench.attacks.base import Attack, Model, within
from prunebench.bench.protocol import Threat

Loss = Callable[[Tensor, Tensor], Tensor]


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

    Every gradient is computed at the clipped image, never through the clipping, where it would vanish for pixels at 0
    and 1. `start` replaces the uniform random start. The perturbation stays float32 whatever `autocast` does to the
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


def fgsm(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """One step of length eps from the image itself (Goodfellow et al. 2015, arXiv 1412.6572)."""
    return pgd(
        model, images, labels, threat, generator=generator, steps=1, step_size=threat.radius, start=images.clone()
    )


def usual_pgd(steps: int) -> Attack:
    """PGD on cross-entropy as papers report it: a random start and `steps` steps of size 2.5 eps / steps."""

    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        step_size = 2.5 * threat.radius / steps
        return pgd(model, images, labels, threat, generator=generator, steps=steps, step_size=step_size)

    return attack


def _direction(gradient: Tensor, threat: Threat) -> Tensor:
    if threat.norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
