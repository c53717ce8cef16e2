"""Twin-Rep: every weight is trained as the product of two, which decay drives towards few large products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schemes import Running, Scheme
from prunebench.bench.mask import State, keep_largest, masked, shuffled
from prunebench.bench.models import prunable

SPLITS = ("one", "root")


@dataclass(frozen=True)
class TwinRep:
    """Adversarial training of W = A * B, entry by entry, a global cut of the smallest |A * B|, fine-tuning of W.

    Li et al. 2023, "Learning Adversarially Robust Sparse Networks via Weight Reparameterization" (AAAI). Both factors
    decay. Since A^2 + B^2 >= 2 |AB|, decay acts on balanced factors as an L1 norm on W, and the gradients B g and A g
    grow with the weight: small products fade, large ones grow. The published code draws B at random, cuts after a tenth
    of its epochs, and trains both factors under the mask to the end. Here, to begin and to end like the other methods,
    the factors start so that A * B is the common initialisation, and their averages are multiplied before the cut;
    then W alone is trained, with a schedule of its own.

    `twins`: the share of the budget for the factors, in (0, 1); the rest is for fine-tuning. `split`: "one", A = w and
    B = 1, whose first steps are nearly those of plain training, or "root", A = sign(w) sqrt|w| and B = sqrt|w|, which
    are balanced. `decay`: decay of the factors beyond the protocol's, as a multiple of it. `rate`, `lr`: peak learning
    rates of the factors and of the fine-tuning as multiples of the protocol's. `shuffle`: permute the kept positions
    within each layer after the cut.
    """

    twins: float = 0.5
    split: str = "one"
    decay: float = 0.0
    rate: float = 1.0
    lr: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.twins < 1:
            raise ValueError(f"twins = {self.twins} must be in (0, 1)")
        if self.split not in SPLITS:
            raise ValueError(f"split = {self.split!r} must be one of {', '.join(SPLITS)}")
        if not (self.decay >= 0 and self.rate > 0 and self.lr > 0):
            raise ValueError(f"decay = {self.decay} must be at least 0, rate = {self.rate} and lr = {self.lr} above 0")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Train the factors, multiply, cut, fine-tune."""
        recipe, epochs = lab.protocol.training, max(1, round(self.twins * lab.epochs))
        if epochs >= lab.epochs:
            raise PrunebenchError(
                f"Of {lab.epochs} epochs twin-rep would spend {epochs} on the factors and none on fine-tuning; raise "
                "the epochs or lower twins."
            )
        scheme = Twins(self.split, self.decay * recipe.weight_decay)
        state = lab.fit("twins", lab.initial(), epochs=epochs, lr=self.rate * recipe.lr, scheme=scheme).weights
        state = multiplied(state)
        masks = keep_largest({name: state[name].abs() for name in lab.shapes}, lab.keep)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        start, left, lr = masked(state, masks), lab.epochs - epochs, self.lr * recipe.lr
        return lab.fit("fine-tune", start, epochs=left, masks=masks, lr=lr).weights


class _Product(nn.Module):
    """A parametrisation: the weight times its twin."""

    def __init__(self, twin: Tensor) -> None:
        super().__init__()
        self.twin = nn.Parameter(twin)

    def forward(self, weight: Tensor) -> Tensor:
        """`weight`: same shape as the twin."""
        return weight * self.twin


_TWIN, _WEIGHT = ".parametrizations.weight.0.twin", ".parametrizations.weight.original"


@dataclass(frozen=True)
class Twins(Scheme):
    """Trains each weight as a product A * B of two factors, with the decay `decay` of both beside the recipe's."""

    split: str
    decay: float

    def attach(self, net: nn.Module) -> None:
        """Put the factors in place of the weights."""
        for name, weight in prunable(net).items():
            module, root = net.get_submodule(name.removesuffix(".weight")), weight.detach().abs().sqrt()
            twin = root if self.split == "root" else torch.ones_like(root)
            if self.split == "root":
                weight.data = weight.detach().sign() * root
            parametrize.register_parametrization(module, "weight", _Product(twin))

    def penalty(self, run: Running) -> Tensor | None:
        """decay / 2 (|A|^2 + |B|^2) over all factors."""
        if not self.decay:
            return None
        factors = [p for name, p in run.model.named_parameters() if name.endswith((_TWIN[1:], _WEIGHT[1:]))]
        return self.decay / 2 * torch.stack([factor.square().sum() for factor in factors]).sum()


def multiplied(state: State) -> State:
    """The plain state dict of a net with factors in place of its weights."""
    twins = {name.removesuffix(_TWIN): tensor for name, tensor in state.items() if name.endswith(_TWIN)}
    plain = {name.replace(_WEIGHT, ".weight"): t for name, t in state.items() if not name.endswith(_TWIN)}
    return plain | {f"{layer}.weight": plain[f"{layer}.weight"] * twin for layer, twin in twins.items()}
