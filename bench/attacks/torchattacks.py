"""Attacks from torchattacks as weak attacks: they propose, and the referee projects and measures as usual."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.protocol import Threat

PREFIX = "torchattacks:"
PRICE = 151  # sample passes, for the progress display; the true price is unknown, so PGD-50's


def peer(name: str) -> Listed:
    """The attack "torchattacks:NAME" (NAME as the package spells it: CW, MIFGSM, DeepFool) with the threat's eps.

    All other parameters are the package's defaults. Without an eps, as in CW, the referee projects proposals into the
    ball, as always. Raises PrunebenchError for an unknown name, or when torchattacks is not installed.
    """
    if not name.startswith(PREFIX):
        raise PrunebenchError(
            f"{name!r} is no measurement; write planted, distances, corruptions, other-norm, or {PREFIX}NAME for a "
            f"weak attack, such as {PREFIX}CW."
        )
    try:
        import torchattacks
    except ImportError:
        raise PrunebenchError(
            f"{name} needs the extra torchattacks; in a new environment and a checkout, pip install '.[torchattacks]'."
        ) from None
    base = torchattacks.attack.Attack
    known: dict[str, Any] = {
        key: value for key, value in vars(torchattacks).items() if isinstance(value, type) and issubclass(value, base)
    }
    short = name.removeprefix(PREFIX)
    if short not in known:
        raise unknown("attack of torchattacks", short, known)
    made = known[short]
    takes_eps = "eps" in inspect.signature(made).parameters

    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # it draws from the global state
            torch.manual_seed(generator.initial_seed())
            found = made(_Net(model, images), **({"eps": threat.radius} if takes_eps else {}))(images, labels)
        proposals: Tensor = found.detach()
        return proposals

    return Listed(attack, PRICE, exact=True)


class _Net(nn.Module):
    """A function wrapped as torchattacks expects nets: a module with a parameter that shows the device."""

    def __init__(self, model: Model, images: Tensor) -> None:
        super().__init__()
        self.model = model
        self.where = nn.Parameter(images.new_zeros(()), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)
