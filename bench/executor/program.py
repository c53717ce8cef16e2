"""A program for the processor's kernels: a plan's tensors in an arena, and instructions on them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.executor.jobs import Job, Plan, Tensor
from prunebench.bench.executor.native import PITCHES, Instruction
from prunebench.bench.executor.packing import CONV, DENSE, FRAME, GROUP, LOAD, STORE, UNPOOL, Phase, pack

_ONE = np.array([1, 0], np.float32)  # the weight of a copy, and the zero after it


class Program:
    """The instructions made from a plan whose tensors have frames, then their weights, rewritten whenever these change.

    `arena`: floats needed per thread. `fill` writes the weights.
    """

    def __init__(self, plan: Plan) -> None:
        self.leak, self.tensors, self.jobs = plan.leak, plan.tensors, plan.jobs
        self.arena = 0
        self._referenced: list[Any] = []  # memory that the instructions point into
        self._instructions: list[Instruction] = []
        # Floats past a tensor's end that may be read, and that nobody may write meanwhile: a tile may read seven
        # columns, or a row and three columns, past the last output.
        self._slack = max(
            (_past(phase, self.tensors[job.source]) for job in self.jobs for phase in job.phases), default=0
        )
        # Written by `fill`: an instruction's weights, with their indices among its layer's; biases. None: all ones.
        self._weights: list[tuple[NDArray[np.float32], NDArray[np.int64], int | None]] = []
        self._biases: list[tuple[NDArray[np.float32], int | None]] = []
        self._place(plan.last_uses())
        for job in self.jobs:
            self._emit(job)
        self.instructions = (Instruction * len(self._instructions))(*self._instructions)

    def fill(self, weights: Mapping[int, NDArray[np.float32]], biases: Mapping[int, NDArray[np.float32]]) -> None:
        """Write the current weights and biases, by layer, into the instructions; each layer's `weights` end in a 0."""
        for places, holds, layer in self._weights:
            places[...] = (_ONE if layer is None else weights[layer])[holds]
        for bias, layer in self._biases:
            if layer is not None:
                bias[...] = biases[layer]

    def _place(self, last: Mapping[int, int]) -> None:
        """Give every tensor its offset in the arena; tensors that are never alive together may share memory."""
        taken: list[tuple[int, int, int]] = []  # begin, end, tensor
        placed: set[int] = set()
        for number, job in enumerate(self.jobs):
            if job.target >= 0 and job.target not in placed:
                target, placed = self.tensors[job.target], placed | {job.target}
                if self._in_place(job, last[job.add] == number if job.add >= 0 else False):
                    target.offset = self.tensors[job.add].offset
                    taken = [(a, b, job.target if t == job.add else t) for a, b, t in taken]
                else:
                    begin, size = 0, target.size + self._slack
                    for a, b, _ in sorted(taken):
                        if begin + size <= a:
                            break
                        begin = max(begin, b)
                    target.offset = begin
                    taken.append((begin, begin + size, job.target))
                    self.arena = max(self.arena, begin + size)
            taken = [place for place in taken if last[place[2]] > number]

    def _in_place(self, job: Job, dies: bool) -> bool:
        """Whether `job` may overwrite the tensor it adds: it reads it pixel by pixel, and nothing reads it later."""
        if not dies or job.kind not in (CONV, DENSE) or job.add == job.source:
            return False
        add, target = self.tensors[job.add], self.tensors[job.target]
        return add.shape == target.shape and add.frame == target.frame

    def _emit(self, job: Job) -> None:
        if job.kind == LOAD:
            self._frame(job)
            self._append(self._instruction(job, tensor=self.tensors[job.target]))
        elif job.kind == STORE:
            self._append(self._instruction(job, tensor=self.tensors[job.source]))
        elif job.kind == CONV:
            if job.add < 0 or self.tensors[job.add].offset != self.tensors[job.target].offset:
                self._frame(job)
            for phase in job.phases:
                self._convolve(job, phase)
        else:
            self._frame(job)
            self._pool(job)

    def _append(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def _instruction(self, job: Job, tensor: Tensor) -> Instruction:
        instruction = Instruction(kind=job.kind, gate=job.gate, port=job.port, add=-1, saved=-1, leak=self.leak)
        instruction.channels, instruction.rows, instruction.cols = tensor.shape
        if job.affine is not None:
            instruction.mean, instruction.std = (self._address(values) for values in job.affine)
        if job.source >= 0:
            source = self.tensors[job.source]
            _set(instruction, "in", source.at(), source.channel, source.row, GROUP)
        if job.target >= 0:
            target = self.tensors[job.target]
            _set(instruction, "out", target.at(), target.channel, target.row, GROUP)
        if job.add >= 0:
            add = self.tensors[job.add]
            _set(instruction, "add", add.at(), add.channel, add.row, GROUP)
        return instruction

    def _frame(self, job: Job) -> None:
        tensor = self.tensors[job.target]
        if tensor.frame != (0, 0):
            instruction = self._instruction(Job(FRAME, target=job.target), tensor)
            instruction.window_rows, instruction.window_cols = tensor.frame
            self._append(instruction)

    def _pool(self, job: Job) -> None:
        unpool = job.kind == UNPOOL
        source, target = self.tensors[job.source], self.tensors[job.target]
        instruction = self._instruction(job, tensor=source if unpool else target)
        moved = target if unpool else source  # the larger side
        instruction.window_rows, instruction.window_cols = job.window
        if unpool:
            instruction.window_row, instruction.window_col = job.stride[0] * moved.row, job.stride[1] * GROUP
            instruction.wide_rows, instruction.wide_cols = moved.shape[1:]
            if job.sign is not None:
                _set(instruction, "sign", job.sign.offset, *job.sign.pitches())
        else:
            instruction.window_row, instruction.window_col = moved.row, GROUP
            instruction.in_row, instruction.in_col = job.stride[0] * moved.row, job.stride[1] * GROUP
        if job.bits is not None:
            _set(instruction, "saved", job.bits.offset, *job.bits.pitches())
        self._append(instruction)

    def _convolve(self, job: Job, phase: Phase) -> None:
        source, target = self.tensors[job.source], self.tensors[job.target]
        (y, x), (down, right) = phase.origin, phase.step
        instruction = self._instruction(job, tensor=target)
        instruction.rows, instruction.cols = phase.extent
        if not instruction.rows or not instruction.cols:
            return
        _set(instruction, "in", source.at(), source.channel, phase.stride[0] * source.row, phase.stride[1] * GROUP)
        _set(instruction, "out", target.at(y, x), target.channel, down * target.row, right * GROUP)
        if job.add >= 0:
            add = self.tensors[job.add]
            _set(instruction, "add", add.at(y, x), add.channel, down * add.row, right * GROUP)
        if job.bits is not None:
            channel, row, col = job.bits.pitches()
            _set(instruction, "saved", job.bits.offset + y * row + x * col, channel, down * row, right * col)
        if job.bias is not None:
            instruction.bias = self._address(job.bias)
            self._biases.append((job.bias, job.layer))
        packed = pack(phase, np.array([source.channel, source.row, GROUP]), target.shape[0])
        instruction.kind, instruction.tile, instruction.blocks = packed.kind, packed.tile, packed.blocks
        instruction.starts, instruction.entries = self._address(packed.starts), self._address(packed.entries)
        self._weights.append((packed.entries["weight"], np.append(phase.holds, -1)[packed.taps], job.layer))
        self._append(instruction)

    def _address(self, values: NDArray[Any]) -> int:
        values = np.ascontiguousarray(values)
        self._referenced.append(values)
        return values.ctypes.data


def _set(instruction: Instruction, name: str, offset: int, channel: int, row: int, col: int) -> None:
    for key, value in zip(PITCHES, (offset, channel, row, col), strict=True):
        setattr(instruction, f"{name}{key}", value)


def _past(phase: Phase, tensor: Tensor) -> int:
    return phase.stride[0] * tensor.row + 7 * phase.stride[1] * GROUP


def pointers(addresses: list[int]) -> Any:
    """An array of pointers, as the kernels take them."""
    return (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
