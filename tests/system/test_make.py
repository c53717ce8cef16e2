"""What make would run: with TORCH=cpu nothing of CUDA, otherwise nothing but locked hashes; no install is run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make WORDS` answers, whatever a make around the tests was told."""
    told = {"TORCH", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    return subprocess.run(["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def planned(*words: str) -> subprocess.CompletedProcess[str]:
    """The commands of `make WORDS`, as if nothing had been made yet."""
    return make("--dry-run", "--always-make", *words)


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


@pytest.mark.parametrize("name", ["TORCH", "MAKEFLAGS"])
def test_what_a_make_around_the_tests_was_told_changes_nothing(name, monkeypatch):
    """The twin: the same command does plan another install where the environment is passed on as it is."""
    monkeypatch.setenv(name, {"TORCH": "cpu", "MAKEFLAGS": " -- TORCH=cpu"}[name])
    test_otherwise_everything_is_locked()
    command = ["make", "--dry-run", "--always-make", "setup"]
    assert "--torch-backend" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


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


@pytest.mark.parametrize(("minor", "good"), [(11, True), (12, True), (13, False), (14, False)])
def test_the_lowest_versions_need_a_python_that_they_have_wheels_for(minor, good, tmp_path):
    """With an interpreter that says it is of another version."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, {minor}, 0)\n$2"\n')
    python.chmod(0o755)
    done = make("--silent", f"PYTHON={python}", "lowest-python")
    assert (done.returncode == 0) is good
    sentence = "The lowest versions need Python 3.11 or 3.12: make PYTHON=python3.12 test-lowest"
    assert (sentence in done.stderr) is not good


def test_the_lowest_versions_ask_for_that_python_before_anything_is_installed():
    said = planned("test-lowest").stdout
    assert said.index("need Python 3.11 or 3.12") < said.index("Setting up .venv")
