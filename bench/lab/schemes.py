"""Schemes: how a training departs from plain descent under fixed masks. A pruner may bring its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from prunebench.bench.data import Split
from prunebench.bench.lab.objectives import Net
from prunebench.bench.mask import Masks, State, attach_scores, refuse_nan


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

    @property
    def gradients(self) -> int:
        """Gradients of the loss per step; the images are attacked once."""
        return 1

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
    """Trains only `scores`, through the masks of the `keeps[name]` largest |scores| in each layer.

    `by_four`: the largest among those that `bench.mask.two_of_four` allows.
    With `rho` > 0, each step descends along the gradient found at the scores raised by `ascended`: sharpness-aware,
    as S2AP. The images stay those found against the unraised scores, and batch norm's statistics see those alone.
    """

    scores: State
    keeps: Mapping[str, int]
    rho: float = 0.0
    by_four: bool = False

    @property
    def gradients(self) -> int:
        """Two where the scores are raised."""
        return 2 if self.rho else 1

    def check(self) -> None:
        """Refuse scores that are NaN."""
        refuse_nan(self.scores)

    def attach(self, net: nn.Module) -> None:
        """Make the net use its weights under the masks of the largest scores; freeze everything else."""
        attach_scores(net, self.scores, self.keeps, by_four=self.by_four)

    def after_gradient(self, run: Running, again: Callable[[], Tensor]) -> None:
        """With `rho`: replace the gradients by those at the raised scores; the scores are as before."""
        if not self.rho:
            return
        scores = [p for name, p in run.model.named_parameters() if name.endswith(".scores")]
        before, buffers = [score.detach().clone() for score in scores], list(run.model.buffers())
        held = [buffer.clone() for buffer in buffers]
        with torch.no_grad():
            for score in scores:
                score.copy_(ascended(score, score.grad, self.rho))
        again()
        with torch.no_grad():
            for tensor, value in zip([*scores, *buffers], [*before, *held], strict=True):
                tensor.copy_(value)


def ascended(scores: Tensor, gradient: Tensor | None, rho: float) -> Tensor:
    """`scores` + rho * ||scores|| * gradient / ||gradient||, with the Euclidean norms of the layer.

    Within that distance, the scores of highest loss to first order. Unchanged where the gradient is None or zero.
    """
    if gradient is None or not gradient.any():
        return scores.detach()
    return scores.detach() + rho * scores.detach().norm() * gradient / gradient.norm()
