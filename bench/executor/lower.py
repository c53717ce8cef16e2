"""Lowers a segment to two plans: one for its outputs, one for the gradient of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.bench.executor.jobs import LEAK, MASK, OPEN, RELU, SIGNS, Bits, Job, Plan
from prunebench.bench.executor.layers import Conv, MaxPool, Segment, Shape
from prunebench.bench.executor.packing import CONV, GROUP, LOAD, POOL, STORE, UNPOOL, Phase


@dataclass
class Lowered:
    """Both plans of a segment, and the bytes saved between them per group of images."""

    forward: Plan
    backward: Plan
    saved: int


def lower(segment: Segment, leak: float = 0.0) -> Lowered:
    """The plans of `segment`, their tensors framed; `leak`: see `executor.fast`."""
    bits, saved = _bits(segment)
    plans = _forward(segment, bits), _backward(segment, bits, leak)
    for plan in plans:
        plan.frame()
    return Lowered(*plans, saved)


def _bits(segment: Segment) -> tuple[dict[int, Bits], int]:
    """What each layer saves, by its result, and the bytes in total."""
    found, size = {}, 0
    for layer in segment.layers:
        if isinstance(layer, MaxPool) or layer.relu:
            pixel = GROUP if isinstance(layer, MaxPool) else SIGNS
            found[layer.result] = Bits(segment.shapes[layer.result], size, pixel)
            size += -(-found[layer.result].size // 64) * 64
    return found, size


def _forward(segment: Segment, bits: dict[int, Bits]) -> Plan:
    plan = Plan()
    where: dict[int, int] = {}
    for port, value in enumerate(segment.inputs.values()):
        where[value] = plan.tensor(segment.shapes[value])
        plan.jobs.append(Job(LOAD, target=where[value], port=port, affine=segment.normalise.get(value)))
    for number, layer in enumerate(segment.layers):
        where[layer.result] = plan.tensor(segment.shapes[layer.result])
        job = Job(POOL, where[layer.source], where[layer.result], bits=bits.get(layer.result))
        if isinstance(layer, MaxPool):
            job.window, job.stride = layer.window, layer.stride
        else:
            job.kind, job.gate = CONV, RELU if layer.relu else OPEN
            job.add = -1 if layer.add is None else where[layer.add]
            job.phases = [_onward(layer, segment.shapes[layer.result])]
            job.layer, job.bias = number, np.zeros(layer.weights.shape[0], np.float32)
        plan.jobs.append(job)
    for port, value in enumerate(segment.outputs.values()):
        plan.jobs.append(Job(STORE, where[value], port=port))
    return plan


def _backward(segment: Segment, bits: dict[int, Bits], leak: float) -> Plan:
    """The backward plan, in which each value's gradient is the sum of those from its readers."""
    plan = Plan(leak)
    shapes = segment.shapes
    pending: dict[int, list[Job]] = {value: [] for value in shapes}  # jobs that compute a term of a value's gradient
    ready: dict[int, list[int]] = {value: [] for value in shapes}  # tensors that are already a term of it
    for port, value in enumerate(segment.outputs.values()):
        tensor = plan.tensor(shapes[value])
        plan.jobs.append(Job(LOAD, target=tensor, port=port))
        ready[value].append(tensor)

    def gather(value: int, gate: Bits | None) -> int:
        """The tensor of a value's gradient, before the ReLU that produced the value, if any."""
        parts = list(ready[value])
        # Unpooling first: a convolution adds the existing sum as it writes.
        jobs = sorted(pending[value], key=lambda job: job.kind == CONV)
        if not jobs:
            if len(parts) == 1 and gate is None:
                return parts[0]
            source = parts.pop() if parts else _nothing(plan, shapes[value])
            jobs = [Job(CONV, source, phases=[_copy(shapes[value])])]
        jobs += [Job(CONV, part, phases=[_copy(shapes[value])]) for part in parts[1:]]
        total = parts[0] if parts else -1
        for number, job in enumerate(jobs):
            job.target, job.add = plan.tensor(shapes[value]), total
            if number == len(jobs) - 1 and gate is not None:
                job.gate = LEAK if leak else MASK
                if job.kind == UNPOOL:
                    job.sign = gate
                else:
                    job.bits = gate
            plan.jobs.append(job)
            total = job.target
        return total

    for number, layer in reversed(list(enumerate(segment.layers))):
        if isinstance(layer, MaxPool):
            gradient = gather(layer.result, None)
            pending[layer.source].append(
                Job(UNPOOL, gradient, bits=bits[layer.result], window=layer.window, stride=layer.stride)
            )
            continue
        gradient = gather(layer.result, bits[layer.result] if layer.relu else None)
        phases = _back(layer, shapes[layer.source], shapes[layer.result])
        pending[layer.source].append(Job(CONV, gradient, phases=phases, layer=number))
        if layer.add is not None:
            ready[layer.add].append(gradient)
    for port, value in enumerate(segment.inputs.values()):
        total = gather(value, None)
        plan.jobs.append(Job(STORE, total, port=port, affine=segment.normalise.get(value)))
    return plan


def _nothing(plan: Plan, shape: Shape) -> int:
    """A tensor of zeros."""
    first, empty = plan.tensor(shape), np.zeros((0, 4), np.int64)
    phase = Phase((0, 0), (1, 1), (1, 1), shape[1:], empty, np.zeros(0, np.int64))
    plan.jobs.append(Job(CONV, first, first, phases=[phase]))
    return first


def _copy(shape: Shape) -> Phase:
    taps = np.zeros((shape[0], 4), np.int64)
    taps[:, 0] = taps[:, 1] = np.arange(shape[0])
    return Phase((0, 0), (1, 1), (1, 1), shape[1:], taps, np.zeros(shape[0], np.int64))


def _taps(layer: Conv) -> NDArray[np.int64]:
    """Output channel, input channel, kernel row and kernel column of each kept weight of a layer."""
    outputs, inputs = layer.weights.shape[:2]
    taps = np.stack(np.unravel_index(layer.weights.kept.cpu().numpy(), layer.weights.shape), axis=1)
    taps[:, 1] += taps[:, 0] // (outputs // layer.groups) * inputs
    return taps


def _onward(layer: Conv, result: Shape) -> Phase:
    taps = _taps(layer)
    for axis in (0, 1):
        taps[:, 2 + axis] = taps[:, 2 + axis] * layer.dilation[axis] - layer.padding[axis]
    return Phase((0, 0), (1, 1), layer.stride, result[1:], taps, np.arange(len(taps)))


def _back(layer: Conv, source: Shape, result: Shape) -> list[Phase]:
    """The transposed convolution, one phase per input position modulo the stride.

    Output r + (a + padding - dilation * k) / s, where that is whole, read input pixel a + s * r at kernel position k.
    """
    taps = _taps(layer)[:, [1, 0, 2, 3]]
    phases = []
    for a in range(min(layer.stride[0], source[1])):
        for b in range(min(layer.stride[1], source[2])):
            moved, fits = taps.copy(), np.ones(len(taps), bool)
            for axis, first in ((0, a), (1, b)):
                reach = first + layer.padding[axis] - layer.dilation[axis] * taps[:, 2 + axis]
                fits &= reach % layer.stride[axis] == 0
                moved[:, 2 + axis] = reach // layer.stride[axis]
            rows = -(-(source[1] - a) // layer.stride[0])
            cols = -(-(source[2] - b) // layer.stride[1])
            fits &= _inside(moved, (rows, cols), result)
            phases.append(Phase((a, b), layer.stride, (1, 1), (rows, cols), moved[fits], fits.nonzero()[0]))
    return phases


def _inside(taps: NDArray[np.int64], extent: tuple[int, int], shape: Shape) -> NDArray[np.bool_]:
    """False for weights that every pixel would multiply with the zero frame."""
    kept = np.ones(len(taps), bool)
    for axis in (0, 1):
        low = taps[:, 2 + axis]
        kept &= (low < shape[1 + axis]) & (low + extent[axis] > 0)
    return kept
