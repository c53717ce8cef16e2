"""The lowest versions that pyproject.toml allows: everything imports, and a small run goes from training to a site."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest

import prunebench

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWEST = dict(re.match(r"([a-z0-9-]+)>=([\d.]+)", each).groups() for each in PROJECT["dependencies"])
SHORT = 'base = "digits-linf"\nname = "short"\nunits = 1\n[training]\nepochs = 1\n'
# What kernels for cards import, torch brings along on Linux; it needs more than torch says that it needs.
CARDS = "prunebench.bench.executor.card."

pytestmark = pytest.mark.skipif(
    not version("torch").startswith(f"{LOWEST['torch']}."), reason="needs the lowest versions: make test-lowest"
)


def release(text: str) -> list[int]:
    """A version as numbers, without zeros at its end or a local part: "2.9.0+cu128" is [2, 9]."""
    numbers = [int(part) for part in text.partition("+")[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_version_is_here(name):
    """Of ">=0.4.3" that is 0.4.3; where a lower bound was never released, its lock would have failed."""
    assert release(version(name)) == release(LOWEST[name])


def test_everything_can_be_imported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old packages use what has been deprecated since
        found = [each.name for each in pkgutil.walk_packages(prunebench.__path__, "prunebench.")]
        names = [name for name in found if not name.startswith(CARDS) and not name.endswith("__main__")]
        assert len(names) > 100
        for name in names:
            importlib.import_module(name)


def test_from_training_to_a_site(tmp_path):
    """One epoch of magnitude pruning on the digits, eight images, a table and a site."""
    (tmp_path / "short.toml").write_text(SHORT)

    def prunebench_(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prunebench", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    grid = ("--pruner", "random", "--sparsity", "0.9", "--seed", "0", "--jobs", "1", "--examples", "8")
    assert "random" in prunebench_("run", "short.toml", *grid, "--out", "runs")
    assert "random" in prunebench_("rank", "runs")
    prunebench_("site", "runs", "--out", "web")
    assert "random" in (tmp_path / "web" / "index.html").read_text()
    assert (tmp_path / "web" / "preview.png").read_bytes().startswith(b"\x89PNG")
