"""The net in float64, which shows what float32's range and rounding would hide from attacks and counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.bench.errors import Refused

LARGEST, LARGEST_LOGIT = 1e12, 1e6  # sensible in float32: weights and hidden values; logits
ROUNDED = 1e-3  # of the gap from the first to the third logit; trained nets of the digits stay below 1e-4
_USUAL = 8.0  # the approximate gap after scaling, where attacks see a net in float64


@dataclass(frozen=True)
class Sizes:
    """The largest absolute value among a net's parameters and buffers, its layers' outputs, and its logits."""

    weight: float
    hidden: float
    logit: float

    @property
    def excess(self) -> float:
        """The largest of the three relative to its limit; above 1, the net exceeds float32's sensible range."""
        found = max(self.weight / LARGEST, self.hidden / LARGEST, self.logit / LARGEST_LOGIT)
        return float(f"{found:.3g}") if math.isfinite(found) else math.inf


class Wide:
    """A net in float64, with the same weights.

    Attacks call it in place of a net whose values are too large for float32. It returns the logits minus their mean,
    times a power of two that brings them to a usual size. Neither changes which class is the largest.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).double().requires_grad_(False)
        self.scale = 1.0

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) in float64 of `images`, float32 (n, c, h, w). Raises Refused if it cannot run."""
        try:
            found: Tensor = self.net(images.double())
        except RuntimeError as error:  # a zoo's net; prunebench's own run in any dtype
            raise Refused(
                "float64",
                f"The net does not run in float64 ({error}), which its float32 answers are compared with; choose "
                "another net.",
            ) from None
        return found

    def __call__(self, images: Tensor) -> Tensor:
        """The logits in float32, minus their mean and scaled."""
        logits = self.logits(images)
        return ((logits - logits.mean(1, keepdim=True)) * self.scale).float()

    def differs(self, shape: Sequence[int]) -> bool:
        """Whether custom kernels run for images of this shape: never."""
        return False

    def bits(self, shape: Sequence[int]) -> str:
        """What decides the exact bits, besides torch."""
        return "float64"

    @torch.no_grad()
    def look(self, images: Tensor) -> Sizes:
        """The sizes of the net's values on `images`; also sets the scale from them."""
        hidden = [0.0]

        def note(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                hidden.append(_largest(output))

        leaves = [module for module in self.net.modules() if not any(module.children())]
        hooks = [module.register_forward_hook(note) for module in leaves]
        try:
            logits = self.logits(images)
        finally:
            for hook in hooks:
                hook.remove()
        gap = float(gaps(logits).median())
        if math.isfinite(gap) and gap > 0:
            self.scale = 2.0 ** round(math.log2(_USUAL / gap))
        weights = [_largest(value) for value in self.net.state_dict().values() if value.is_floating_point()]
        return Sizes(max([0.0, *weights]), max(hidden), _largest(logits))


def _largest(values: Tensor) -> float:
    """The largest absolute value; infinite if any value is not finite, 0 if there are none."""
    largest = float(values.abs().amax()) if values.numel() else 0.0
    return largest if math.isfinite(largest) else math.inf


def gaps(logits: Tensor) -> Tensor:
    """How far the largest logit is above the third (of two classes, the second): (n,)."""
    ordered = logits.topk(min(3, logits.shape[1]), dim=1).values
    return ordered[:, 0] - ordered[:, -1]


def unheld(narrow: Tensor, wide: Tensor) -> Tensor:
    """Where float32 does not represent the logits accurately: bool (n,).

    `narrow`, `wide`: the logits (n, classes) in float32 and float64. They are accurate if all differ by the same
    amount, to within ROUNDED of the gap from first to third. That gap remains wide for an image near a boundary.
    """
    off = narrow.double() - wide
    return ~(off.amax(1) - off.amin(1) <= ROUNDED * gaps(wide))


def undecided(logits: Tensor) -> Tensor:
    """Where two logits tie for the largest: bool (n,)."""
    first = logits.topk(min(2, logits.shape[1]), dim=1).values
    return first[:, 0] == first[:, -1]
