"""The arithmetic of attacks: exact float32, or TF32 on a CUDA card. Verdicts are always measured in exact float32.

TF32 keeps float32's range and 10 of its 23 explicit mantissa bits in the operands of convolutions and matrix products,
whose sums stay float32 (NVIDIA A100 architecture whitepaper 2020; `docs/arithmetic.md` has what it does to attacks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.facts import ArithmeticName

_AMPERE = (8, 0)  # the first compute capability with TF32


@dataclass(frozen=True)
class Arithmetic:
    """How a net computes while attacks query it; `name` is the word for it in records.

    `active`: the context that an attack runs in from its first to its last step, since a backward pass reads torch's
    switches when it runs. `repairs`: proposals that exact float32 rejects show that this arithmetic misled the attack,
    so their images are attacked again in exact float32.
    """

    name: ArithmeticName
    active: Callable[[], AbstractContextManager[None]]
    repairs: bool

    @property
    def exact(self) -> bool:
        """Whether attacks see what verdicts are measured on."""
        return self.name == FLOAT32.name


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turn TF32 off during measurements and restore the settings afterwards."""
    with _switched(on=False):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """Let a CUDA card use TF32 for convolutions and matrix products, and restore the settings afterwards."""
    with _switched(on=True):
        yield


FLOAT32 = Arithmetic("float32", exact_float32, repairs=False)
TF32 = Arithmetic("tf32", tf32, repairs=True)
ARITHMETICS: dict[str, Arithmetic] = {arithmetic.name: arithmetic for arithmetic in (FLOAT32, TF32)}


def arithmetic_named(name: str, device: torch.device | None = None) -> Arithmetic:
    """The arithmetic `name` for attacks on `device` (None: on any).

    Raises PrunebenchError if it is unknown, or if the device does not have it.
    """
    if name not in ARITHMETICS:
        raise unknown("arithmetic", name, ARITHMETICS)
    found = ARITHMETICS[name]
    if device is None or found.exact:
        return found
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _AMPERE:
        raise PrunebenchError(
            f"Attacks in {name} need a CUDA card of compute capability 8.0 or newer, but the device is {device}; use "
            "--arithmetic float32."
        )
    return found


def _backends() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, torch.backends.cudnn


def _operations() -> tuple[Any, ...]:
    matmul, cudnn = _backends()
    return matmul, cudnn.conv, cudnn.rnn


@contextmanager
def _switched(*, on: bool) -> Iterator[None]:
    """TF32 on or off for all operations, by torch's old switches and its new ones, so that the two agree.

    The old ones alone leave convolutions in TF32 where `torch.backends.fp32_precision` says so. Where only the new
    ones are set, reading an old one raises RuntimeError.
    """
    before = [_allowed(backend) for backend in _backends()], [each.fp32_precision for each in _operations()]
    _set([on, on], ["tf32" if on else "ieee"] * 3)
    try:
        with _steady_engines():
            yield
    finally:
        _set(*before)


@contextmanager
def _steady_engines() -> Iterator[None]:
    """Take cuDNN's free choice of engines away, and restore the settings afterwards.

    An engine may add up in a different order every time, and `Referee.steady_logits` would refuse the net for it.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _allowed(backend: Any) -> bool | None:
    """An old switch; None where the user's own settings contradict it, so that it cannot be read."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def _set(allowed: Sequence[bool | None], precisions: Sequence[str]) -> None:
    """Set the old switches that are known, and then those of the new ones that differ."""
    for backend, value in zip(_backends(), allowed, strict=True):
        if value is not None:
            backend.allow_tf32 = value
    for operation, precision in zip(_operations(), precisions, strict=True):
        if operation.fp32_precision != precision:
            operation.fp32_precision = precision
