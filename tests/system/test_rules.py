"""Every rule of bench/PROTOCOL.md names what enforces it, and what it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from prunebench.bench.conformance.report import CHECKS

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "bench" / "PROTOCOL.md"
REFERENCE = re.compile(r"`((?:bench|pruners|leaderboard|tests|tools)/[\w./-]+\.py)(?:::(\w+))?`")
CHECK = re.compile(r"\bchecks? `([\w-]+)`(?: and `([\w-]+)`)?")


def names(path: Path) -> set[str]:
    """The functions, classes and constants at the top of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def faults(text: str) -> list[str]:
    """What is wrong with the rules in `text`: a row without an enforcer, a file, name or check that is not there."""
    found = []
    for path, name in REFERENCE.findall(text):
        if not (ROOT / path).is_file():
            found.append(f"there is no file {path}")
        elif name and name not in names(ROOT / path):
            found.append(f"{path} has no {name}")
    found += [
        f"there is no check {name}" for pair in CHECK.findall(text) for name in pair if name and name not in CHECKS
    ]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for row in rows:
        last = row.strip().strip("|").split(" | ")[-1]
        if not (
            REFERENCE.search(last) or CHECK.search(last) or last.strip().startswith(("enforced by", "not allowed,"))
        ):
            found.append(f"nothing enforces: {row}")
    return found


def test_every_rule_names_what_enforces_it_and_that_exists():
    text = RULES.read_text(encoding="utf-8")
    assert len(REFERENCE.findall(text)) > 50 and text.count("\n| ") > 40, "nothing was looked at"
    assert faults(text) == []


def test_every_check_of_the_suite_is_a_rule():
    told = {name for pair in CHECK.findall(RULES.read_text(encoding="utf-8")) for name in pair}
    assert CHECKS.keys() - {"runs"} <= told


@pytest.mark.parametrize(
    "row",
    [
        "| a wish | nobody |",
        "| a rule | `bench/nowhere.py` |",
        "| a rule | `bench/lab/lab.py::Laboratory` |",
        "| a rule | `tests/lab/test_lab.py::test_that_is_not_there` |",
        "| a rule | the check `politeness` |",
        "| `bench/lab/lab.py` in the wrong column | reviewers |",
    ],
)
def test_a_rule_without_an_enforcer_is_found(row):
    assert len(faults(f"# Rules\n\n| rule | enforced by |\n|---|---|\n{row}\n")) >= 1


def test_a_sound_rule_passes():
    assert faults("| rule | enforced by |\n|---|---|\n| a rule | `bench/lab/lab.py::Lab`, the check `files` |\n") == []
