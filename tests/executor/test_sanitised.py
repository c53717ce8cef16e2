"""The kernels in a C++ driver under the sanitisers and for other processors, on programs of nets that have it all.

Every sanitiser has a twin: a program with one fault that it must report.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.bench.executor import native, packing, program
from prunebench.bench.executor.packing import CONV, DENSE, FRAME
from prunebench.bench.executor.program import Program
from tests.executor.test_executor import SHAPES, apart, both, compiled, generator, sparse_net, sparsely, stir

DRIVER = Path(__file__).with_name("driver.cpp")
# Products that are fused with sums where the compiler likes would give each build its own last bits.
PLAIN = (*native.FLAGS, "-O1", "-ffp-contract=off")

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """Strides, a sum, pools that overlap and that do not, an average, odd channels: all that a residual net has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(6, 9, 3, 2, 1), nn.ReLU(), nn.Conv2d(9, 9, 3, padding=1))
        self.right = nn.Conv2d(6, 9, 1, 2)
        self.last = nn.Sequential(nn.MaxPool2d(2, 1), nn.Conv2d(9, 7, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classes = nn.Linear(7, 5)

    def forward(self, images):
        once = self.first(images)
        return self.classes(self.last(torch.relu(self.left(once) + self.right(once))).flatten(1))


def block(density: float) -> nn.Module:
    net = Block().eval().requires_grad_(False)
    for seed, weight in enumerate(net.parameters()):
        if weight.dim() == 4:
            weight.mul_(torch.rand(weight.shape, generator=generator(seed)) < density)
    stir(net)
    return net


# Net, images, and what of the cost model is otherwise so that a kernel is taken: several blocks, four channels at once.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, float]]] = {
    "digits": (lambda: sparse_net("digits-cnn", 0.1), (17, *SHAPES["digits-cnn"]), {}),
    "digits-whole": (lambda: sparse_net("digits-cnn", 1.0), (33, *SHAPES["digits-cnn"]), {}),
    "mnist": (lambda: sparse_net("mnist-cnn", 0.05), (16, *SHAPES["mnist-cnn"]), {}),
    "empty": (lambda: sparse_net("digits-cnn", 0.0), (1, *SHAPES["digits-cnn"]), {}),
    "flat": (lambda: block(0.4), (17, 3, 5, 7), {"FOUR": 1e9}),
    "square": (lambda: block(0.4), (33, 3, 10, 10), {"FOUR": 1e9}),
    "odd": (lambda: block(0.4), (1, 3, 13, 13), {}),
    "blocks": (lambda: block(0.4), (16, 3, 13, 13), {"WINDOW": 1, "PAUSE": 0.0, "FOUR": 1e9}),
    "quads": (lambda: block(0.9), (33, 3, 10, 10), {"FOUR": 0.0}),
    "quads-odd": (lambda: block(0.9), (17, 3, 5, 7), {"FOUR": 0.0}),
}


@dataclass
class Written:
    """One program with what it reads and what it must give, as the driver takes it.

    `blobs`: copies of what its instructions point to, so that a twin may plant a fault in them; `pitch`: floats from
    one thread's arena to the next.
    """

    program: Program
    inputs: list[torch.Tensor]
    expected: list[torch.Tensor]
    pitch: int = 0
    instructions: list[native.Instruction] = field(default_factory=list)
    blobs: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pitch = self.program.arena
        self.blobs = [values.copy() for values in self.program._referenced]
        places = {values.ctypes.data: number for number, values in enumerate(self.program._referenced, 1)}
        for instruction in self.program.instructions:
            moved = native.Instruction.from_buffer_copy(instruction)
            for name, kind in native.Instruction._fields_:
                if kind is ctypes.c_void_p and getattr(moved, name) is not None:
                    setattr(moved, name, places[getattr(moved, name)])
            self.instructions.append(moved)

    def pack(self) -> bytes:
        many = [[value.float().contiguous().numpy() for value in side] for side in (self.inputs, self.expected)]
        parts = [number(self.program.arena), number(self.pitch)]
        for buffers in (*many, self.blobs):
            parts += [number(len(buffers)), *(framed(values.tobytes()) for values in buffers)]
        return b"".join([*parts, framed(b"".join(bytes(instruction) for instruction in self.instructions))])


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def framed(data: bytes) -> bytes:
    return number(len(data)) + data


class Case:
    """A net, images, both programs and what they give, with what writes them to a file."""

    def __init__(self, name: str, images: int | None = None) -> None:
        make, shape, model = CASES[name]
        self.net = make()
        self.images = torch.rand(images or shape[0], *shape[1:], generator=generator())
        with pytest.MonkeyPatch.context() as patch:
            for constant, value in model.items():
                patch.setattr(packing, constant, value)
            quick = sparsely(self.net)
            self.given = both(quick, self.images)
        (forward, backward), self.saved = compiled(quick).programs, compiled(quick).saved
        direction = torch.randn(self.given[0].shape, generator=generator(6))  # as `both` takes it
        self.sides = [
            Written(forward, [self.images], [self.given[0]]),
            Written(backward, [direction], [self.given[1]]),
        ]

    def repeated(self, times: int) -> Case:
        """Both programs that many times in a row, so that threads which share them meet."""
        for side in self.sides:
            side.instructions *= times
        return self

    def write(self, path: Path) -> Path:
        path.write_bytes(number(len(self.images)) + number(self.saved) + b"".join(side.pack() for side in self.sides))
        return path


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    """The kernels with no product fused."""
    return native.load(tmp_path_factory.mktemp("library"), PLAIN)


@pytest.fixture
def plain(monkeypatch, library) -> None:
    monkeypatch.setattr(native, "library", lambda: library)


@pytest.fixture(scope="session")
def cases(library) -> dict[str, Case]:
    """Every case, with the bits that the library gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: library)
        return {name: Case(name) for name in CASES}


def build(target: Path, *options: str, compiler: str | None = None) -> Path:
    """The driver, compiled as the library is but for `options`; skips where the compiler does not know them."""
    command = compiler or native.compiler() or pytest.skip("there is no C++ compiler")
    probe = target.with_suffix(".probe")
    known = subprocess.run([command, *options, "-x", "c++", "-", "-o", probe], input=b"int main() {}", check=False)
    if known.returncode:
        pytest.skip(f"the compiler {command} does not make programs with {' '.join(options)}")
    flags = [flag for flag in PLAIN if flag not in ("-shared", "-fPIC")]
    done = subprocess.run([command, *flags, "-g", *options, DRIVER, "-o", target], capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    return target


def drive(command: list[str], files: list[Path], tolerance: float = 0.0) -> tuple[int, str]:
    """How the driver ended and what it said."""
    done = subprocess.run([*command, str(tolerance), *files], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def wide() -> tuple[str, ...]:
    """What makes the widest vectors of this machine."""
    return ("-march=native",) if platform.machine() == "x86_64" else ("-mcpu=native",)


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("address") / "driver"
    return build(target, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *wide())


@pytest.fixture(scope="session")
def thread(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("thread") / "driver", "-fsanitize=thread", *wide())


def test_the_cases_take_every_kernel(cases):
    found = [instruction for case in cases.values() for side in case.sides for instruction in side.instructions]
    assert {instruction.kind for instruction in found} == set(range(7))
    tiles = {instruction.tile for instruction in found if instruction.kind == CONV}
    assert tiles == {instruction.gate for instruction in found} == {0, 1, 2}
    assert max(instruction.blocks for instruction in found) > 1


def test_no_address_is_wrong_and_nothing_undefined(address, cases, tmp_path):
    ended, said = drive([str(address)], [case.write(tmp_path / name) for name, case in cases.items()])
    assert ended == 0, said


def test_no_thread_races(thread, cases, tmp_path):
    ended, said = drive([str(thread)], [case.write(tmp_path / name) for name, case in cases.items()])
    assert ended == 0, said


@pytest.mark.parametrize("name", ["flat", "square", "blocks", "quads-odd", "mnist"])
def test_no_threads_race_that_share_a_group(thread, plain, tmp_path, name):
    ended, said = drive([str(thread)], [Case(name, images=16).repeated(20).write(tmp_path / name)])
    assert ended == 0, said


# The twins


def test_a_wrong_bit_is_seen(address, plain, tmp_path):
    case = Case("digits")
    case.sides[0].expected[0][0, 0] *= 1 + 2**-23
    ended, said = drive([str(address)], [case.write(tmp_path / "file")])
    assert ended == 1
    assert "Sanitizer" not in said


@pytest.mark.parametrize("distance", [-16, 16])
def test_an_offset_that_leaves_the_arena_is_seen(address, plain, tmp_path, distance):
    """A group of 16 images before it, or one after its end."""
    case = Case("digits")
    forward = case.sides[0]
    instruction = next(instruction for instruction in forward.instructions if instruction.kind in (CONV, DENSE))
    offsets = forward.blobs[instruction.entries - 1]["offset"]
    offsets[0] = -getattr(instruction, "in") + distance if distance < 0 else forward.program.arena
    ended, said = drive([str(address)], [case.write(tmp_path / "file")])
    assert ended
    assert "heap-buffer-overflow" in said


def test_a_vector_that_is_not_aligned_is_seen(address, plain, tmp_path):
    case = Case("digits")
    next(instruction for instruction in case.sides[0].instructions if instruction.kind == CONV).out += 1
    ended, said = drive([str(address)], [case.write(tmp_path / "file")])
    assert ended
    assert "misaligned address" in said


def test_a_number_that_overflows_is_seen(address, plain, tmp_path):
    case = Case("digits")
    instruction = case.sides[0].instructions[-1]
    instruction.channels = instruction.rows = 2**40
    ended, said = drive([str(address)], [case.write(tmp_path / "file")])
    assert ended
    assert "signed integer overflow" in said


def test_two_threads_in_one_arena_are_seen(thread, plain, tmp_path):
    case = Case("digits", images=999)
    case.sides[0].pitch = 0
    ended, said = drive([str(thread)], [case.write(tmp_path / "file")])
    assert ended
    assert "data race" in said


def test_a_part_that_does_not_wait_is_seen(thread, plain, tmp_path):
    """A frame may be written while the tensor inside it is; here it lies where that instruction reads."""
    case = Case("quads", images=16)
    pairs = itertools.pairwise(case.sides[0].instructions)
    frame, filler = next((a, b) for a, b in pairs if a.kind == FRAME and b.kind in (CONV, DENSE))
    frame.out, frame.out_channel, frame.out_row = getattr(filler, "in"), filler.in_channel, filler.in_row
    frame.channels = 1
    ended, said = drive([str(thread)], [case.repeated(300).write(tmp_path / "file")])
    assert ended
    assert "data race" in said


def test_a_tile_that_reads_what_others_write_is_seen(thread, plain, monkeypatch, tmp_path):
    """Tiles read past the end of a tensor, where there is another one if tensors lie without a gap."""
    monkeypatch.setattr(program, "_past", lambda *_: 0)
    case = Case("flat", images=16)
    ended, said = drive([str(thread)], [case.repeated(300).write(tmp_path / "file")])
    assert ended
    assert "data race" in said


# Other widths


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the targets are of x86-64")
@pytest.mark.parametrize(("target", "floats"), [("-march=x86-64-v3", 8), ("-march=x86-64", 4)])
def test_narrower_vectors_give_the_same(monkeypatch, tmp_path, target, floats):
    """AVX2 with products fused, and SSE2."""
    narrow = native.load(tmp_path, targets=(target,))
    assert narrow.lanes() == floats
    monkeypatch.setattr(native, "library", lambda: narrow)
    for name in CASES:
        case = Case(name)
        for given, wanted in zip(case.given, both(case.net.double(), case.images.double()), strict=True):
            assert apart(given, wanted) < 1e-5


def test_other_processors_give_the_same(plain, tmp_path):
    """NEON, on a processor that is emulated."""
    emulator = shutil.which("qemu-aarch64") or pytest.skip("there is no qemu-aarch64")
    compiler = shutil.which("aarch64-linux-gnu-g++") or pytest.skip("there is no aarch64-linux-gnu-g++")
    fused = build(tmp_path / "driver", "-static", "-ffp-contract=fast", compiler=compiler)
    files = []
    for name in CASES:
        case = Case(name)
        exact = both(case.net.double(), case.images.double())
        for side, wanted in zip(case.sides, exact, strict=True):
            side.expected = [wanted]
        files.append(case.write(tmp_path / name))
    ended, said = drive([emulator, str(fused)], files, 1e-5)
    assert said.startswith("4 floats wide")
    assert ended == 0, said
