"""A pruner is named by its name, its class or its file, with options; what cannot be read is one sentence."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from prunebench import pruners
from prunebench.bench import spec
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of
from prunebench.bench.job import Job
from prunebench.pruners import PRUNERS, resolve
from prunebench.pruners.baselines import Dense, Magnitude, Random
from prunebench.pruners.imp import IMP

MINE = '''
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    """Mine prunes."""

    rounds: int = 3
    share: float = 0.5
    name: str = "a"
    fast: bool = False
    prunes: ClassVar[bool] = False

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds} is below 1")

    def __call__(self, job, lab):
        return {}

@dataclass(frozen=True)
class NoPruner:
    x: int = 0

class Plain:
    def __call__(self, job, lab):
        return {}
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_pruner.py"
    path.write_text(MINE)
    return path


def refused(text):
    """The one sentence with which the pruner `text` is refused."""
    with pytest.raises(PrunebenchError) as error:
        resolve(str(text))
    assert "\n" not in str(error.value)
    return str(error.value)


# Names


def test_the_built_in_pruners():
    assert {name: PRUNERS[name] for name in ("dense", "random", "magnitude", "imp")} == {
        "dense": Dense,
        "random": Random,
        "magnitude": Magnitude,
        "imp": IMP,
    }
    assert list(PRUNERS) == sorted(PRUNERS) and len(PRUNERS) >= 4


@pytest.mark.parametrize("name", ["dense", "random", "magnitude", "imp"])
def test_a_name_alone_is_the_pruner_with_its_defaults(name):
    resolved = resolve(name)
    assert (resolved.name, resolved.options) == (name, {})
    assert resolved.pruner == PRUNERS[name]()
    assert resolved.prunes is (name != "dense")


def test_options_have_the_types_of_the_fields_and_only_changes_are_kept():
    resolved = resolve("magnitude:dense=0.25,lr=1,shuffle=TRUE")
    assert resolved.pruner == Magnitude(dense=0.25, lr=1.0, shuffle=True)
    assert resolved.options == {"dense": 0.25, "lr": 1.0, "shuffle": True}
    assert type(resolved.options["lr"]) is float
    assert resolve("magnitude:dense=0.5,shuffle=false").options == {}  # the defaults, spelled out
    assert resolve("imp:rounds=7").pruner == IMP(rounds=7)


def test_a_value_may_hold_a_colon():
    made = resolve("magnitude:pattern=2:4,lr=0.25")
    assert made.pruner == Magnitude(pattern="2:4", lr=0.25) and made.options == {"pattern": "2:4", "lr": 0.25}
    label = Job(pruner="magnitude", options=made.options, sparsity=0.5, seed=0).label
    assert resolve(label).pruner == made.pruner
    assert resolve("prunebench.pruners.baselines:Magnitude:pattern=2:4").pruner == Magnitude(pattern="2:4")
    with pytest.raises(PrunebenchError, match=r"refuses its options: pattern = '2:5' must be one of unstructured, 2:4"):
        resolve("magnitude:pattern=2:5")


def test_a_class_by_its_module():
    resolved = resolve("prunebench.pruners.baselines:Magnitude")
    assert (resolved.pruner, resolved.name) == (Magnitude(), "prunebench.pruners.baselines.Magnitude")
    assert resolve("prunebench.pruners.imp:IMP:rounds=2").pruner == IMP(rounds=2)


def test_a_class_in_a_file(mine, monkeypatch):
    resolved = resolve(f"{mine}:Mine:rounds=4,share=0.1,name=b,fast=true")
    assert resolved.options == {"rounds": 4, "share": 0.1, "name": "b", "fast": True}
    assert resolved.name == "my_pruner.Mine"  # no path of a machine gets into a record
    assert resolved.prunes is False
    monkeypatch.chdir(mine.parent)
    assert resolve("my_pruner.py:Mine").name == "my_pruner.Mine"


def test_two_files_of_one_name_are_two_pruners(mine, tmp_path):
    other = tmp_path / "other" / "my_pruner.py"
    other.parent.mkdir()
    other.write_text(MINE.replace("rounds: int = 3", "rounds: int = 30"))
    assert resolve(f"{mine}:Mine").pruner.rounds == 3
    assert resolve(f"{other}:Mine").pruner.rounds == 30
    assert resolve(f"{mine}:Mine").pruner.rounds == 3


def test_a_mended_pruner_is_another_pruner(mine):
    before = resolve(f"{mine}:Mine")
    assert before.source == sha256_of(mine.read_bytes()) == resolve(f"{mine}:Mine").source
    mine.write_text(MINE.replace("rounds: int = 3", "rounds: int = 5"))
    after = resolve(f"{mine}:Mine")
    assert after.source == sha256_of(mine.read_bytes()) != before.source
    assert after.pruner.rounds == 5
    assert resolve("imp").source != resolve("magnitude").source


def test_pruners_installed_by_others_are_found_by_name_and_imported_when_used(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine.parent))
    points = [
        EntryPoint("mine", "my_pruner:Mine", spec.GROUP),
        EntryPoint("broken", "no_such_module_here:Mine", spec.GROUP),
        EntryPoint("empty", "my_pruner:Missing", spec.GROUP),
    ]
    registry = type(PRUNERS)()
    monkeypatch.setattr(spec, "entry_points", lambda group: points)
    monkeypatch.setattr(pruners, "PRUNERS", registry)
    monkeypatch.setitem(sys.modules, "my_pruner", None)  # so that it is put back to what it was
    monkeypatch.delitem(sys.modules, "my_pruner")
    assert list(registry) == ["broken", "empty", "mine"]
    assert "my_pruner" not in sys.modules
    assert resolve("mine:rounds=9").options == {"rounds": 9}
    assert "my_pruner" in sys.modules
    del sys.modules["my_pruner"]
    assert pruners.summary("mine") == "Mine prunes. Options: rounds=3, share=0.5, name=a, fast=false."
    for name in ("broken", "empty"):
        said = refused(name)
        assert f"Cannot import the pruner {name!r}" in said
        assert said in pruners.summary(name)  # and the list of all pruners is still a list


def test_a_summary_is_a_line_and_the_options():
    assert pruners.summary("random").startswith("A random mask at initialisation")
    assert pruners.summary("random").endswith("Options: shuffle=false, pattern=unstructured.")


# Bad input


def test_an_unknown_name_lists_the_choices_and_the_nearest():
    said = refused("magnitud")
    assert "Unknown pruner 'magnitud'; did you mean 'magnitude'?" in said
    assert f"Choose from: {', '.join(sorted(PRUNERS))}." in said and "path/to/file.py:Class" in said
    assert {"awt", "dense", "hydra", "imp", "iwi", "iwi-dense", "magnitude", "random"} <= set(PRUNERS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imp:round=3", "Unknown option of imp 'round'; did you mean 'rounds'? Choose from: "),
        ("imp:rounds=3,rewnd=2", "did you mean 'rewind'?"),
        ("dense:rounds=3", "Unknown option of dense 'rounds'. Choose from: shuffle."),
        ("imp:=3", "Unknown option of imp ''"),
        ("imp:rounds=3,rounds=4", "Option rounds of imp is given twice"),
        ("imp:rounds=three", "Option rounds='three' of imp is not of type int; its default is 4, written rounds=4."),
        ("imp:rounds=2.5", "is not of type int"),
        ("imp:rounds=", "is not of type int"),
        ("magnitude:dense=nan", "is not of type float"),
        ("magnitude:dense=-inf", "is not of type float"),
        (
            "imp:shuffle=yes",
            "Option shuffle='yes' of imp is not of type bool; its default is False, written shuffle=false.",
        ),
        ("imp:rounds=0", "refuses its options: rounds = 0 must be at least 1"),
        ("magnitude:dense=1", "refuses its options: dense = 1.0 must be in (0, 1)"),
        ("imp:rounds", "Cannot read the pruner 'imp:rounds'; write NAME:option=value"),
        ("imp:", "Cannot read the pruner 'imp:'"),
        (":IMP", "Cannot read the pruner ':IMP'"),
        (".imp:IMP", "Cannot read the pruner '.imp:IMP'"),
        ("=", "Cannot read the pruner '='"),
        ("imp:rounds=3:rewind=2", "Cannot read the pruner"),
        ("rounds=3", "Cannot read the pruner"),
        ("", "Unknown pruner ''"),
        ("no.such.module:IMP", "Cannot import the pruner's module 'no.such.module'"),
        ("prunebench.pruners.imp:IMPP", "Unknown class in prunebench.pruners.imp 'IMPP'; did you mean 'IMP'?"),
        ("prunebench.pruners.imp:masked", "Unknown class in prunebench.pruners.imp 'masked'"),
        ("none/at/all.py:IMP", "There is no file none/at/all.py"),
        ("prunebench.bench.protocol:Job", "Unknown class in prunebench.bench.protocol 'Job'"),
    ],
)
def test_what_cannot_be_read_says_why(text, said):
    assert said in refused(text)


def test_classes_that_are_no_pruners(mine):
    assert resolve(f"{mine}:Mine").pruner.rounds == 3
    assert "is not a pruner: write a frozen dataclass with __call__" in refused(f"{mine}:NoPruner")
    assert "put @dataclass(frozen=True) above it" in refused(f"{mine}:Plain")
    assert "Unknown class in" in refused(f"{mine}:Nothing")
    assert "is a file, but a pruner is a class in it" in refused(str(mine))
    assert "did you mean 'Mine'?" in refused(f"{mine}:Mime")
    assert "rounds = 0 is below 1" in refused(f"{mine}:Mine:rounds=0")


@pytest.mark.parametrize(("text", "said"), [("import nothing_there", "nothing_there"), ("def (", "invalid syntax")])
def test_a_file_that_cannot_be_imported(tmp_path, text, said):
    path = tmp_path / "bad.py"
    path.write_text(text)
    for _ in range(2):  # and what failed once is not taken for imported
        assert said in refused(f"{path}:Mine")


def test_an_option_of_a_type_that_no_command_line_can_spell(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(MINE.replace("rounds: int = 3", "rounds: int | None = 3"))
    assert resolve(f"{path}:Mine:share=0.25").options == {"share": 0.25}
    assert "is not of type int | None; its default is 3, written rounds=3." in refused(f"{path}:Mine:rounds=4")
