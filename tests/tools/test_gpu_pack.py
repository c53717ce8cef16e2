"""Results come home in volumes: records whole or not at all, nets as far as they came along."""

from __future__ import annotations

import gzip
import os
import tarfile

import pytest

from tools.gpu_pack import main, pack, unpack, volumes

MIB = 2**20
NETS = {"runs/jobs/a/net.safetensors": 300_000, "runs/jobs/b/net.safetensors": 1_500_000}


@pytest.fixture
def old(tmp_path):
    """Two nets, the smaller also beside its record; 1.3 MB that do not compress; and what is left out."""
    folder = tmp_path / "old"
    contents = {name: os.urandom(size) for name, size in NETS.items()}
    contents["runs/records/r/a.net.safetensors"] = contents["runs/jobs/a/net.safetensors"]
    contents |= {"runs/records/r/a.json": b"{}", "tests.log": os.urandom(1_300_000)}
    for name in ("runs/stages/s/done.safetensors", "data/cifar/x", "site/pip/y", "registered/z"):
        contents[name] = os.urandom(10)
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_but_stages_and_data_comes_home_records_first(old, tmp_path):
    made = pack(old, tmp_path / "home" / "pack", MIB)
    names = ["1-records.000", "1-records.001", "2-nets.000", "2-nets.001"]  # 1.3 MB, then 1.8 MB: one net is a link
    assert [path.name for path in made] == [f"pack.{name}" for name in names] == sorted(path.name for path in made)
    assert all(path.stat().st_size <= MIB for path in made)
    assert unpack(tmp_path / "home" / "pack", tmp_path / "new") == (5, True)
    expected = {
        name: data for name, data in content(old).items() if name.startswith(("runs/jobs", "runs/records", "tests"))
    }
    assert content(tmp_path / "new") == expected and len(expected) == 5


def test_what_is_there_is_newer(old, tmp_path):
    pack(old, tmp_path / "pack", MIB)
    (tmp_path / "new" / "runs" / "records" / "r").mkdir(parents=True)
    (tmp_path / "new" / "runs" / "records" / "r" / "a.json").write_text("newer")
    assert unpack(tmp_path / "pack", tmp_path / "new") == (4, True)
    assert (tmp_path / "new" / "runs" / "records" / "r" / "a.json").read_text() == "newer"


def test_a_smaller_pack_leaves_no_volume_of_the_larger(old, tmp_path):
    assert len(pack(old, tmp_path / "pack", MIB)) == 4
    assert [path.name for path in pack(old, tmp_path / "pack", 9 * MIB)] == ["pack.1-records.000", "pack.2-nets.000"]
    assert sorted(path.name for path in tmp_path.glob("pack.*")) == ["pack.1-records.000", "pack.2-nets.000"]


@pytest.mark.parametrize("lost", [1, 2])
def test_nets_that_do_not_come_along_cost_nothing_else(lost, old, tmp_path, capsys):
    """The smaller net is in the first volume of nets; without any of them only the records come."""
    made = pack(old, tmp_path / "pack", MIB)
    for path in made[-lost:]:
        path.unlink()
    assert main("unpack", str(tmp_path / "pack"), str(tmp_path / "new")) == 0
    found = content(tmp_path / "new")
    nets = {"runs/jobs/a/net.safetensors", "runs/records/r/a.net.safetensors"} if lost == 1 else set()
    assert found.keys() - {"runs/records/r/a.json", "tests.log"} <= nets and "tests.log" in found
    assert ("runs/jobs/a/net.safetensors" in found) is (lost == 1) and not list((tmp_path / "new").rglob("*.aside"))
    assert "not all nets came along" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["missing", "missing last", "flipped", "none"])
def test_records_that_are_not_whole_are_refused_and_nothing_is_written(harm, old, tmp_path, capsys):
    first, last = pack(old, tmp_path / "pack", MIB)[:2]
    if harm == "flipped":
        data = bytearray(last.read_bytes())
        data[-1] ^= 255
        last.write_bytes(data)
    elif harm != "none":
        (first if harm == "missing" else last).unlink()
    with_records = harm == "none"
    assert main("unpack", str(tmp_path / "pack"), str(tmp_path / "new")) == (0 if with_records else 2)
    assert (tmp_path / "new").exists() is with_records
    assert ("bring all of them again" in capsys.readouterr().err) is not with_records


def test_a_pack_writes_nowhere_but_into_its_folder(old, tmp_path):
    """Volumes come from elsewhere."""
    (tmp_path / "evil").mkdir()
    with gzip.open(tmp_path / "pack.1-records.000", "wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        info = tarfile.TarInfo("../evil/file")
        archive.addfile(info)
    with pytest.raises(tarfile.FilterError):
        unpack(tmp_path / "pack", tmp_path / "new")
    assert not list((tmp_path / "evil").iterdir())


def test_volumes_end_where_one_is_missing(tmp_path):
    for number in (0, 1, 3):
        (tmp_path / f"pack.2-nets.{number:03}").touch()
    assert [path.name[-3:] for path in volumes(tmp_path / "pack", "2-nets")] == ["000", "001"]
