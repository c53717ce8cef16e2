"""The kernels for a card, compiled for Hopper (sm_90) on a machine without one, down to PTX and machine code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")  # torch brings it on Linux
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from prunebench.bench.executor import card  # noqa: E402
from prunebench.bench.executor.card import kernels  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {"signs": "*i8", "places": "*i8"} | dict.fromkeys(("starts", "firsts", "offsets", "table"), "*i32")
POINTERS |= dict.fromkeys(("x", "y", "add", "bias", "weights"), "*fp32")
SCALARS = {"images": "i32", "blocks": "i32", "leak": "fp32"}
TILE = {"LINES": 32, "PARTS": 4, "LANES": 128, "TILE_IMAGES": 32, "TILE_COLS": 4, "SHARED": 1, "UNROLL": 4}
FORWARD, BACKWARD = {"GATE": 1, "ADDS": 1, "SAVES": 1}, {"GATE": 2, "ADDS": 1, "SAVES": 0}
WINDOW = {"WIDTH": 1024, "ROW": 3, "COL": 3, "DOWN": 2, "RIGHT": 2}

REGISTERS = 65_536  # of a multiprocessor
FORBIDDEN = {
    "matrix units, which round to TF32": r"\bw?g?mma\b|\bmma\.|tf32",
    "atomics, whose order is not fixed": r"\batom\.|\bred\.(global|shared|relaxed|async)",
    "float64": r"\.f64\b",
    "approximate arithmetic": r"\.approx\.|\.ftz\.f32",
    "fetches from places on the stack": r"\bld\.local\b|\bst\.local\b",
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def compiled(kernel: Any, constants: dict[str, int], warps: int, *, even: bool = True) -> dict[str, Any]:
    """What Triton makes of `kernel` where every pointer and, if `even`, the number of images is a multiple of 16."""
    types = POINTERS | SCALARS | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    whole = [number for number, name in enumerate(signature) if "*" in signature[name] or (even and name == "images")]
    source = ASTSource(kernel, signature, constants, {(number,): [["tt.divisibility", 16]] for number in whole})
    return triton.compile(source, target=HOPPER, options={"num_warps": warps}).asm


def faults(ptx: str) -> list[str]:
    """What `ptx` has that exact and repeatable float32 must not have."""
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, ptx)]


def inner_loop(ptx: str) -> str:
    """The instructions from a label to the jump back to it, of the longest such loop."""
    loops = re.findall(r"^(\$L__BB\w+):.*\n((?:(?!^\$L__BB).*\n)*?.*bra(?:\.uni)?\s+\1;)", ptx, re.M)
    return max((body for _, body in loops), key=len)


def registers(cubin: bytes, path: Path) -> int | None:
    """Registers per lane of the machine code, none of it on a stack; None without the tool that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path.write_bytes(cubin)
    if not tool.exists():
        return None
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    (used,) = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    assert used[1] == "0", said
    return int(used[0])


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(TILE | FORWARD, marks=pytest.mark.slow),
        TILE | BACKWARD | {"SHARED": 4, "LINES": 16},
        pytest.param(TILE | BACKWARD, marks=pytest.mark.slow),
        pytest.param(TILE | FORWARD | {"SHARED": 4, "LINES": 16}, marks=pytest.mark.slow),
        pytest.param(TILE | {"GATE": 3, "ADDS": 0, "SAVES": 0, "LINES": 4}, marks=pytest.mark.slow),
        pytest.param(TILE | {"GATE": 0, "ADDS": 0, "SAVES": 0, "UNROLL": 1, "LINES": 16}, marks=pytest.mark.slow),
    ],
)
def test_a_convolution_for_hopper(sizes, tmp_path):
    """A lane has PARTS * LANES / 32 sums for each of its channels, and reads its inputs four floats at a time."""
    made = compiled(kernels.convolve, sizes, sizes["LINES"])
    assert faults(made["ptx"]) == []
    loop, sums = inner_loop(made["ptx"]), sizes["PARTS"] * sizes["LANES"] // 32
    assert loop.count("fma.rn.f32") == sums * sizes["SHARED"] * sizes["UNROLL"]
    assert loop.count("ld.global.v4.b32") == sums // 4 * sizes["UNROLL"]
    assert "bar.sync" not in loop and "shared" not in loop  # nothing moves between lanes
    used = registers(made["cubin"], tmp_path / "made.cubin")
    assert used is None or used * 32 * sizes["LINES"] <= REGISTERS


@pytest.mark.slow
def test_images_that_are_no_multiple_of_16_are_read_one_by_one():
    """The twin: what the wide loads rest on."""
    loop = inner_loop(compiled(kernels.convolve, TILE | FORWARD, 32, even=False)["ptx"])
    assert loop.count("ld.global.v4.b32") == 0 and loop.count("fma.rn.f32") == 64


@pytest.mark.parametrize("gate", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_pool_and_its_gradient_for_hopper(gate):
    assert faults(compiled(kernels.pool, WINDOW | {"SAVES": 1}, 4)["ptx"]) == []
    leaks = {"ADDS": gate > 0, "GATE": gate, "LEAKS": gate == 3}
    assert faults(compiled(kernels.unpool, WINDOW | leaks, 4)["ptx"]) == []


# Twins: kernels that break a rule


@triton.jit
def scattering(x, y, images):
    each = tl.arange(0, 128)
    tl.atomic_add(y + each // 2, tl.load(x + each))


@triton.jit
def multiplying(x, y, images):
    each = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(y + each, tl.dot(tl.load(x + each), tl.load(x + each)))


@triton.jit
def rooted(x, y, images):
    each = tl.arange(0, 128)
    tl.store(y + each, tl.exp2(tl.load(x + each)))


@pytest.mark.parametrize(
    ("kernel", "said"), [(scattering, "atomics"), (multiplying, "matrix units"), (rooted, "approximate arithmetic")]
)
def test_a_kernel_that_breaks_a_rule_is_found(kernel, said):
    assert any(said in fault for fault in faults(compiled(kernel, {}, 4)["ptx"]))


def test_other_devices_have_no_kernels():
    assert card.lacking(torch.device("meta")) == "there are no sparse kernels for a device of type meta."
