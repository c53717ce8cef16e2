"""A segment of a net that runs on the kernels, with the gradient of its inputs."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import native
from prunebench.bench.executor.layers import Conv, Segment
from prunebench.bench.executor.lower import lower
from prunebench.bench.executor.packing import GROUP
from prunebench.bench.executor.program import Program, pointers
from prunebench.bench.executor.reader import shape_of

_ALIGNED = 64  # bytes


class Compiled:
    """A callable from the values of `inputs` to those of `outputs`, each a tuple of (n, ...) float32 on the CPU.

    Several Python threads may call it at once, but not during a refresh. `leak`: see `executor.fast`.
    """

    def __init__(self, segment: Segment, kernels: Any, leak: float = 0.0) -> None:
        self.inputs: list[fx.Node] = list(segment.inputs)
        self.outputs: list[fx.Node] = list(segment.outputs)
        self._before = [_shape(node) for node in self.inputs]
        self._after = [_shape(node) for node in self.outputs]
        self._kernels, self._segment, self._lowered = kernels, segment, lower(segment, leak)
        self.version = 0  # how many times the weights were read
        self._idle: dict[int, list[Tensor]] = {}  # unused arenas, by size
        self._lock = threading.Lock()
        if not self.refresh():
            raise ValueError("the pattern leaves out weights that are not zero")

    def refresh(self) -> bool:
        """Read the weights again; False, with nothing read, if a weight outside the pattern is no longer zero."""
        layers = {number: layer for number, layer in enumerate(self._segment.layers) if isinstance(layer, Conv)}
        found = {number: layer.weights.sparse() for number, layer in layers.items()}
        read = {number: pair for number, pair in found.items() if pair is not None}
        if len(read) < len(found):
            return False
        self.version += 1
        self._lowered.fill(
            {number: F.pad(weights, (0, 1)).numpy() for number, (weights, _) in read.items()},
            {number: bias.numpy() for number, (_, bias) in read.items()},
        )
        return True

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs, differentiable in the inputs where these require gradients."""
        if torch.is_grad_enabled() and any(value.requires_grad for value in values):
            return _Run.apply(self, *values)
        return self.forward(values, save=False)[0]

    def forward(self, values: tuple[Tensor, ...], *, save: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs, and if `save`, what the backward pass needs."""
        images = _images(values, self._before)
        saved = torch.empty(self._bytes(images), dtype=torch.uint8) if save else None
        outputs = tuple(torch.empty(images, *shape) for shape in self._after)
        self._execute(self._lowered.forward, values, outputs, saved)
        return outputs, saved

    def backward(self, gradients: tuple[Tensor, ...], saved: Tensor) -> tuple[Tensor, ...]:
        """The input gradients, from the output gradients."""
        images = _images(gradients, self._after)
        if len(saved) != self._bytes(images):
            raise PrunebenchError(f"The gradients are for {images} images, but the outputs were for another number.")
        found = tuple(torch.empty(images, *shape) for shape in self._before)
        self._execute(self._lowered.backward, gradients, found, saved)
        return found

    def _bytes(self, images: int) -> int:
        """Bytes saved for the backward pass, plus room for alignment."""
        return -(-images // GROUP) * self._lowered.saved + _ALIGNED

    def _execute(
        self, program: Program, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], saved: Tensor | None
    ) -> None:
        images = len(inputs[0])
        threads = torch.get_num_threads()
        plain = [value.detach().to(torch.float32).contiguous() for value in inputs]
        arenas = self._borrow(threads * program.arena)
        self._kernels.execute(
            program.instructions,
            len(program.instructions),
            _aligned(arenas.data_ptr()),
            program.arena,
            None if saved is None else _aligned(saved.data_ptr()),
            self._lowered.saved,
            pointers([value.data_ptr() for value in plain]),
            pointers([value.data_ptr() for value in outputs]),
            images,
            threads,
            native.team(),
        )
        with self._lock:
            self._idle.setdefault(len(arenas), []).append(arenas)

    def _borrow(self, floats: int) -> Tensor:
        size = floats + _ALIGNED // 4
        with self._lock:
            idle = self._idle.get(size)
            return idle.pop() if idle else torch.empty(size)


class _Run(torch.autograd.Function):
    """The segment as a torch operator, differentiable once, in its inputs."""

    @staticmethod
    def forward(ctx: Any, segment: Compiled, *values: Tensor) -> tuple[Tensor, ...]:
        outputs, saved = segment.forward(values, save=True)
        ctx.segment, ctx.version = segment, segment.version
        ctx.save_for_backward(saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.segment.version != ctx.version:
            raise RuntimeError("The weights were read again between a forward pass and its gradient.")
        (saved,) = ctx.saved_tensors
        return None, *ctx.segment.backward(gradients, saved)


def _images(values: tuple[Tensor, ...], shapes: list[tuple[int, ...]]) -> int:
    """The number of images in `values`, whose shapes are checked: kernels would read past the end of smaller ones."""
    images = len(values[0])
    for value, shape in zip(values, shapes, strict=True):
        if value.shape != (images, *shape):
            raise PrunebenchError(
                f"A value has the shape {tuple(value.shape)} where the plan has {(images, *shape)}, one image per row: "
                "the net mixes its images, so call the net itself."
            )
    return images


def _aligned(address: int) -> int:
    return -(-address // _ALIGNED) * _ALIGNED


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = shape_of(node)
    if shape is None:
        raise ValueError(f"{node} has no shape")
    return shape


def kernels() -> Any:
    """The library, None if there is none."""
    found = native.library()
    return None if isinstance(found, Exception) else found
