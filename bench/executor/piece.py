"""A segment of a net on sparse kernels, whatever they run on: a torch operator, differentiable once, in its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor.layers import Conv, Segment
from prunebench.bench.executor.reader import shape_of


class SparsePiece(ABC):
    """A callable from the values of `inputs` to those of `outputs`, each a tuple of float32 (n, ...) on one device.

    Several Python threads may call it at once, but not during a refresh.
    """

    def __init__(self, segment: Segment) -> None:
        self.inputs: list[fx.Node] = list(segment.inputs)
        self.outputs: list[fx.Node] = list(segment.outputs)
        self.before = [_shape(node) for node in self.inputs]
        self.after = [_shape(node) for node in self.outputs]
        self.version = 0  # how many times the weights were read
        self.segment = segment

    @abstractmethod
    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """Take over the current weights and biases, by layer; each layer's `weights` end in a 0."""

    @abstractmethod
    def forward(self, values: tuple[Tensor, ...], *, save: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs, and if `save`, what the backward pass needs."""

    @abstractmethod
    def backward(self, gradients: tuple[Tensor, ...], saved: Tensor) -> tuple[Tensor, ...]:
        """The input gradients, from the output gradients."""

    def refresh(self) -> bool:
        """Read the weights again; False, with nothing read, if a weight outside the pattern is no longer zero."""
        layers = {number: layer for number, layer in enumerate(self.segment.layers) if isinstance(layer, Conv)}
        found = {number: layer.weights.sparse() for number, layer in layers.items()}
        read = {number: pair for number, pair in found.items() if pair is not None}
        if len(read) < len(found):
            return False
        self.version += 1
        weights = {number: F.pad(weights, (0, 1)) for number, (weights, _) in read.items()}
        self.fill(weights, {number: bias for number, (_, bias) in read.items()})
        return True

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs, differentiable in the inputs where these require gradients."""
        if torch.is_grad_enabled() and any(value.requires_grad for value in values):
            return _Run.apply(self, *values)
        return self.forward(values, save=False)[0]


class _Run(torch.autograd.Function):
    """The segment as a torch operator."""

    @staticmethod
    def forward(ctx: Any, piece: SparsePiece, *values: Tensor) -> tuple[Tensor, ...]:
        outputs, saved = piece.forward(values, save=True)
        ctx.piece, ctx.version = piece, piece.version
        ctx.save_for_backward(saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.piece.version != ctx.version:
            raise RuntimeError("The weights were read again between a forward pass and its gradient.")
        (saved,) = ctx.saved_tensors
        return None, *ctx.piece.backward(gradients, saved)


def images_in(values: tuple[Tensor, ...], shapes: list[tuple[int, ...]]) -> int:
    """The number of images in `values`, whose shapes are checked: kernels would read past the end of smaller ones."""
    images = len(values[0])
    for value, shape in zip(values, shapes, strict=True):
        if value.shape != (images, *shape):
            raise PrunebenchError(
                f"A value has the shape {tuple(value.shape)} where the plan has {(images, *shape)}, one image per row: "
                "the net mixes its images, so call the net itself."
            )
    return images


def check_saved(saved: Tensor, expected: int, images: int) -> None:
    """Raise PrunebenchError unless `saved` has the `expected` length, that of `images` images."""
    if len(saved) != expected:
        raise PrunebenchError(f"The gradients are for {images} images, but the outputs were for another number.")


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = shape_of(node)
    if shape is None:
        raise ValueError(f"{node} has no shape")
    return shape
