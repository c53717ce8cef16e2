"""The arrows between the rooms, derived from the folders: who may import whom. Every check has a twin that fails it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH, PRUNERS, LEADERBOARD = ("prunebench.bench", "prunebench.pruners", "prunebench.leaderboard")
TORCH = frozenset({"torch", "torchvision", "pyautoattack", "torchattacks", "robustbench"})
Graph = Mapping[str, frozenset[str]]  # module -> what of prunebench it imports


def imports(source: str, module: str, *, package: bool = False) -> Iterator[str]:
    """The dotted names that `source`, the text of `module`, imports: at its top, in its functions, or by string.

    `from prunebench.bench import files` gives `prunebench.bench.files`, relative imports are resolved; `package`: it is
    an `__init__.py`.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                if level:
                    parts = module.split(".")
                    kept = parts[: len(parts) - level + package]
                    base = ".".join([*kept, *([base] if base else [])])
                yield from (f"{base}.{name.name}" for name in names)
            case ast.Call(
                func=ast.Name(id=function) | ast.Attribute(attr=function), args=[ast.Constant(value=str(name))]
            ):
                if function in {"import_module", "__import__"}:
                    yield name


def files() -> dict[str, Path]:
    """Every module of the three folders by its dotted name."""
    found = {}
    for folder in (BENCH, PRUNERS, LEADERBOARD):
        for path in sorted((ROOT / folder.removeprefix("prunebench.")).rglob("*.py")):
            parts = ("prunebench", *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


@cache
def imported(name: str) -> tuple[str, ...]:
    """What the module `name` imports."""
    text, package = FILES[name].read_text(encoding="utf-8"), FILES[name].name == "__init__.py"
    return tuple(imports(text, name, package=package))


def graph(sources: Mapping[str, str] | None = None) -> Graph:
    """Who imports whom; `sources` replace the texts of modules, or add modules."""
    replaced = sources or {}
    names, found = {*FILES, *replaced}, {}
    for name in names:
        targets = set()
        for target in imports(replaced[name], name) if name in replaced else imported(name):
            if target.split(".")[0] in TORCH:
                targets.add(target.split(".")[0])
            while target.startswith("prunebench.") and target not in names:
                target = target.rpartition(".")[0]
            if target in names and target != name:
                targets.add(target)
        found[name] = frozenset(targets)
    return found


def room(name: str) -> str:
    """The folder that a module lies in; files at the root of bench share the room `prunebench.bench`."""
    if name.startswith(f"{BENCH}."):
        folder = ".".join(name.split(".")[:3])
        return folder if (ROOT / folder.removeprefix("prunebench.").replace(".", "/")).is_dir() else BENCH
    return ".".join(name.split(".")[:2])


def rooms(of: Graph) -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, targets in of.items():
        found[room(name)] |= {room(target) for target in targets - TORCH} - {room(name)}
    return found


def reached(of: Mapping[str, set[str]], start: str) -> set[str]:
    """All rooms that `start` leads to."""
    found, waiting = set(), [start]
    while waiting:
        for target in of.get(waiting.pop(), set()) - found:
            found.add(target)
            waiting.append(target)
    return found


def faults(of: Graph) -> list[str]:
    """What breaks the order of the rooms, a sentence each."""
    said, between = [], rooms(of)
    for what, arrows in (("modules", {k: set(v - TORCH) for k, v in of.items()}), ("rooms", between)):
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            said.append(f"These {what} import each other in a circle: {' -> '.join(error.args[1])}")
    for target in between[BENCH]:
        said.append(f"A file at the root of bench imports from {target}; root files import root files alone")
    for one, other in (("lab", "score"), ("score", "lab")):
        if f"{BENCH}.{other}" in reached(between, f"{BENCH}.{one}"):
            said.append(f"{one} leads to {other}: what trains and what scores never meet")
    for name in ("attacks", "executor", "interop", "lab", "score", "claims"):
        if PRUNERS in reached(between, f"{BENCH}.{name}"):
            said.append(f"{name} leads to pruners: only what starts a pruner's process knows any")
    said += [f"{name} imports from cli, the roof" for name, to in between.items() if f"{BENCH}.cli" in to]
    if extra := between[LEADERBOARD] - {BENCH}:
        said.append(f"leaderboard imports from {sorted(extra)}: it reads records alone")
    if extra := between[PRUNERS] - {BENCH, f"{BENCH}.lab"}:
        said.append(f"pruners import from {sorted(extra)}: a pruner knows the root of bench and the lab")
    for name, targets in of.items():
        if name.startswith(f"{PRUNERS}.") and any(target.startswith(PRUNERS) for target in targets):
            said.append(f"{name} imports another pruner: what two share belongs in mask or lab")
        if room(name) == LEADERBOARD and targets & TORCH:
            said.append(f"{name} imports torch: the leaderboard works without it")
    return said


def test_every_import_follows_the_arrows():
    assert len(FILES) > 50, "nothing was checked"
    assert not faults(graph()), "\n".join(faults(graph()))


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("bench.mask", "from prunebench.bench.lab.lab import Lab", "root files import root files"),
        ("bench.novelty", "def f():\n    import prunebench.bench.grid.run", "root files import root files"),
        ("bench.files", "from prunebench.bench import record", "in a circle"),
        ("bench.attacks.novel", "from prunebench.bench.score import referee", "circle"),
        ("bench.lab.novel", "from prunebench.bench.score.scoring import score", "never meet"),
        ("bench.score.novel", "import importlib\nimportlib.import_module('prunebench.bench.lab.train')", "never meet"),
        ("bench.score.novel", "from ..lab import train", "never meet"),
        ("bench.score.novel", "from prunebench.pruners import PRUNERS", "score leads to pruners"),
        ("bench.grid.novel", "from prunebench.bench.cli import show", "the roof"),
        ("leaderboard.novel", "from prunebench.bench.score.flags import Flag", "reads records alone"),
        ("leaderboard.novel", "import torch", "works without it"),
        ("pruners.novel", "from prunebench.bench.score.scoring import score", "knows the root of bench and the lab"),
        ("pruners.novel", "from prunebench.pruners.imp import IMP", "imports another pruner"),
        ("pruners.novel", "from . import baselines", "imports another pruner"),
    ],
)
def test_a_forbidden_import_is_found(module, source, said):
    assert any(said in fault for fault in faults(graph({f"prunebench.{module}": source})))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.score.novel", "from prunebench.bench.attacks import apgd\nfrom . import flags\nimport torch"),
        ("bench.lab.novel", "from .train import fit\nfrom prunebench.bench.executor import fast"),
        ("bench.cli.novel", "from prunebench.leaderboard import table\nfrom prunebench.pruners import PRUNERS"),
        ("pruners.novel", "import torch\nfrom prunebench.bench.lab.lab import Lab"),
        ("leaderboard.novel", "from prunebench.bench.record import Record"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert faults(graph({f"prunebench.{module}": source})) == []


def test_the_page_shows_every_room_and_root_file():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page[page.index("## The folders") : page.index("## What is installed")]
    assert missing(tree) == set()
    assert missing(tree.replace("── lab ", "── shed ").replace("seeds,", "")) == {"lab", "seeds"}  # the twin


def missing(tree: str) -> set[str]:
    """The rooms and root files of bench that `tree` does not name."""
    rooms_ = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")}
    files_ = {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__init__"}
    absent = {name for name in rooms_ if f"── {name} " not in tree}
    return absent | {name for name in files_ if not re.search(rf"\b{name}\b", tree)}


def import_without_torch(*modules: str) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a fresh process in which torch and all that needs it cannot be imported."""
    # Not by None in sys.modules: scipy asks whether torch is there, and means to find it whole.
    block = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {sorted(TORCH)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
    command = [sys.executable, "-c", block + "\n".join(f"import {module}" for module in modules)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_leaderboard_works_without_torch():
    done = import_without_torch("prunebench", *(name for name in FILES if room(name) == LEADERBOARD))
    assert done.returncode == 0, done.stderr


def test_torch_is_missed_where_it_is_needed():
    done = import_without_torch("prunebench.bench.models")
    assert done.returncode != 0
    assert "torch" in done.stderr


def test_nothing_is_importable_under_two_names():
    """In the checkout the folders lie where Python finds them by their short names, too."""
    for name in ("bench", "pruners", "leaderboard"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and f"This is prunebench.{name}" in done.stderr
