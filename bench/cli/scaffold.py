"""A template for a new pruner: a folder with the method, its test and its registration."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
import tempfile
from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path
from string import Template

from prunebench.bench.errors import PrunebenchError

_METHOD = '''"""$title: a pruner for prunebench. Replace this method with your own."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, keep_largest_by_layer, rescaled, shuffled, uniform


@dataclass(frozen=True)
class $cls:
    """Keep each layer's largest weights at initialisation, then spend the whole budget on training them.

    A starting point that runs, not a method to publish: the mask is chosen before any training. The fields are
    the options. `lr`: the peak learning rate as a multiple of the protocol's. `shuffle`: permute the kept positions
    inside each layer, which shows what the method adds to its layer densities.
    """

    lr: float = 1.0
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr} must be above 0")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Choose the masks, then train under them; the mask of the result is `weight != 0`."""
        weights = lab.initial()
        scores = {name: weights[name].abs() for name in lab.shapes}
        masks = keep_largest_by_layer(scores, uniform(lab.shapes, lab.keep))
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        rate = self.lr * lab.protocol.training.lr
        return lab.fit("train", rescaled(weights, masks), epochs=lab.epochs, masks=masks, lr=rate).weights
'''

_TEST = '''"""$title obeys the rules of prunebench."""

from __future__ import annotations

import pytest
from prunebench.bench.conformance.suite import check

from $module import $cls


def test_it_passes_the_conformance_suite() -> None:
    report = check("$module:$cls")
    assert report.holds, str(report)


def test_a_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        $cls(lr=0.0)
'''

_PROJECT = """[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "prunebench-$registered"
version = "0.1.0"
description = "$title: a pruner for prunebench"
requires-python = ">=3.11"
dependencies = ["prunebench"]

# The name by which prunebench knows it once it is installed: `prunebench list pruners`.
[project.entry-points."prunebench.pruners"]
$registered = "$module:$cls"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""

_README = """# $title

A pruner for prunebench: `$module.py` is the method, `test_$module.py` its test, `pyproject.toml` its registration.

```sh
prunebench check $module.py:$cls          # the rules, in seconds
prunebench train digits-linf --pruner $module.py:$cls --sparsity 0.95 --out out   # one net
prunebench run digits-linf --pruner $module.py:$cls --pruner imp --sparsity 0.95 --out runs   # against IMP, ranked
python -m pytest                          # the test
pip install --no-deps .                   # afterwards, its name is `$registered`
```

Options follow the class: `$module.py:$cls:lr=0.5,shuffle=true`.
"""

_FILES = {"$module.py": _METHOD, "test_$module.py": _TEST, "pyproject.toml": _PROJECT, "README.md": _README}


def new(name: str, out: Path, *, taken: Container[str] = ()) -> list[Path]:
    """Write the folder `out`/`name` and return its files, the pruner first; all of them or none.

    `taken`: the names of existing pruners. Raises PrunebenchError for a name that is not a plain word, or that a module
    or pruner already has, and for a folder that exists.
    """
    registered = name.replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name.endswith("_") or keyword.iskeyword(name):
        raise PrunebenchError(
            f"{name!r} cannot name a file and a class; write at most 40 lower-case letters, digits and underscores, a "
            "letter first, and no keyword of Python, for example my_pruner."
        )
    if registered in taken or name in taken:
        raise PrunebenchError(f"A pruner {registered!r} already exists; choose another name.")
    target = out / name
    if target.exists() or target.is_symlink():
        raise PrunebenchError(f"{target} already exists and is not overwritten; choose another name or another --out.")
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise PrunebenchError(f"A module {name!r} already exists, which {name}.py would hide; choose another name.")
    words = {
        "module": name,
        "registered": registered,
        "cls": _class(name),
        "title": name.replace("_", " ").capitalize(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out, prefix=f".{name}."))
        try:
            for file, text in _FILES.items():
                (aside / Template(file).substitute(words)).write_text(
                    Template(text).substitute(words), encoding="utf-8"
                )
            aside.chmod(0o755)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise PrunebenchError(f"Cannot write {target} ({error.strerror}); name another folder with --out.") from error
    return [target / Template(file).substitute(words) for file in _FILES]


def spec(method: Path) -> str:
    """The command-line name of the pruner that `new` wrote to the file `method`."""
    return f"{method}:{_class(method.stem)}"


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
