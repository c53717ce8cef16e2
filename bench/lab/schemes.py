"""Schemes: how a training departs from plain descent under fixed masks. A pruner may bring its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

from torch import Tensor, nn

from prunebench.bench.data import Split
from prunebench.bench.lab.objectives import Net
from prunebench.bench.mask import Masks, State, attach_scores


class Running(Net, Interface):
    """A scheme's view of a net in training."""

    model: nn.Module
    masks: Masks  # those in force; replace them with `remask`
    held: State  # the scheme's own tensors; a resumed training finds them as they were
    steps: int  # steps done since the training began, also across epochs
    progress: float  # the position in the schedule, in [0, 1), of the step in progress

    def remask(self, masks: Masks) -> None:
        """Train under `masks` from now on: pruned weights are zero, and weights that enter have no momentum."""

    def validate(self, part: Split, seed: int) -> dict[str, float]:
        """Clean and PGD accuracy of the averaged net on up to 1,000 images, in [0, 1], as "clean" and "robust"."""


class Scheme:
    """Plain training: descent on the loss under fixed masks. A scheme overrides the moments that it changes.

    It must be deterministic, and keep whatever changes during a training in `held`, in the net, or in the masks.
    """

    gradients = 1  # of the loss per step; the images are attacked once

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything that the result depends on, JSON values and dicts of tensors: the scheme's fields."""
        return dict(vars(self))

    def check(self) -> None:
        """Raise PrunebenchError if the training cannot succeed; not called in rehearsals, which train nothing."""

    def attach(self, net: nn.Module) -> None:
        """Prepare a fresh net before training: parametrise its weights, or freeze them."""

    def begin(self, net: nn.Module) -> State:
        """The initial `held` tensors, from the prepared net."""
        return {}

    def penalty(self, run: Running) -> Tensor | None:
        """A term to add to the loss of each step, a scalar with a gradient."""
        return None

    def after_gradient(self, run: Running, again: Callable[[], Tensor]) -> None:
        """Called when the gradients are known; `again()` computes them anew, at the net's present parameters."""

    def after_step(self, run: Running) -> None:
        """Called after the descent, while the step's gradients, of pruned weights too, are in `weight.grad`."""

    def after_epoch(self, run: Running) -> None:
        """Called after the last step of each epoch, before any validation."""

    def extra_passes(self, epochs: int, steps: int, images: int) -> int:
        """Sample passes that the scheme spends beside the loss and its attack, in a training of that length."""
        return 0


PLAIN = Scheme()


@dataclass(frozen=True)
class Scores(Scheme):
    """Trains only `scores`, through the masks of the `keeps[name]` largest |scores| in each layer."""

    scores: State
    keeps: Mapping[str, int]

    def attach(self, net: nn.Module) -> None:
        """Make the net use its weights under the masks of the largest scores; freeze everything else."""
        attach_scores(net, self.scores, self.keeps)
