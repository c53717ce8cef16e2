"""Surrogate gradients on torch: units that are off, or near their kink, pass other gradients; all values stay the same.

Backward pass differentiable approximation (Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 4.1). A ReLU is
the maximum of its input and 0, so max pooling is treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_POOLS = (F.max_pool2d, torch.max_pool2d)


@dataclass(frozen=True)
class Surrogate:
    """What attacks by gradient see in place of the gradient of ReLU and max pooling.

    `leak`, in [0, 1]: the share of the gradient that passes a ReLU that is off, and values that are not the maximum of
    their window. `soft`, at least 0: a ReLU has the slope of a softplus, sigmoid(x / (soft * spread)), where `spread`
    is the unit's standard deviation over the images of the batch; windows pass the gradient of their mean.
    """

    leak: float = 0.0
    soft: float = 0.0


OWN = Surrogate()  # the net's own gradient


class Replaced(TorchFunctionMode):
    """While active, the gradients of ReLU and max pooling are those of `surrogate`."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `function`, with the gradient replaced if it is a ReLU or max pooling."""
        kwargs, leak, soft = kwargs or {}, self.surrogate.leak, self.surrogate.soft
        if self.surrogate == OWN or not torch.is_grad_enabled() or function not in _RELUS + _POOLS:
            return function(*args, **kwargs)
        values = args[0] if args else kwargs["input"]
        if function in _RELUS:
            if function in (F.relu_, torch.relu_, Tensor.relu_) or kwargs.get("inplace") or args[1:] == (True,):
                values = values.clone()  # others that read the tensor find it changed, as they expect
                (args[0] if args else kwargs["input"]).relu_()
            slopes = _softened(values.detach(), soft) if soft else torch.where(values.detach() > 0, 1.0, leak)
            return _Sloped.apply(torch.relu(values), values, slopes)
        options = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"), args[1:], strict=False))
        options |= {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
        share = (1.0, _windows(values, **options, mean=True)) if soft else (leak, _windows(values, **options))
        return _Mixed.apply(function(*args, **kwargs), share[1], share[0])


class _Sloped(torch.autograd.Function):
    """`value`, with the gradient of `values` times `slopes`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, gradients[0] * ctx.saved_tensors[0], None


class _Mixed(torch.autograd.Function):
    """`value`, with the gradient of (1 - share) * value + share * beside."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, beside: Tensor, share: float) -> Tensor:
        ctx.share = share
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return (1 - ctx.share) * gradients[0], ctx.share * gradients[0], None


def _softened(values: Tensor, soft: float) -> Tensor:
    """The slopes of a softplus for a unit's inputs `values`, (n, units) or (n, channels, h, w)."""
    over = (0, *range(2, values.dim()))
    spread = values.std(over, correction=0, keepdim=True) if len(values) > 1 else values.abs().mean(over, keepdim=True)
    return torch.sigmoid(values / (soft * spread + 1e-30))


def _windows(
    values: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    mean: bool = False,
) -> Tensor:
    """The sum, or mean, of each window that max pooling with these options looks at; only its gradient is used."""
    if dilation not in (1, (1, 1), [1, 1]):  # sums have no dilation; the gradient of the maximum is used alone
        return F.max_pool2d(values, kernel_size, stride, padding, dilation, ceil_mode)
    return F.avg_pool2d(values, kernel_size, stride or None, padding, ceil_mode, True, None if mean else 1)
