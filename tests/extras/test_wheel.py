"""The wheel, installed beside foreign packages of our folders' names: both work, and ours only as prunebench."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.nets import changed, toml

ROOT = Path(__file__).resolve().parents[2]
RULES = changed(test=16, shard=16, train=128)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but the wheel installed in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    local = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    subprocess.run([*pip, "wheel", *local, "--wheel-dir", folder, ROOT], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *local, "--target", folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def run(folder, site, *arguments):
    """Python in `folder`, with the wheel before everything else but the folder itself."""
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{site}"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def foreign(tmp_path):
    """A project of somebody's own, with packages of the names of our folders."""
    for name in ("bench", "pruners", "leaderboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"WHOSE = 'theirs: {name}'\n")
    (tmp_path / "rules.toml").write_text(toml(RULES))
    return tmp_path


def test_the_wheel_holds_prunebench_alone(site):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} <= {"prunebench", "bin"}
    assert (site / "prunebench" / "bench" / "executor" / "kernels.cpp").is_file()
    assert not any(path.is_symlink() for path in site.rglob("*"))
    (wheel,) = site.parent.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "records" in name and name.endswith(".json")]


def test_a_grid_a_board_a_site_and_a_claim_beside_foreign_packages(site, foreign):
    where = "import prunebench, bench, pruners, leaderboard; print(prunebench.__file__, bench.WHOSE, pruners.WHOSE)"
    assert run(foreign, site, "-c", where).split(maxsplit=1) == [
        str(site / "prunebench" / "__init__.py"),
        "theirs: bench theirs: pruners\n",
    ]
    prunebench = (foreign, site, "-m", "prunebench")
    grid = ("--pruner", "dense", "--pruner", "random", "--sparsity", "0.9", "--seed", "0", "--keep-proposals")
    said = run(*prunebench, "run", "rules.toml", *grid, "--jobs", "2", "--out", "runs", "--device", "cpu")
    assert "dense" in said and "random" in said
    assert "random" in run(*prunebench, "rank", "runs/records")
    run(*prunebench, "site", "runs", "--out", "pages")
    assert (foreign / "pages" / "index.html").is_file()
    (job,) = (foreign / "runs" / "jobs").glob("random-*")
    run(*prunebench, "claim", job / "record.json", "--out", "claims/random")
    tested = run(foreign, site, "-m", "pytest", "claims", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in tested
    assert run(foreign, site, "-c", "import leaderboard; print(leaderboard.WHOSE)") == "theirs: leaderboard\n"
