"""Arithmetics of tensor cores, emulated on the CPU: operands of convolutions and matrix products are rounded.

A `Rounded` context rounds the operands of every product below it, forward and backward, and sums in float32. TF32 has
10 explicit mantissa bits. NVIDIA's conversion rounds to the nearest, ties away from zero (PTX `cvt.rna.tf32.f32`);
tensor cores that are given float32 read its first 10 bits, which truncates. bf16x3 splits an operand into two bfloat16
numbers and adds three of the four products (Henry, Tang & Heinecke 2019, arXiv 1904.06376).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunebench.bench.score.arithmetic import Arithmetic

Rounding = Callable[[Tensor], Tensor]  # float32 to float32 of the same shape
Terms = Sequence[tuple[Rounding, Rounding]]  # a product is the sum of these products of rounded operands

_KEPT = ~0x1FFF  # all but the last 13 of float32's 23 explicit mantissa bits
_HALF = 0x1000  # half a unit of the last bit that TF32 keeps
_OPS = torch.ops.aten
_OPERANDS = {  # of each product: its two operands, and what is added to it once
    _OPS.convolution.default: (0, 1, 2),
    _OPS.convolution_backward.default: (0, 2, None),
    _OPS.mm.default: (0, 1, None),
    _OPS.bmm.default: (0, 1, None),
    _OPS.addmm.default: (1, 2, 0),
    _OPS.baddbmm.default: (1, 2, 0),
}


def nearest_tf32(values: Tensor) -> Tensor:
    """`values`, float32, rounded to TF32: to the nearest, ties away from zero; what is not finite stays."""
    rounded = ((values.view(torch.int32) + _HALF) & _KEPT).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


def truncated_tf32(values: Tensor) -> Tensor:
    """`values`, float32, cut off after TF32's 10 mantissa bits; what is not finite stays."""
    return torch.where(values.isfinite(), (values.view(torch.int32) & _KEPT).view(torch.float32), values)


def high_bf16(values: Tensor) -> Tensor:
    """`values`, float32, rounded to bfloat16's 7 mantissa bits, ties to even."""
    return values.bfloat16().float()


def low_bf16(values: Tensor) -> Tensor:
    """What `high_bf16` leaves of `values`, itself rounded to bfloat16."""
    return high_bf16(values - high_bf16(values))


NEAREST: Terms = [(nearest_tf32, nearest_tf32)]
TRUNCATED: Terms = [(truncated_tf32, truncated_tf32)]
BF16X3: Terms = [(high_bf16, high_bf16), (high_bf16, low_bf16), (low_bf16, high_bf16)]


class Rounded(TorchDispatchMode):
    """While active, products of float32 tensors are the sum of `terms`. Gradients of weights are refused."""

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self.terms = terms

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, with its operands rounded if it is a product."""
        kwargs = kwargs or {}
        if func not in _OPERANDS or args[_OPERANDS[func][0]].dtype != torch.float32:
            return func(*args, **kwargs)
        left, right, added = _OPERANDS[func]
        backward = func is _OPS.convolution_backward.default
        if backward and any(args[-1][1:]):
            raise ValueError("Only gradients of images are emulated, not those of weights; freeze the parameters.")
        total: Tensor | None = None
        for one, other in self.terms:
            given = list(args)
            given[left], given[right] = one(args[left]), other(args[right])
            if added is not None and total is not None and args[added] is not None:
                given[added] = torch.zeros_like(args[added])
            found = func(*given, **kwargs)
            found = found[0] if backward else found
            total = found if total is None else total + found
        return (total, None, None) if backward else total


def emulated(terms: Terms, *, repairs: bool) -> Arithmetic:
    """An arithmetic with products of these terms, for the CPU and the plain net: kernels of the executor bypass it.

    Records call it "tf32", whatever its terms.
    """

    @contextmanager
    def active() -> Iterator[None]:
        with Rounded(terms):
            yield

    return Arithmetic("tf32", active, repairs)
