"""The arrows between the rooms: who may import whom. Every check has a twin that shows it can fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("bench", "pruners", "leaderboard")

GROUND = frozenset(
    {"beside", "bounded", "compare", "errors", "files", "proposals", "protocol", "record", "seeds", "signature"}
    | {"sources", "spec", "stats", "verdict"}
)
# From the ground up. A module may import those below it and its own side of its layer ("|"), without cycles.
LAYERS = (
    "beside bounded compare errors files proposals protocol record seeds signature sources spec stats verdict",
    "machine extras curves pickled",
    "data models mask",
    "checkpoint attacks autoattack executor capture handover host peers sandbox zoo",
    "budget train lab stages | wide collapse referee journal trial score flags probes",
    "player verify rescore claim conformance task run engine cluster plan rehearsal pace show scaffold ingest",
    "cli pytest_plugin",
)
# Who may start pruners, and who may make tables.
REGISTRY_USERS = frozenset({"conformance", "player", "plan", "cli", "pytest_plugin"})
LEADERBOARD_USERS = frozenset({"cli", "pytest_plugin"})
FOR_PRUNERS = GROUND | {"mask", "lab"}
TORCH = frozenset({"torch", "torchvision", "pyautoattack", "torchattacks", "robustbench"})


def allowed_bench() -> dict[str, frozenset[str]]:
    """For every module of bench, the modules of bench that it may import."""
    allowed: dict[str, frozenset[str]] = {}
    below: frozenset[str] = frozenset()
    for layer in LAYERS:
        sides = [frozenset(side.split()) for side in layer.split("|")]
        for side in sides:
            allowed |= {module: below | (side - {module}) for module in side}
        below = below.union(*sides)
    return allowed


ALLOWED = allowed_bench()


def imports(source: str, module: str, *, package: bool = False) -> Iterator[str]:
    """The dotted names that `source`, the text of `module`, imports: at its top, in its functions, or by string.

    `from bench import score` gives `bench.score`, relative imports are resolved, `package`: it is an `__init__.py`.
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


def part(name: str) -> str:
    """The module of a room that a dotted name lies in: `bench.executor.fold` is `executor`, a room itself ''."""
    return [*name.split("."), ""][1]


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """What `source` imports though `module` may not, as sentences."""
    room, name = module.split(".")[0], part(module)
    if room == "bench" and name and name not in ALLOWED:
        return [f"{module} has no place in LAYERS: give it one"]
    found = []
    for target in imports(source, module, package=package):
        if (fault := _fault(room, name, target)) is not None:
            found.append(f"{module} imports {target}: {fault}")
    return found


def _fault(room: str, name: str, target: str) -> str | None:
    target_room, target_name = target.split(".")[0], part(target)
    if target_room in TORCH:
        no_torch = room == "leaderboard" or (room == "bench" and name in GROUND | {""})
        return "the ground and the leaderboard work without torch" if no_torch else None
    if target_room not in ROOMS or (target_room == room and target_name == name):
        return None
    match room, target_room:
        case "bench", "bench":
            return None if target_name in ALLOWED.get(name, ()) else "arrows point down only"
        case "bench", "pruners":
            # `PRUNERS` is an attribute of the registry; `pruners.imp` would be one pruner's file.
            if name not in REGISTRY_USERS:
                return "only what starts jobs knows pruners"
            return "the registry names the pruners" if (ROOT / "pruners" / f"{target_name}.py").exists() else None
        case "bench", "leaderboard":
            return None if name in LEADERBOARD_USERS else "only the command line makes tables"
        case "pruners", "bench":
            return None if target_name in FOR_PRUNERS else "a pruner knows the ground, mask and lab"
        case "pruners", "pruners":
            return None if name == "" else "what two pruners share belongs in lab or mask"
        case "leaderboard", "bench":
            return None if target_name in GROUND else "the leaderboard reads records and knows the ground alone"
        case "leaderboard", "leaderboard":
            return None
    return f"{room} does not know {target_room}"


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_import_follows_the_arrows():
    found = [
        fault
        for path in files()
        for fault in violations(path.read_text(encoding="utf-8"), module_of(path), package=path.name == "__init__.py")
    ]
    assert files(), "nothing was checked"
    assert not found, "\n".join(found)


def test_no_cycles():
    graph = {module_of(path): bench_imports(path.read_text(encoding="utf-8"), path) for path in files()}
    assert find_cycle(graph) is None


def bench_imports(source: str, path: Path) -> set[str]:
    module = module_of(path)
    found = imports(source, module, package=path.name == "__init__.py")
    return {f"bench.{part(name)}" for name in found if name.startswith("bench.")} - {module, f"bench.{part(module)}"}


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_a_cycle_is_found():
    assert find_cycle({"bench.train": {"bench.lab"}, "bench.lab": {"bench.train"}}) is not None


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.score", "import bench.lab"),
        ("bench.score", "from bench import train"),
        ("bench.score", "from pruners import PRUNERS"),
        ("bench.score", "def f():\n    from bench.lab import Lab"),
        ("bench.score", "import importlib\nimportlib.import_module('bench.train')"),
        ("bench.lab", "from .score import score"),
        ("bench.executor.fold", "from ..train import fit"),
        ("bench.mask", "from bench.checkpoint import seal"),
        ("bench.machine", "from bench.data import load"),
        ("bench.stats", "import torch"),
        ("bench.record", "def f():\n    from torch import Tensor"),
        ("bench.train", "import leaderboard.table"),
        ("bench.run", "from pruners.imp import IMP"),
        ("bench.cli", "from pruners.imp import IMP"),
        ("bench", "from bench.score import score"),
        ("bench.novelty", ""),
        ("pruners.imp", "from bench.score import score"),
        ("pruners.imp", "from bench import train"),
        ("pruners.imp", "from pruners.baselines import Magnitude"),
        ("pruners.imp", "from . import baselines"),
        ("pruners.imp", "import leaderboard"),
        ("leaderboard.table", "import torch"),
        ("leaderboard.table", "from bench.mask import keep_largest"),
        ("leaderboard.render", "import pruners"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source", "package"),
    [
        ("bench.score", "import numpy, torch\nfrom bench.attacks import apgd\nfrom bench import flags", False),
        ("bench.lab", "from .train import fit", False),
        ("bench.executor", "from .fold import fold\nfrom bench.mask import prunable", True),
        ("bench.conformance", "from pruners import PRUNERS\nfrom bench import lab", False),
        ("bench.cli", "import bench.run, leaderboard.table\nfrom pruners import PRUNERS", False),
        ("pruners", "from pruners.imp import IMP\nfrom bench.errors import unknown", True),
        ("pruners.imp", "import torch\nfrom bench.lab import Lab\nfrom bench.protocol import Job", False),
        ("leaderboard.render", "from leaderboard.table import Row\nfrom bench.record import Record", False),
    ],
)
def test_an_allowed_import_passes(module, source, package):
    assert violations(source, module, package=package) == []


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


def test_ground_and_leaderboard_work_without_torch():
    modules = [
        module_of(path)
        for path in files()
        if path.parts[len(ROOT.parts)] == "leaderboard" or module_of(path) in {f"bench.{name}" for name in GROUND}
    ]
    done = import_without_torch(*modules)
    assert done.returncode == 0, done.stderr


def test_torch_is_missed_where_it_is_needed():
    done = import_without_torch("bench.models")
    assert done.returncode != 0
    assert "torch" in done.stderr
