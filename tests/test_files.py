"""Files are whole or absent, and folders have one writer, also when the disk is full or a process dies."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prunebench.bench.errors import LONGEST, PrunebenchError, Refused
from prunebench.bench.files import (
    canonical_json,
    digest_outside,
    open_outside,
    read_known,
    read_outside,
    sha256_of,
    sole_user,
    write_aside,
    write_bytes,
    write_json,
)


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
from prunebench.bench.errors import LONGEST, PrunebenchError, Refused
from prunebench.bench.files import write_bytes
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
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        with pytest.raises(PrunebenchError, match=r"Could not write .*; name a folder where a file is\."):
            write_bytes(path, b"")
    with pytest.raises(PrunebenchError, match="Cannot use the folder"), sole_user(tmp_path / "a"):
        pass


HOLD = """
import sys
from pathlib import Path
from prunebench.bench.files import sole_user
with sole_user(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    with run(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PrunebenchError, match="Another prunebench command is using"), sole_user(tmp_path):
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


READERS = {
    "read": read_outside,
    "digest": digest_outside,
    "known": lambda path, what, largest: read_known(path, "0" * 64, what, largest, missing="m", other="o"),
}


def hostile(folder: Path, kind: str) -> Path:
    """Something at the path `folder`/a that is no plain small file."""
    path = folder / "a"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    elif kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(101)
    else:
        path.symlink_to(
            {
                "endless": "/dev/zero",
                "random": "/dev/urandom",
                "terminal": "/dev/tty",
                "grows": "/proc/self/maps",
                "lies": "/proc/self/mountinfo",
            }[kind]
        )
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="these files are Linux's")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("endless", "is a device, not a regular file"),
        ("random", "is a device"),
        ("terminal", "is a device|Cannot read"),
        ("pipe", "is a pipe"),
        ("link to a pipe", "is a pipe"),
        ("socket", "Cannot read"),
        ("directory", "is a directory"),
        ("loop", "Cannot read"),
        ("large", "larger than 100 bytes"),
        ("grows", "larger than 100 bytes"),
        ("lies", "larger than 100 bytes"),
    ],
)
def test_only_regular_files_of_a_known_size_are_read(kind, said, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = hostile(tmp_path, kind)
    if kind in ("grows", "lies"):
        assert stat.S_ISREG(path.stat().st_mode) and path.stat().st_size == 0  # it says that it is empty
    with pytest.raises(PrunebenchError, match=said):
        READERS[reader](path, "a thing", 100)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "none", "a/b"])
def test_paths_that_are_none_are_one_sentence(name, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(PrunebenchError, match=r"Cannot read .*, a thing"):
        read_outside(tmp_path / name, "a thing", 100)


def test_a_sound_file_is_read_whole_also_through_links(tmp_path):
    for size in (0, 1, 100):
        (tmp_path / "b").write_bytes(bytes(size))
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").symlink_to("b")
        assert read_outside(tmp_path / "a", "a thing", 100) == bytes(size)
        assert digest_outside(tmp_path / "a", "a thing", 100) == sha256_of(bytes(size))


def test_a_file_that_grows_while_it_is_read_is_read_no_further(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.fstat
    path.write_bytes(bytes(101))

    def small(handle):
        found = list(real(handle))
        found[stat.ST_SIZE] = 50
        return os.stat_result(found)

    monkeypatch.setattr("prunebench.bench.files.os.fstat", small)
    with pytest.raises(PrunebenchError, match="larger than 100 bytes"):
        read_outside(path, "a thing", 100)
    assert len(read_outside(path, "a thing", 101)) == 101


def test_a_file_that_is_exchanged_after_it_was_opened_is_still_the_one_judged(tmp_path):
    """No moment between looking and reading: the twin looks at the path first, and is led elsewhere."""
    path, other = tmp_path / "a", tmp_path / "other"
    path.write_bytes(b"sound")
    other.write_bytes(b"secret")
    with open_outside(path, "a thing", 100) as file:
        path.unlink()
        path.symlink_to(other)
        assert file.read() == b"sound"
    assert path.read_bytes() == b"secret"


def test_a_complaint_may_carry_a_check(tmp_path):
    (tmp_path / "a").write_bytes(bytes(101))
    for name, check in (("none", "file"), ("a", "format"), (".", "file")):
        with pytest.raises(Refused) as refused:
            read_outside(tmp_path / name, "a net", 100, complain=Refused)
        assert refused.value.check == check


def test_no_handle_stays_open(tmp_path):
    (tmp_path / "a").write_bytes(bytes(101))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for name in ("a", "none", "."):
        with pytest.raises(PrunebenchError):
            read_outside(tmp_path / name, "a thing", 100)
    read_outside(tmp_path / "a", "a thing", 101)
    assert (len(list(Path("/proc/self/fd").iterdir())) if before else 0) == before
