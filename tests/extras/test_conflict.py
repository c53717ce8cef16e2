"""torchattacks and robustbench cannot meet in one environment: installers refuse both at once and take each alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def dry_run(extras: str) -> subprocess.CompletedProcess[str]:
    """What pip says when asked for the project with `extras`; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-build-isolation"]
    return subprocess.run([*pip, "--editable", f".[{extras}]"], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("extra", ["torchattacks", "robustbench", "ray", "corruptions"])
def test_each_resolves(extra):
    done = dry_run(extra)
    assert done.returncode == 0, done.stderr


def test_both_do_not():
    done = dry_run("torchattacks,robustbench")
    assert done.returncode != 0
    assert "conflict" in done.stderr
    assert "requests" in done.stderr


def test_uv_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["uv"]["conflicts"] == [[{"extra": "torchattacks"}, {"extra": "robustbench"}]]
