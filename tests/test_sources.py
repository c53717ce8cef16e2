"""What code a result rests on is found by its imports, so nothing that matters is left out of its hash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.bench import machine
from prunebench.bench.sources import closure

HERE = machine.HERE  # the package, in which the rooms of the checkout are links
BENCH = HERE / "bench"
ROOTS = {"prunebench.bench.lab.lab": machine.training_code, "prunebench.bench.score.cascade": machine.attack_code}


@pytest.mark.parametrize("module", ROOTS)
def test_every_module_that_is_imported_is_in_the_closure(module):
    """As a fresh interpreter sees it."""
    code = (
        f"import sys, {module}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'prunebench'), sep='\\n')"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent, timeout=120
    ).stdout
    loaded = {Path(line) for line in said.split("\n") if line}
    assert len(loaded) > 15 and BENCH / "seeds.py" in loaded
    assert loaded <= set(closure([module], HERE))


def copy(folder):
    """The package as a wheel holds it, to be changed."""
    ignored = shutil.ignore_patterns("__pycache__", "records", "templates")
    return shutil.copytree(HERE, folder / "prunebench", ignore=ignored)


@pytest.mark.parametrize("module", ROOTS)
@pytest.mark.parametrize(
    ("file", "old", "new", "other"),
    [
        (
            "bench/seeds.py",
            'return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1',
            "return 0",
            True,
        ),
        ("bench/attacks/pgd.py", "", "# a line\n", True),
        ("bench/executor/kernels.cpp", "", "// a line\n", True),
        ("bench/executor/weights.py", "", "# a line\n", True),
        ("bench/cli/main.py", "", "# a line\n", False),
        ("bench/cli/show.py", "", "# a line\n", False),
        ("bench/PROTOCOL.md", "", "a line\n", False),
    ],
)
def test_a_change_of_what_matters_is_another_code(module, file, old, new, other, tmp_path, monkeypatch):
    here = copy(tmp_path)
    monkeypatch.setattr(machine, "HERE", here)
    before = ROOTS[module].__wrapped__()
    text = (here / file).read_text()
    assert old in text
    (here / file).write_text(text.replace(old, new) if old else text + new)
    assert (ROOTS[module].__wrapped__() != before) == other


def test_the_twin_a_list_leaves_a_module_out(tmp_path, monkeypatch):
    """A training that begins to import another module has that module in its hash, though nobody names it."""
    here = copy(tmp_path)
    extra, train = here / "bench" / "extra.py", here / "bench" / "lab" / "train.py"
    extra.write_text("X = 1\n")
    train.write_text(train.read_text() + "\n\ndef more():\n    from prunebench.bench.extra import X\n")
    assert extra in closure(["prunebench.bench.lab.lab"], here)
    assert extra not in closure(["prunebench.bench.attacks.suite"], here)


def test_names_are_followed_through_packages_and_relative_imports(tmp_path):
    root = tmp_path / "room"
    for name, text in {
        "__init__.py": "",
        "a.py": "from . import b\nimport room.pack.deep as deep\nimport os",
        "b.py": "if True:\n    try:\n        from .c import thing\n    except ImportError:\n        from room import d",
        "c.py": "from room.a import nothing",
        "d.py": "",
        "e.py": "import room.f",
        "f.py": "",
        "pack/__init__.py": "from .. import e",
        "pack/deep.py": "",
        "pack/other.py": "",
        "pack/code.cpp": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text)
    found = {path.relative_to(root).as_posix() for path in closure(["room.a"], root)}
    assert found == {
        "__init__.py",
        "a.py",
        "b.py",
        "c.py",
        "d.py",
        "e.py",
        "f.py",
        "pack/__init__.py",
        "pack/deep.py",
        "pack/code.cpp",
    }
