"""A layer's weights and biases: the current values of its modules with folded norms, under a fixed pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Fixed(NamedTuple):
    """The weight of a layer without a module: a copy, a norm or an average."""

    weight: Tensor
    bias: None = None


@dataclass(frozen=True)
class Pattern:
    """Which weights of a net are kept: nonzero weights and those in `masks`; all of a parameter without a mask.

    `masks` None: the weights that are nonzero now.
    """

    masks: Mapping[str, Tensor] | None = None

    def of(self, name: str, weight: Tensor) -> Tensor:
        """Which entries of the parameter `name` are kept, bool of its shape."""
        if self.masks is None:
            return weight != 0
        if name not in self.masks:
            return torch.ones_like(weight, dtype=torch.bool)
        return (weight != 0) | self.masks[name].to(weight.device)


@dataclass
class Weights:
    """A layer's weights in its module, of `shape` (outputs, inputs / groups, rows, cols), and the norms after it.

    `kept`: int64 (k,), the positions in the flat weight that may be nonzero, ascending.
    """

    source: nn.Conv2d | nn.Linear | Fixed
    shape: tuple[int, int, int, int]
    kept: Tensor
    norms: list[nn.BatchNorm2d] = field(default_factory=list)

    def sparse(self) -> tuple[Tensor, Tensor] | None:
        """The kept weights (k,) and biases (outputs,), folded in float64; None if another weight is no longer zero."""
        flat = self.source.weight.detach().flatten()
        values = flat[self.kept]
        if len(values) < len(flat) and flat.count_nonzero() != values.count_nonzero():
            return None
        scale, bias = self._folded()
        if self.norms:
            values = (values * scale[self.kept // (len(flat) // self.shape[0])]).float()
        return values, bias.float()

    def dense(self) -> tuple[Tensor, Tensor]:
        """All weights, in `shape`, and the biases, folded in float64."""
        weight, (scale, bias) = self.source.weight.detach().reshape(self.shape), self._folded()
        return (weight * scale.view(-1, 1, 1, 1)).float() if self.norms else weight, bias.float()

    def _folded(self) -> tuple[Tensor, Tensor]:
        """The factor that the norms apply to each output, and the final bias."""
        given, device = self.source.bias, self.source.weight.device
        scale = torch.ones(self.shape[0], dtype=torch.float64, device=device)
        bias = torch.zeros_like(scale) if given is None else given.detach().double()
        for norm in self.norms:
            assert norm.running_mean is not None and norm.running_var is not None
            factor = (norm.running_var.to(device).double() + norm.eps).rsqrt()
            factor = factor if norm.weight is None else factor * norm.weight.detach().to(device)
            scale, bias = scale * factor, (bias - norm.running_mean.to(device)) * factor
            bias = bias if norm.bias is None else bias + norm.bias.detach().to(device)
        return scale, bias
