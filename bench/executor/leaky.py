"""Leaky gradients on torch: units that are off pass a share of their gradient, while all values stay the same.

Backward pass differentiable approximation (Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 4.1), with a leaky
ReLU as the approximation of the ReLU. A ReLU is the maximum of its input and 0, so max pooling is treated alike: values
that are not the maximum of their window pass the same share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_POOLS = (F.max_pool2d, torch.max_pool2d)


class Leaky(TorchFunctionMode):
    """While active, the gradients of ReLU and max pooling leak; `leak` in [0, 1]."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = leak

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `function`, with the gradient replaced if it is a ReLU or max pooling."""
        kwargs = kwargs or {}
        if not self.leak or not torch.is_grad_enabled() or function not in _RELUS + _POOLS:
            return function(*args, **kwargs)
        values = args[0] if args else kwargs["input"]
        if function in _RELUS:
            return _through(torch.relu(values), values, self.leak)
        options = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"), args[1:], strict=False))
        options |= {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
        return _through(function(*args, **kwargs), _summed(values, **options), self.leak)


def _through(value: Tensor, beside: Tensor, leak: float) -> Tensor:
    """`value`, with the gradient of (1 - leak) * value + leak * beside."""
    found: Tensor = _Through.apply(value, beside, leak)
    return found


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, beside: Tensor, leak: float) -> Tensor:
        ctx.leak = leak
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        return (1 - ctx.leak) * gradient, ctx.leak * gradient, None


def _summed(
    values: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The sum of each window that max pooling with these options looks at; only its gradient is used."""
    if dilation not in (1, (1, 1), [1, 1]):  # sums have no dilation; the gradient of the maximum is used alone
        return F.max_pool2d(values, kernel_size, stride, padding, dilation, ceil_mode)
    return F.avg_pool2d(values, kernel_size, stride or None, padding, ceil_mode, True, 1)
