"""A segment of a net that runs on a card's kernels, with the gradient of its inputs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor.card.arena import buffers_of, pixels
from prunebench.bench.executor.card.launches import Convolution, Memory, Pooling
from prunebench.bench.executor.card.tiles import TILES, Tiles
from prunebench.bench.executor.jobs import Bits, Job, Plan
from prunebench.bench.executor.layers import Segment
from prunebench.bench.executor.lower import lower
from prunebench.bench.executor.packing import CONV, GROUP, LOAD, STORE
from prunebench.bench.executor.piece import SparsePiece, check_saved, images_in

_LARGEST = 2**31 - 1  # offsets are 32 bits wide


class OnCard(SparsePiece):
    """The segment on Triton kernels; values lie on `device`. `leak`: see `executor.fast`."""

    def __init__(self, segment: Segment, leak: float = 0.0, *, device: torch.device) -> None:
        super().__init__(segment)
        self._device = device
        lowered = lower(segment, leak)
        starts, self._pixels = _places(lowered.forward)
        self.programs = tuple(Launched(plan, starts, TILES, device) for plan in (lowered.forward, lowered.backward))
        self._largest = max(self._pixels, *(program.largest for program in self.programs))
        if not self.refresh():
            raise ValueError("the pattern leaves out weights that are not zero")

    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """Write the weights and biases into the tables of both programs."""
        values, added = ({layer: each.to(self._device) for layer, each in given.items()} for given in (weights, biases))
        for program in self.programs:
            program.fill(values, added)

    def forward(self, values: tuple[Tensor, ...], *, save: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The outputs, and if `save`, what the backward pass needs."""
        images = images_in(values, self.before)
        size = self._bytes(images)
        saved = torch.empty(size, dtype=torch.int8, device=self._device) if save else None
        return self._run(self.programs[0], values, self.after, saved), saved

    def backward(self, gradients: tuple[Tensor, ...], saved: Tensor) -> tuple[Tensor, ...]:
        """The input gradients, from the output gradients."""
        images = images_in(gradients, self.after)
        check_saved(saved, self._bytes(images), images)
        return self._run(self.programs[1], gradients, self.before, saved)

    def _run(
        self, program: Launched, values: tuple[Tensor, ...], shapes: list[tuple[int, ...]], saved: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The results of `program`, of as many images at a time as its kernels can count."""
        if not (each := _LARGEST // self._largest // GROUP * GROUP):
            raise PrunebenchError(
                f"A value of {self._largest} pixels per image is too large for the sparse kernels of a card, which "
                f"count {GROUP} images of at most {_LARGEST // GROUP} pixels; call the net itself."
            )
        parts = list(zip(*(value.split(each) for value in values), strict=True))
        kept = [None] * len(parts) if saved is None else saved.split(self._bytes(each))
        found = [program.run(part, shapes, piece) for part, piece in zip(parts, kept, strict=True)]
        return found[0] if len(found) == 1 else tuple(map(torch.cat, zip(*found, strict=True)))

    def _bytes(self, images: int) -> int:
        """Bytes saved for the backward pass: one for each image of a group, at each pixel of a ReLU or a pool."""
        return max(self._pixels, 1) * -(-images // GROUP) * GROUP


class Launched:
    """A plan as launches in order, from values to values. `largest`: pixels of the largest tensor."""

    def __init__(self, plan: Plan, starts: Mapping[Bits, int], tiles: Tiles, device: torch.device) -> None:
        self._plan, self._where, self._device = plan, buffers_of(plan), device
        self.largest = max(pixels(tensor) for tensor in plan.tensors)
        self.steps: list[Job | Convolution | Pooling] = []
        for job in plan.jobs:
            if job.kind in (LOAD, STORE):
                self.steps.append(job)
            elif job.kind == CONV:
                phases = [phase for phase in job.phases if phase.extent[0] and phase.extent[1]]
                self.steps += [Convolution(plan, job, phase, self._where, starts, tiles, device) for phase in phases]
            else:
                self.steps.append(Pooling(plan, job, self._where, starts, tiles))
        self._idle: dict[tuple[int, int], list[list[Tensor]]] = {}  # unused buffers, by images and stream
        self._lock = threading.Lock()

    def fill(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]) -> None:
        """Write the current weights and biases, by layer."""
        for step in self.steps:
            if not isinstance(step, Job):
                step.fill(weights, biases)

    def run(
        self, values: tuple[Tensor, ...], shapes: list[tuple[int, ...]], saved: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The results, in `shapes` per image, all in new memory."""
        images, found = len(values[0]), dict[int, Tensor]()
        padded = -(-images // GROUP) * GROUP
        on_card = self._device.type == "cuda"
        key = padded, torch.cuda.current_stream(self._device).cuda_stream if on_card else 0
        memory = Memory(self._borrow(key), saved, padded)
        with torch.cuda.device(self._device) if on_card else nullcontext():
            for step in self.steps:
                if not isinstance(step, Job):
                    step.run(memory)
                elif step.kind == LOAD:
                    self._load(step, memory, values[step.port])
                else:
                    found[step.port] = self._stored(step, memory, images).view(images, *shapes[step.port])
        with self._lock:
            self._idle.setdefault(key, []).append(memory.buffers)
        return tuple(found[port] for port in range(len(shapes)))

    def _load(self, job: Job, memory: Memory, value: Tensor) -> None:
        """Copy images into a buffer, image by image innermost; those that fill the last group are zero."""
        images, form = len(value), self._plan.tensors[job.target]
        inside = self._where.inside(memory.buffers, job.target, form, memory.images)
        scaled = _scaled(job, value.detach().reshape(images, *form.shape), forth=True)
        inside[..., :images] = scaled.permute(1, 2, 3, 0)
        inside[..., images:] = 0.0

    def _stored(self, job: Job, memory: Memory, images: int) -> Tensor:
        """A copy of what a buffer holds, image by image."""
        form = self._plan.tensors[job.source]
        inside = self._where.inside(memory.buffers, job.source, form, memory.images)
        value = _scaled(job, inside[..., :images].permute(3, 0, 1, 2), forth=False)
        return torch.empty(images, *form.shape, device=self._device).copy_(value)

    def _borrow(self, key: tuple[int, int]) -> list[Tensor]:
        """Buffers for so many images; those for other numbers of images are let go."""
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop()
            self._idle = {other: kept for other, kept in self._idle.items() if other[1] != key[1]}
        return self._where.allocate(key[0], self._device)


def _places(plan: Plan) -> tuple[dict[Bits, int], int]:
    """Where what a job saves begins, in pixels, and how many pixels are saved."""
    starts, size = dict[Bits, int](), 0
    for job in plan.jobs:
        if job.bits is not None:
            starts[job.bits] = size
            size += job.bits.size // job.bits.pixel
    return starts, size


def _scaled(job: Job, values: Tensor, *, forth: bool) -> Tensor:
    """Images as a net's first layer normalises them, or the gradient of what it was given."""
    if job.affine is None:
        return values
    mean, std = (torch.from_numpy(each).to(values.device).view(-1, 1, 1) for each in job.affine)
    return (values - mean) / std if forth else values / std
