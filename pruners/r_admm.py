"""R-ADMM: adversarial training is drawn towards its own pruned copy, so that the cut takes little away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schemes import Running, Scheme
from prunebench.bench.mask import (
    LAYERS,
    Masks,
    State,
    keep_largest_by_layer,
    layer_counts,
    masked,
    refuse_empty_layers,
    shuffled,
)
from prunebench.bench.models import prunable

LEAST = 2  # epochs of the middle stage, each of which projects once


@dataclass(frozen=True)
class RADMM:
    """Dense adversarial training, then ADMM towards a net with few weights, a cut, fine-tuning under the mask.

    Ye et al. 2019, arXiv 1903.12561. The middle stage trains W on the adversarial loss plus rho / 2 |W - Z + U|^2.
    After each epoch, Z becomes the projection of W + U onto nets with the allowed numbers of weights, which keeps the
    largest of W + U, and U grows by W - Z. The cut is the same projection of W. The published code projects and cuts
    each layer by itself, all by one share ("uniform"); our default is one threshold for all layers, as in `magnitude`.
    Our reading: Z starts as the projection of W and U as 0; momentum and cosine schedule start anew with each stage;
    the averaged weights are cut.

    `dense`, `admm`: shares of the budget, `dense` may be 0; the rest is for fine-tuning. `rho`: strength of the pull;
    with 0 nothing pulls, which leaves magnitude pruning after two dense stages. `layers`: how the kept weights are
    divided among the layers, "global" (one threshold at each projection), "erk" or "uniform". `lr`: the peak learning
    rate of the fine-tuning as a multiple of the protocol's. `shuffle`: permute the kept positions within each layer
    after the cut.
    """

    dense: float = 0.25
    admm: float = 0.25
    rho: float = 0.01
    layers: str = "global"
    lr: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not (self.dense >= 0 and self.admm > 0 and self.dense + self.admm < 1):
            raise ValueError(f"dense = {self.dense} must be at least 0, admm = {self.admm} above 0, their sum below 1")
        if not (self.rho >= 0 and self.lr > 0):
            raise ValueError(f"rho = {self.rho} must be at least 0 and lr = {self.lr} above 0")
        if self.layers not in LAYERS:
            raise ValueError(f"layers = {self.layers!r} must be one of {', '.join(LAYERS)}")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Pretrain, train towards the projection, cut, fine-tune."""
        dense, admm = (round(share * lab.epochs) for share in (self.dense, self.admm))
        left = lab.epochs - dense - admm
        if admm < LEAST or left < 1:
            raise PrunebenchError(
                f"Of {lab.epochs} epochs r-admm would spend {dense} on the dense net, {admm} on ADMM and "
                f"{left} on fine-tuning; ADMM needs {LEAST} and fine-tuning 1: raise the epochs or change the shares."
            )
        refuse_empty_layers(self.layers, lab.shapes, lab.keep)
        state = lab.initial()
        if dense:
            state = lab.fit("dense", state, epochs=dense).weights
        state = lab.fit("admm", state, epochs=admm, scheme=ADMM(self.rho, self.layers, lab.keep)).weights
        masks = projection({name: state[name] for name in lab.shapes}, self.layers, lab.keep)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        start, lr = masked(state, masks), self.lr * lab.protocol.training.lr
        return lab.fit("fine-tune", start, epochs=left, masks=masks, lr=lr).weights


def projection(weights: State, layers: str, keep: int) -> Masks:
    """The masks of the nearest net with `keep` weights, divided among its layers by `layers` (see `layer_counts`).

    Raises PrunebenchError for weights that are NaN.
    """
    counts = layer_counts(layers, weights, keep)
    return keep_largest_by_layer({name: weight.abs() for name, weight in weights.items()}, counts)


@dataclass(frozen=True)
class ADMM(Scheme):
    """Adds rho / 2 |W - Z + U|^2 to the loss; holds Z and U, and updates both after each epoch."""

    rho: float
    layers: str
    keep: int

    def begin(self, net: nn.Module) -> State:
        """Z, the projection of the weights W, as "z/NAME", and U = 0 as "u/NAME"."""
        weights = {name: weight.detach() for name, weight in prunable(net).items()}
        z = masked(weights, projection(weights, self.layers, self.keep))
        return _held(z, {name: torch.zeros_like(weight) for name, weight in weights.items()})

    def penalty(self, run: Running) -> Tensor:
        """rho / 2 |W - Z + U|^2 over all prunable weights."""
        pulls = [w - run.held[f"z/{name}"] + run.held[f"u/{name}"] for name, w in prunable(run.model).items()]
        return self.rho / 2 * torch.stack([pull.square().sum() for pull in pulls]).sum()

    def after_epoch(self, run: Running) -> None:
        """Z = projection of W + U, then U += W - Z."""
        wanted = {n: w.detach() + run.held[f"u/{n}"] for n, w in prunable(run.model).items()}
        z = masked(wanted, projection(wanted, self.layers, self.keep))
        run.held |= _held(z, {name: wanted[name] - z[name] for name in z})


def _held(z: State, u: State) -> State:
    return {f"z/{name}": tensor for name, tensor in z.items()} | {f"u/{name}": tensor for name, tensor in u.items()}
