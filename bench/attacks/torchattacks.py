"""Attacks of torchattacks as weak attacks of ours: they propose, and the referee projects and measures as ever."""

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
PRICE = 151  # sample passes, for the progress shown: nobody knows, so that of PGD-50


def peer(name: str) -> Listed:
    """The attack "torchattacks:NAME" (NAME as the package spells it: CW, MIFGSM, DeepFool) with the threat's eps.

    All other parameters are the package's defaults. An attack without an eps, such as CW, is brought into the ball by
    the referee, like any proposal. Raises PrunebenchError for another name and where torchattacks is not installed.
    """
    if not name.startswith(PREFIX):
        raise PrunebenchError(f"{name!r} is not an attack; write {PREFIX}NAME, for example {PREFIX}CW.")
    try:
        import torchattacks
    except ImportError:
        raise PrunebenchError(
            f"{name} needs the extra torchattacks, in its own environment: pip install 'prunebench[torchattacks]'."
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

    return Listed(attack, PRICE)


class _Net(nn.Module):
    """A function as torchattacks wants its nets: a module with a parameter that tells the device."""

    def __init__(self, model: Model, images: Tensor) -> None:
        super().__init__()
        self.model = model
        self.where = nn.Parameter(images.new_zeros(()), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)
