"""Files are whole or absent, and folders have one writer, also when the disk is full or a process dies."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.errors import LONGEST, PrunebenchError
from bench.files import canonical_json, sha256_of, sole_user, write_aside, write_bytes, write_json


def run(code, *arguments):
    """Python code in a process of its own, still running."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_sha256_of_the_standards_example():
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_canonical_json_depends_on_content_alone():
    assert (
        canonical_json({"b": [1, 0.5], "a": None})
        == canonical_json({"a": None, "b": [1, 0.5]})
        == b'{"a":null,"b":[1,0.5]}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


def test_a_write_makes_its_folder_and_replaces_the_old(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"old"  # renamed into place, never written over
    assert path.read_bytes() == b"new"


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(aside):
        aside.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_aside(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, signal, sys
from pathlib import Path
from bench.errors import LONGEST, PrunebenchError
from bench.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), bytes(int(sys.argv[2])))
except PrunebenchError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
@pytest.mark.parametrize(("size", "fails"), [(1000, False), (1001, True)])
def test_a_full_disk_is_an_error_with_a_way_out_and_keeps_the_old_file(tmp_path, size, fails):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with run(FULL, path, size) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert ("Could not write" in said and "make room" in said) == fails
    assert path.read_bytes() == (b"old" if fails else bytes(size))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(PrunebenchError, match="Could not write"):
        write_bytes(tmp_path / "a" / "b", b"")
    with pytest.raises(PrunebenchError, match="Cannot use the folder"), sole_user(tmp_path / "a"):
        pass


HOLD = """
import sys
from pathlib import Path
from bench.files import sole_user
with sole_user(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    with run(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PrunebenchError, match="Another prunebench command is at work"), sole_user(tmp_path):
            pass
        process.kill()
        process.wait(timeout=60)
    with sole_user(tmp_path):
        pass


def test_a_second_process_can_wait(tmp_path):
    waiting = HOLD.replace("sys.argv[1])", "sys.argv[1]), wait=True")
    with sole_user(tmp_path):
        process = run(waiting, tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
    said, _ = process.communicate("\n", timeout=60)
    assert (said, process.returncode) == ("held\n", 0)


def test_an_error_inside_is_not_taken_for_one_of_the_lock(tmp_path):
    with pytest.raises(PermissionError), sole_user(tmp_path):
        raise PermissionError
    with sole_user(tmp_path):  # and the folder is free again
        pass


def test_errors_are_one_printable_line_of_bounded_length():
    said = str(PrunebenchError("a\x1b[2J\nb\u202ec\ud800 \u00e9"))
    assert said == r"a\x1b[2J\nb\u202ec\ud800 é" and said.isprintable()
    for length in (LONGEST, LONGEST + 1, 10**6):
        said = str(PrunebenchError("value " + "x" * (length - 12) + " rule."))
        assert len(said) <= LONGEST and said.startswith("value ") and said.endswith(" rule.")
    assert said[:1100].count(" ... ") == 1
