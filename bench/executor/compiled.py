"""A segment of a net that runs on the processor's kernels, with the gradient of its inputs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunebench.bench.executor import native
from prunebench.bench.executor.layers import Segment
from prunebench.bench.executor.lower import lower
from prunebench.bench.executor.packing import GROUP
from prunebench.bench.executor.piece import SparsePiece, check_saved, images_in
from prunebench.bench.executor.program import Program, pointers

_ALIGNED = 64  # bytes


class Compiled(SparsePiece):
    """The segment on C++ kernels; values lie on the CPU. `leak`: see `executor.fast`."""

    def __init__(self, segment: Segment, kernels: Any, leak: float = 0.0) -> None:
        super().__init__(segment)
        lowered = lower(segment, leak)
        self.programs = Program(lowered.forward), Program(lowered.backward)
        self.saved = lowered.saved  # bytes per group of images
        self._kernels = kernels
        self._enough = native.ENOUGH
        self._idle: dict[int, list[Tensor]] = {}  # unused arenas, by size
        self._lock = threading.Lock()
        if not self.refresh():
            raise ValueError("the pattern leaves out weights that are not zero")

    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """Write the weights and biases into the instructions of both programs."""
        values = {number: tensor.numpy() for number, tensor in weights.items()}
        for program in self.programs:
            program.fill(values, {number: bias.numpy() for number, bias in biases.items()})

    def forward(self, values: tuple[Tensor, ...], *, save: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs, and if `save`, what the backward pass needs."""
        images = images_in(values, self.before)
        saved = torch.empty(self._bytes(images), dtype=torch.uint8) if save else None
        outputs = tuple(torch.empty(images, *shape) for shape in self.after)
        self._execute(self.programs[0], values, outputs, saved)
        return outputs, saved

    def backward(self, gradients: tuple[Tensor, ...], saved: Tensor) -> tuple[Tensor, ...]:
        """The input gradients, from the output gradients."""
        images = images_in(gradients, self.after)
        check_saved(saved, self._bytes(images), images)
        found = tuple(torch.empty(images, *shape) for shape in self.before)
        self._execute(self.programs[1], gradients, found, saved)
        return found

    def _bytes(self, images: int) -> int:
        """Bytes saved for the backward pass, plus room for alignment."""
        return -(-images // GROUP) * self.saved + _ALIGNED

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
            self.saved,
            pointers([value.data_ptr() for value in plain]),
            pointers([value.data_ptr() for value in outputs]),
            images,
            threads,
            native.team(),
            self._enough,
        )
        with self._lock:
            self._idle.setdefault(len(arenas), []).append(arenas)

    def _borrow(self, floats: int) -> Tensor:
        size = floats + _ALIGNED // 4
        with self._lock:
            idle = self._idle.get(size)
            return idle.pop() if idle else torch.empty(size)


def _aligned(address: int) -> int:
    return -(-address // _ALIGNED) * _ALIGNED


def kernels() -> Any:
    """The library, None if there is none."""
    found = native.library()
    return None if isinstance(found, Exception) else found
