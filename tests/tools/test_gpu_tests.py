"""The tests for a card run in several processes, and what passed is kept."""

from __future__ import annotations

import pytest

from tools import gpu_tests
from tools.gpu_board import LATE
from tools.gpu_tests import files, kept_and_run, outcomes

LOG = """
tests/grid/test_gpu.py::test_c PASSED [  3%]
[gw0] [  3%] PASSED tests/grid/test_gpu.py::test_a[mnist-cnn]
[gw3] [ 10%] FAILED tests/grid/test_gpu.py::test_b
[gw3] [ 13%] PASSED tests/grid/test_gpu.py::test_d
[gw3] [ 13%] ERROR tests/grid/test_gpu.py::test_d
[gw2] [100%] SKIPPED tests/grid/test_gpu.py::test_e
tests/grid/test_gpu.py::test_f
FAILED tests/grid/test_gpu.py::test_b - AssertionError: PASSED
"""


def test_pytest_tells_how_each_ended():
    assert {name[-6:]: how for name, how in outcomes(LOG).items()} == {
        "test_c": "PASSED",
        "t-cnn]": "PASSED",
        "test_b": "FAILED",
        "test_d": "ERROR",
        "test_e": "SKIPPED",
    }


@pytest.fixture
def run(tmp_path):
    """Calls of pytest that write `run.log` and end with `run.ends`; their arguments."""

    class Run:
        log, ends, asked = "", "", []

        def __call__(self, command):
            self.asked.append(command)
            (tmp_path / "log").write_text(self.log)
            return self.ends

    return Run()


def test_what_passed_is_not_run_again_and_what_failed_is(run, tmp_path):
    run.log, run.ends = LOG, "exit 1; see it"
    kept = tmp_path / "kept"
    line, good = kept_and_run(run, tmp_path / "log", kept)
    assert line.startswith("2 passed, 1 skipped, 2 failed: test_b, test_d; see ") and not good
    run.log, run.ends = "[gw0] [  3%] PASSED tests/grid/test_gpu.py::test_b\n", ""
    assert kept_and_run(run, tmp_path / "log", kept) == ("3 passed", True)
    left_out = [[word for word in command if word.startswith("--deselect")] for command in run.asked]
    names = ["test_a[mnist-cnn]", "test_c"]
    assert left_out == [[], [f"--deselect=tests/grid/test_gpu.py::{name}" for name in names]]
    assert all("filterwarnings=default" in command for command in run.asked)
    run.log, run.ends = "nothing to do\n", "exit 5; see it"
    assert kept_and_run(run, tmp_path / "log", kept) == ("3 passed", True)


@pytest.mark.parametrize(("ends", "good"), [(LATE[0], True), (LATE[1], True), ("exit 4; see it", False)])
def test_what_is_done_when_time_is_up_is_kept(ends, good, run, tmp_path):
    run.log, run.ends = "[gw0] [  3%] PASSED tests/grid/test_gpu.py::test_a\n", ends
    assert kept_and_run(run, tmp_path / "log", tmp_path / "kept") == (f"1 passed, {ends}", good)
    assert (tmp_path / "kept").read_text() == "tests/grid/test_gpu.py::test_a\n"


def test_every_file_with_tests_for_a_card_is_run(tmp_path, monkeypatch):
    assert "tests/grid/test_gpu.py" in files()
    (tmp_path / "tests" / "new").mkdir(parents=True)
    mark = "pytest.mark." + "gpu"  # in two parts, lest this file be taken for one of them
    for name, text in (("test_a.py", f"pytestmark = {mark}"), ("test_b.py", ""), ("nets.py", mark)):
        (tmp_path / "tests" / "new" / name).write_text(text)
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    assert files() == ["tests/new/test_a.py"]
