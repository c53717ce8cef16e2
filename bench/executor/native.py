"""The kernel library: compiled at first use by the system's compiler, cached by content, loaded by ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from prunebench.bench import machine
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, sha256_of, write_bytes

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
TARGETS = ("-march=native", "-mcpu=native", "")  # the first that the compiler accepts is used
# The vectors that a program must multiply or move for two threads to share its images: about a millisecond on one.
# With less, threads gain less than they lose as each fetches from the other's cache (AMD Zen 4, 2 threads: mnist-cnn
# takes 1.2 times as long at 5 % of its weights, and four fifths of the time at 20 %).
ENOUGH = 2**21
PITCHES = ("", "_channel", "_row", "_col")


class Instruction(ctypes.Structure):
    """One instruction of a program, field for field as in kernels.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "kind",
                "gate",
                "tile",
                "port",
                "channels",
                "rows",
                "cols",
                *(f"{name}{pitch}" for name in ("in", "out", "add", "saved") for pitch in PITCHES),
                "window_rows",
                "window_cols",
                "window_row",
                "window_col",
                *(f"sign{pitch}" for pitch in PITCHES),
                "wide_rows",
                "wide_cols",
                "blocks",
            )
        ),
        *((name, ctypes.c_void_p) for name in ("starts", "entries", "bias", "mean", "std")),
        ("leak", ctypes.c_double),
    ]


def compiler() -> str | None:
    """The path of the system's C++ compiler, None if there is none; `CXX` names another one, or "none" for none."""
    wanted = os.environ.get("CXX")
    return next((path for name in ((wanted,) if wanted else COMPILERS) if (path := shutil.which(name))), None)


@cache
def library() -> ctypes.CDLL | PrunebenchError:
    """The kernels, or the reason why there are none."""
    try:
        return load(folder())
    except PrunebenchError as error:
        return error


def folder() -> Path:
    """The folder of compiled kernels, below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunebench" / "kernels"


def lacking() -> str | None:
    """Why there are no kernels here and every net runs dense, with the remedy; None if there are kernels."""
    found = library()
    return str(found) if isinstance(found, PrunebenchError) else None


def explain() -> str:
    """One line for `doctor`: whether sparse nets run sparse here, and if not, why."""
    why = lacking()
    return identity() if why is None else f"none, so all nets run dense: {why}"


def identity() -> str:
    """What decides the kernels' output bits: their width, and a hash of source, lowering, compiler and processor.

    "none" if nets run dense.
    """
    found = library()
    if isinstance(found, PrunebenchError):
        return "none"
    built = Path(found._name).stem.partition("-")[0]
    return f"{found.lanes()} floats wide, {sha256_of(canonical_json([built, lowering()]))[:12]}"


def lowering() -> str:
    """A hash of the code that folds nets and lowers them to kernels."""
    return machine.hash_of(sorted(SOURCE.parent.glob("*.py")))[:12]


@cache
def team() -> int | None:
    """The address of the function that runs work on torch's own threads; None if torch uses another kind of threads.

    It is GOMP_parallel of libgomp (and libomp), to which compilers translate `#pragma omp parallel`. In a process with
    several of these libraries it may belong to another: equally correct, but no faster than the kernels' own threads.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


def load(kept: Path, flags: Sequence[str] = FLAGS, targets: Sequence[str] = TARGETS) -> ctypes.CDLL:
    """The library from the folder `kept`, compiled for the first accepted target if no intact file is there.

    Its name holds the hash of what it was made from and its own, so that a truncated file is not loaded but rebuilt.
    Raises PrunebenchError when it cannot be built.
    """
    path = compiler()
    if path is None:
        if wanted := os.environ.get("CXX"):
            raise PrunebenchError(
                f"CXX names {wanted!r}, which is not a program on this machine; set CXX to a compiler, or unset it."
            )
        raise PrunebenchError(f"there is no C++ compiler ({', '.join(COMPILERS)}) on the path; install one.")
    if sys.platform == "win32":
        raise PrunebenchError("the kernels are written for GCC and Clang, not for Windows.")
    key = _key(path, flags, targets)
    try:
        for built in sorted(kept.glob(f"{key}-*.so")):
            if built.stem == f"{key}-{sha256_of(built.read_bytes())[:16]}":
                return _open(built)
            built.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "kernels.so"
            _compile(path, made, flags, targets)
            data = made.read_bytes()
    except FileNotFoundError:  # another process removed a broken file
        return load(kept, flags, targets)
    except OSError as error:
        raise PrunebenchError(f"the kernels cannot be built ({error.strerror or error}).") from error
    built = kept / f"{key}-{sha256_of(data)[:16]}.so"
    write_bytes(built, data)
    return _open(built)


def _key(path: str, flags: Sequence[str], targets: Sequence[str]) -> str:
    """The hash of everything that decides the compiler's output: source, flags, compiler and processor."""
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PrunebenchError(f"the compiler {path} does not run ({error}).") from error
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    facts = [
        SOURCE.read_text(),
        [*flags],
        [*targets],
        version,
        machine.cpu(),
        platform.machine(),
        sys.platform,
        features,
    ]
    return sha256_of(canonical_json(facts))[:16]


def _compile(path: str, made: Path, flags: Sequence[str], targets: Sequence[str]) -> None:
    for target in targets:
        command = [path, *flags, *([target] if target else []), str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise PrunebenchError(f"the compiler {path} refuses the kernels: {done.stderr[:300]}")


def _open(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))  # its calls release the GIL
    except OSError as error:
        raise PrunebenchError(f"the compiled kernels {path} cannot be loaded ({error}).") from error
    found.instruction_bytes.restype = found.lanes.restype = ctypes.c_int64
    found.execute.restype = None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.execute.argtypes = [
        pointer,
        number,
        pointer,
        number,
        pointer,
        number,
        pointer,
        pointer,
        number,
        number,
        pointer,
        number,
    ]
    if found.instruction_bytes() != ctypes.sizeof(Instruction):
        raise PrunebenchError(f"the compiled kernels {path} have an outdated layout; delete the file.")
    return found
