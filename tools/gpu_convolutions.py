"""How fast a device convolves, by arithmetic and memory layout: which of them a net should take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench.datasets import Info
from prunebench.bench.models import build

ARITHMETICS = ("float32", "TF32", "bfloat16")
REPEATS = 5


def convolutions(arch: str, info: Info, batch: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of a forward and image gradient of every convolution of a net, by arithmetic and memory layout."""
    where, table = torch.device(device), dict[str, dict[str, float]]()
    shapes = _inputs(build(arch, info=info), info.shape, batch)
    for arithmetic in ARITHMETICS:
        table[arithmetic] = {}
        for name, layout in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
            with _in(arithmetic):
                taken = sum(_seconds(conv, shape, where, arithmetic, layout) for conv, shape in shapes)
            table[arithmetic][name] = round(1e3 * taken, 3)
    return table


def _inputs(net: nn.Module, shape: tuple[int, ...], batch: int) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """The convolutions of `net`, with the shapes of their inputs in a batch."""
    found: list[tuple[nn.Conv2d, tuple[int, ...]]] = []
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        each.register_forward_pre_hook(lambda conv, inputs: found.append((conv, inputs[0].shape)))
        for each in convolutions
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return [(conv, (batch, *seen[1:])) for conv, seen in found]


@contextmanager
def _in(arithmetic: str) -> Iterator[None]:
    """Convolutions of float32 in this arithmetic, by the fastest of cuDNN's engines."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = arithmetic == "TF32", True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def _seconds(
    conv: nn.Conv2d, shape: tuple[int, ...], device: torch.device, arithmetic: str, layout: torch.memory_format
) -> float:
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    weight = conv.weight.detach().to(device, dtype).contiguous(memory_format=layout)
    images = torch.rand(shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    options: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)  # tuples, which torch types as lists

    def once() -> Tensor:
        return torch.autograd.grad(torch.nn.functional.conv2d(images, weight, None, *options).sum(), images)[0]

    return min(timed(once, device) for _ in range(REPEATS))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until `work` is done, also on a card."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
