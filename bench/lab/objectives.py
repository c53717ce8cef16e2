"""The losses of adversarial training, each with its attack and its price, in one table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.bench.attacks.base import Model
from prunebench.bench.protocol import Threat, Training


class Net(Interface):
    """An objective's view of a net in training."""

    @property
    def recipe(self) -> Training:
        """The training's rules."""

    @property
    def threat(self) -> Threat:
        """What the adversary may do."""

    def attacked(self) -> AbstractContextManager[Model]:
        """The net as attacks see it, in eval mode."""

    def logits(self, images: Tensor, model: Model | None = None) -> Tensor:
        """Logits, float32 (n, classes), of `images` from the net in training mode, or from a `model` of `attacked`."""

    def attack(
        self,
        model: Model,
        images: Tensor,
        target: Tensor,
        noise: torch.Generator,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images by PGD against `model`, from `attacked`, with the recipe's steps and step size."""


Loss = Callable[[Net, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss (net, images, labels, noise) -> scalar, and its price.

    `passes`: maps the recipe's steps to the sample passes per image and training step (forward 1, backward 2).
    """

    loss: Loss
    passes: Callable[[int], int]


def pgd(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """Cross-entropy on the images that PGD finds (Madry et al. 2018, arXiv 1706.06083)."""
    with net.attacked() as model:
        adversarial = net.attack(model, images, labels, noise)
    return F.cross_entropy(net.logits(adversarial), labels)


def fgsm_rs(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """Cross-entropy after one step of 1.25 eps from a random start (Wong et al. 2020, arXiv 2001.03994)."""
    with net.attacked() as model:
        adversarial = net.attack(model, images, labels, noise, steps=1, step_size=1.25 * net.threat.radius)
    return F.cross_entropy(net.logits(adversarial), labels)


def trades(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """Clean cross-entropy and beta times the divergence under attack (Zhang et al. 2019, arXiv 1901.08573, eq. 5)."""
    with net.attacked() as model:  # not under no_grad: tensors cached there would have no gradient
        clean = F.softmax(net.logits(images, model), dim=1).detach()
        start = images + 0.001 * torch.empty_like(images).normal_(generator=noise)
        adversarial = net.attack(model, images, clean, noise, loss=_divergence, start=start.clamp(0, 1))
    logits = net.logits(images)
    robust = _divergence(net.logits(adversarial), F.softmax(logits, dim=1))
    return F.cross_entropy(logits, labels) + net.recipe.beta * robust


def _divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), the batch mean."""
    return F.kl_div(F.log_softmax(logits, dim=1), probabilities, reduction="batchmean")


OBJECTIVES: dict[str, Objective] = {
    "pgd": Objective(pgd, lambda steps: 3 * steps + 3),
    "trades": Objective(trades, lambda steps: 1 + 3 * steps + 6),
    "fgsm-rs": Objective(fgsm_rs, lambda steps: 3 + 3),
}
