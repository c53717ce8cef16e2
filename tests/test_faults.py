"""An error in a pruner's own code is one sentence, with the line of its own file."""

from __future__ import annotations

import json

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.faults import fault
from prunebench.pruners import resolve

MINE = """from dataclasses import dataclass
import json

@dataclass(frozen=True)
class Mine:
    def __call__(self, job, lab):
        return self.inner()

    def inner(self):
        return json.loads("{")
"""


def raised(file):
    with pytest.raises(json.JSONDecodeError) as error:
        resolve(f"{file}:Mine").pruner(None, None)
    return error.value


def test_the_line_is_the_innermost_of_the_pruners_own_file(tmp_path, monkeypatch):
    """Line 10 called the library that raised the error; line 7 called line 10."""
    (tmp_path / "mine.py").write_text(MINE)
    error = raised(tmp_path / "mine.py")
    said = f"mine.py, line 10: JSONDecodeError: {error}"
    assert fault(error, [f"{tmp_path / 'mine.py'}:Mine"]) == said
    monkeypatch.chdir(tmp_path)
    assert fault(error, ["imp", "none.py:Mine", "mine.py:Mine"]) == said  # relative, after others


def test_an_error_from_elsewhere_names_no_line(tmp_path):
    """The twin: the same error, of which another file is asked."""
    (tmp_path / "mine.py").write_text(MINE)
    assert fault(raised(tmp_path / "mine.py"), ["imp"]).startswith("JSONDecodeError: ")
    assert fault(KeyError(), []) == "KeyError"


def test_an_error_at_import_is_a_sentence(tmp_path):
    (tmp_path / "mine.py").write_text(f"{MINE}\nprint(undefined)\n")
    with pytest.raises(PrunebenchError, match=r"mine.py, line 12: NameError: name 'undefined' is not defined\.$"):
        resolve(f"{tmp_path / 'mine.py'}:Mine")
