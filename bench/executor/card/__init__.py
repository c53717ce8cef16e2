"""Sparse nets on a CUDA card: the executor's plans on Triton kernels, in exact float32. See docs/card-executor.md."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from prunebench.bench import machine
from prunebench.bench.files import canonical_json, sha256_of

OLDEST = (7, 0)  # compute capability that Triton compiles for


@cache
def lacking(device: torch.device) -> str | None:
    """Why nets on `device` run dense, None if the kernels run there."""
    if device.type != "cuda":
        return f"there are no sparse kernels for a device of type {device.type}."
    if find_spec("triton") is None:
        return "torch came without Triton, which compiles the kernels for a card; install triton."
    if torch.version.hip is not None:
        return "the kernels for a card are written for NVIDIA's."
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"Triton needs a card of compute capability {OLDEST[0]}.{OLDEST[1]}."
    return None


@cache
def identity() -> str:
    """What decides the bits on a given card: a hash of the kernels, of how nets are lowered to them, and of Triton."""
    import triton

    here = Path(__file__).parent
    code = machine.hash_of(sorted([*here.glob("*.py"), *here.parent.glob("*.py")]))
    return f"triton, {sha256_of(canonical_json([code, triton.__version__]))[:12]}"
