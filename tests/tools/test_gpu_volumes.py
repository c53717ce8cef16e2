"""CIFAR-10 travels a few files at a time: known by their sums, whatever they are called."""

from __future__ import annotations

import hashlib
import lzma

import pytest

from tools import gpu_volumes
from tools.gpu_volumes import known, main, unpack

CONTENTS = {"data_batch_1": b"one", "data_batch_2": b"two", "test_batch": b"test", "batches.meta": b"names"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Files of a few bytes in place of the published ones."""
    sums = {hashlib.md5(data, usedforsecurity=False).hexdigest(): name for name, data in CONTENTS.items()}
    monkeypatch.setattr(gpu_volumes, "known", lambda: sums)


def bring(folder, **files):
    """`files` under other names: those ending in x are packed."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(lzma.compress(CONTENTS[content]) if name.endswith("x") else CONTENTS[content])
    return folder


def test_the_published_files_are_those_of_torchvision():
    assert sorted(known().values()) == [
        "batches.meta",
        *(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
    ]
    assert known()["40351d587109b95175f43aff81a1287e"] == "test_batch"


def test_two_go_along_with_each_call(tmp_path, capsys):
    data = tmp_path / "data"
    first, second = bring(tmp_path / "a", ax="test_batch", b="batches.meta"), bring(tmp_path / "b", cx="data_batch_2")
    assert unpack(first, data) == ["data_batch_1", "data_batch_2"]
    assert main(str(second), str(data)) == 0 and "missing data_batch_1\n" in capsys.readouterr().out
    assert main(str(bring(tmp_path / "c", ax="data_batch_1", bx="test_batch")), str(data)) == 0
    assert capsys.readouterr().out.endswith(": complete\n")
    found = {path.name: path.read_bytes() for path in (data / "cifar-10-batches-py").iterdir()}
    assert found == CONTENTS
    assert unpack(tmp_path / "no such folder", data) == []


@pytest.mark.parametrize("harm", ["foreign", "cut off", "flipped"])
def test_a_file_that_is_none_of_them_is_named(harm, tmp_path, capsys):
    (path,) = bring(tmp_path / "a", ax="test_batch").iterdir()
    whole = path.read_bytes()
    flipped = whole[:-20] + bytes([whole[-20] ^ 255]) + whole[-19:]
    path.write_bytes({"foreign": b"something", "cut off": whole[:-9], "flipped": flipped}[harm])
    assert main(str(tmp_path / "a"), str(tmp_path / "data")) == 2
    said = capsys.readouterr().err
    assert str(path) in said and "bring it again" in said and not (tmp_path / "data").exists()
