"""Facts about the machine and the code that produced a result."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from prunebench.bench import sources
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of

HERE = Path(__file__).parents[1]  # the package prunebench; its parts may be links
PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scikit-learn", "prunebench")


def device_named(name: str) -> torch.device:
    """The device `name`, where "auto" prefers a CUDA card. Raises PrunebenchError when it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", name):
        raise PrunebenchError(f"Unknown device {name!r}; choose auto, cpu, cuda or cuda:N.")
    device, cards = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise PrunebenchError(f"Device {name!r} is missing: torch sees {cards} CUDA GPUs; use --device cpu or auto.")
    return device


def search_arithmetic() -> None:
    """From now on in this process, float32 on a card means TF32 in convolutions and float32 in matrix products.

    It holds for what a pruner computes beside the common training, which has bfloat16 layers. These are torch's
    defaults, with which the published code of such searches ran; set here, they do not depend on torch's version.
    """
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


@cache
def cpu() -> str:
    """The processor's name; with equal processor, versions and threads, results are identical bytes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    return f"{name}, model {facts['model']}" if "model" in facts else name


def package(name: str) -> str | None:
    """The installed version of a package, None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The git commit of this source tree, with "+" if it has uncommitted changes; None outside a checkout."""
    try:
        git = ["git", "-C", str(HERE)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}{'+' if changes.strip() else ''}"


def env(device: torch.device) -> dict[str, str | int | None]:
    """What a record says about the machine that it was made on."""
    facts: dict[str, str | int | None] = {name: package(name) for name in PACKAGES}
    facts |= {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
    }
    facts |= {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "commit": commit()}
    return facts


def hash_of(files: Iterable[Path]) -> str:
    """The hash of the contents of `files`, in order."""
    return sha256_of(b"\0".join(file.read_bytes() for file in files))


@cache
def training_code() -> str:
    """The hash of the code that decides a training's result, given its inputs: everything that the lab imports."""
    return sources.code(["prunebench.bench.lab.lab"], HERE)


@cache
def attack_code() -> str:
    """What decides an attack's result, given a net: a hash of prunebench's code, and pyautoattack's version."""
    code = sources.code(["prunebench.bench.score.cascade", "prunebench.bench.score.pursuit"], HERE)
    return f"{code} pyautoattack {package('pyautoattack')}"


def env_key(device: torch.device) -> str:
    """What must be equal for two trainings to produce the same bytes."""
    facts = env(device)
    return " ".join(str(facts[name]) for name in ("torch", "cpu", "threads", "device"))
