"""A machine that has torch, this source and a few wheels imports, measures and trains; it needs nothing else."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.bare_machine import CARRIED, ROOT, lay_out
from tools.gpu_board import told

SCRIPT = str(ROOT / "tools" / "gpu_board.sh")


def board(env, *arguments):
    command = ["bash", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=ROOT.parent, capture_output=True, text=True, check=False)


def rows(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line[2:-2].split(" | ", 1) for line in done.stdout.splitlines() if line.startswith("| "))


@pytest.mark.slow
def test_everything_imports_and_takes_a_step(tmp_path):
    env = lay_out(tmp_path)
    found = rows(board(env, "--out", tmp_path / "out", "--tiny", "--skip", "convolutions,train,score,tests"))
    count = len(entry_points(group="prunebench.pruners"))  # the bare machine has no installation to tell it
    assert found["smoke"].endswith(f" {count} pruners, 3 objectives, 4 attacks, a record of 2 images")
    (kept,) = (tmp_path / "out").glob("smoke-*.json")
    assert json.loads(told(kept.read_text()))["line"] == found["smoke"]


@pytest.mark.parametrize("name", CARRIED)
def test_without_a_wheel_it_would_not(name, tmp_path):
    """The twin, without starting torch: each of them is imported by something that is needed."""
    env = lay_out(tmp_path, has=("numpy",), carried=tuple(other for other in CARRIED if other != name))
    module = name.replace("-", "_")
    asked = "import pyautoattack" if name == "pyautoattack" else "from pydantic import Field; Field(ge=0)"
    done = subprocess.run([env["PYTHON"], "-c", asked], env=env, capture_output=True, text=True, check=False)
    assert f"No module named '{module}'" in done.stderr, done.stderr


@pytest.mark.slow
def test_it_measures_collects_its_tests_and_trains(tmp_path):
    env = lay_out(tmp_path)
    rules = ROOT / "tools" / "gpu" / "rehearsal.toml"
    grid = [rules, "--pruner", "random", "--sparsity", "0.9", "--seed", "0"]
    found = rows(board(env, "--out", tmp_path / "out", "--tiny", *grid))
    assert found["convolutions"].startswith("digits-cnn, batch 128")
    assert "times" in found["train"] and found["score"].endswith(" min to score")
    assert found["tests"].startswith("0 passed, ") and found["tests"].endswith(" skipped")
    assert found[f"grid {' '.join(map(str, grid))}"] == "1 records, complete"
    assert Path(tmp_path / "out" / "registered").is_dir()  # its pruners: nothing is installed
