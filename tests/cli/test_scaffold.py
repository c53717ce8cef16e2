"""`prunebench new`: what it writes passes its own test, can be installed, and never lands on something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.bench.cli import scaffold
from prunebench.bench.conformance.suite import check
from prunebench.bench.errors import PrunebenchError
from prunebench.pruners import PRUNERS, resolve

ROOT = Path(__file__).resolve().parents[2]


def run(*command, cwd, **environment):
    """A command in a process of its own; its standard output, or an assertion that shows what it said."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    files = scaffold.new("my_pruner", out, taken=PRUNERS)
    assert [file.name for file in files] == ["my_pruner.py", "test_my_pruner.py", "pyproject.toml", "README.md"]
    assert sorted(out.iterdir()) == [out / "my_pruner"] and sorted(files) == sorted((out / "my_pruner").iterdir())
    return out / "my_pruner"


@pytest.mark.slow
def test_the_generated_test_passes_as_generated(folder):
    assert "2 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)


def test_the_generated_test_can_fail(tmp_path):
    """What it asserts, on a twin that keeps one weight too many."""
    method, *_ = scaffold.new("twin", tmp_path)
    method.write_text(method.read_text().replace("lab.keep)", "lab.keep + 1)"))
    report = check(scaffold.spec(method))
    assert report.broken == ["sparsity"] and "keeps 2405 of 38160 weights" in str(report)


def test_the_generated_files_are_clean(folder):
    run("-m", "ruff", "check", "--isolated", "--select", "B,E,F,I,RUF,UP", "--line-length", "120", ".", cwd=folder)
    run("-m", "ruff", "format", "--check", "--isolated", "--line-length", "120", ".", cwd=folder)


def test_installed_it_is_listed_by_its_name(folder, tmp_path):
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--target", str(tmp_path / "site"), str(folder), cwd=tmp_path)
    both = f"{tmp_path / 'site'}{os.pathsep}{ROOT / 'src'}"
    listed = json.loads(run("-m", "prunebench", "list", "pruners", "--json", cwd=tmp_path, PYTHONPATH=both))["pruners"]
    assert listed["my-pruner"].startswith("Keep each layer's largest weights") and "lr=1.0" in listed["my-pruner"]
    assert "imp" in listed
    assert "my-pruner" not in PRUNERS  # it was the installation that made it known


def test_the_spec_that_is_told_names_the_class(folder):
    assert resolve(scaffold.spec(folder / "my_pruner.py")).name == "my_pruner.MyPruner"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "My",
        "1st",
        "a b",
        "a-b",
        "../a",
        "a/b",
        "/tmp/a",
        ".",
        "..",
        "a.py",
        "class",
        "a\x1b",
        "ä",
        "a" * 41,
        "a_",
        "_a",
        "$module",
        "a\n",
    ],
)
def test_names_that_are_no_words_are_refused(name, tmp_path):
    with pytest.raises(PrunebenchError, match="cannot name a file and a class"):
        scaffold.new(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("imp", "A pruner 'imp' already exists"),
        ("iwi_dense", "A pruner 'iwi-dense' already exists"),
        ("torch", "A module 'torch' already exists"),
        ("json", "module"),
    ],
)
def test_names_that_are_taken_are_refused(name, why, tmp_path):
    with pytest.raises(PrunebenchError, match=why):
        scaffold.new(name, tmp_path, taken=PRUNERS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_overwritten(kind, tmp_path):
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PrunebenchError, match="already exists and is not overwritten"):
        scaffold.new("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PrunebenchError, match=r"Cannot write .*--out"):
        scaffold.new("mine", tmp_path / "file" / "out")
