"""What make would run: with TORCH=cpu nothing of CUDA, otherwise nothing but locked hashes; it is never run here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def planned(*words: str) -> subprocess.CompletedProcess[str]:
    """The commands of `make WORDS`, as if nothing had been made yet."""
    command = ["make", "--dry-run", "--always-make", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_torch_without_cuda_comes_from_where_uv_knows():
    said = planned("TORCH=cpu", "setup").stdout
    (cpu,) = (line for line in said.splitlines() if "--torch-backend" in line)
    assert "uv pip install" in cpu and "--no-deps --torch-backend cpu $pair" in cpu
    assert "--require-hashes --requirement .venv/without-cuda.txt" in said
    assert "--requirement requirements/dev.txt" not in said and "://" not in said


def test_otherwise_everything_is_locked():
    said = planned("setup").stdout
    assert "--require-hashes --requirement requirements/dev.txt" in said
    assert "--torch-backend" not in said and "without-cuda" not in said


@pytest.mark.parametrize("file", ["dev", "ray"])
def test_the_rest_keeps_its_hashes_and_nothing_of_cuda_stays(file, tmp_path):
    """The commands that make would run, on the locked files: all other packages stay, each with all of its hashes."""
    said = planned("TORCH=cpu", "setup").stdout
    sift = re.search(r"awk '([^']*)' requirements/dev.txt >", said)[1]
    pick = re.search(r"pair=\$\(awk '([^']*)'", said)[1]
    locked = ROOT / "requirements" / f"{file}.txt"

    def awk(program: str) -> str:
        return subprocess.run(["awk", program, locked], capture_output=True, text=True, check=True).stdout

    def blocks(text: str) -> dict[str, int]:
        parts = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
        return {part.partition("==")[0]: part.count("--hash=") for part in parts if "==" in part}

    whole, kept = blocks(locked.read_text()), blocks(awk(sift))
    gone = whole.keys() - kept.keys()
    assert kept.items() <= whole.items() and all(kept.values())
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13", "cuda-bindings"} <= gone
    assert all(re.match(r"torch|torchvision|triton|cuda-|nvidia-", name) for name in gone)
    assert re.fullmatch(r"torch==[\d.]+\ntorchvision==[\d.]+\n", awk(pick))


def test_another_torch_is_refused():
    done = planned("TORCH=gpu", "setup")
    assert done.returncode != 0 and "TORCH=gpu is not known; give TORCH=cpu" in done.stderr


def test_a_failure_is_one_sentence_with_a_way_out():
    said = planned("TORCH=cpu", "setup").stdout
    assert "check the network, or leave out TORCH=cpu" in said and "exit 1" in said
