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
from prunebench.bench.protocol import Threat
from prunebench.bench.recipe import Training


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


@dataclass(frozen=True)
class Objective:
    """A loss on adversarial images, the search for those images, and the price of both.

    `attack`: (net, images, labels, noise) -> adversarial images. `loss`: (net, images, adversarial, labels) -> scalar.
    `search`: maps the recipe's steps to the attack's sample passes per image (forward 1, backward 2); `gradient`: the
    passes of the loss and its gradient. `clean`: whether the search also asks for logits without a gradient.
    """

    attack: Callable[[Net, Tensor, Tensor, torch.Generator], Tensor]
    loss: Callable[[Net, Tensor, Tensor, Tensor], Tensor]
    search: Callable[[int], int]
    gradient: int
    clean: bool = False

    def passes(self, steps: int, gradients: int = 1) -> int:
        """Sample passes per image and training step that takes `gradients` gradients of the loss."""
        return self.search(steps) + gradients * self.gradient


def cross_entropy(net: Net, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the adversarial images (Madry et al. 2018, arXiv 1706.06083)."""
    return F.cross_entropy(net.logits(adversarial), labels)


def pgd(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """The images that PGD finds."""
    with net.attacked() as model:
        return net.attack(model, images, labels, noise)


def one_step(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """One step of 1.25 eps from a random start (Wong et al. 2020, arXiv 2001.03994)."""
    with net.attacked() as model:
        return net.attack(model, images, labels, noise, steps=1, step_size=1.25 * net.threat.radius)


def diverging(net: Net, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """The images whose predictions PGD moves furthest from the clean ones (Zhang et al. 2019, arXiv 1901.08573)."""
    with net.attacked() as model:  # not under no_grad: tensors cached there would have no gradient
        clean = F.softmax(net.logits(images, model), dim=1).detach()
        start = images + 0.001 * torch.empty_like(images).normal_(generator=noise)
        return net.attack(model, images, clean, noise, loss=_divergence, start=start.clamp(0, 1))


def trades(net: Net, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Clean cross-entropy and beta times the divergence under attack (Zhang et al. 2019, arXiv 1901.08573, eq. 5)."""
    logits = net.logits(images)
    robust = _divergence(net.logits(adversarial), F.softmax(logits, dim=1))
    return F.cross_entropy(logits, labels) + net.recipe.beta * robust


def _divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), the batch mean."""
    return F.kl_div(F.log_softmax(logits, dim=1), probabilities, reduction="batchmean")


OBJECTIVES: dict[str, Objective] = {
    "pgd": Objective(pgd, cross_entropy, lambda steps: 3 * steps, 3),
    "trades": Objective(diverging, trades, lambda steps: 1 + 3 * steps, 6, clean=True),
    "fgsm-rs": Objective(one_step, cross_entropy, lambda steps: 3, 3),
}
