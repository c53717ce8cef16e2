"""What lies beside a record: the net comes with it, and nothing of another net stays."""

from __future__ import annotations

import os
import shutil

import pytest

from prunebench.bench.beside import beside, make_room, net_path, publish, signature_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pairs_path, proposals_path
from tests.support.records import make, refusal


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job(folder, data=b"a net", **changes):
    """The folder of a job: net, record, outcomes, proposals, pairs; returns net and record."""
    net, path = folder / "net.safetensors", folder / "record.json"
    write_bytes(net, data)
    for of in (outcomes_path, proposals_path, pairs_path):
        write_bytes(of(path), of(path).name.encode())
    make(net={"sha256": sha256_of(data)}, **changes).save(path)
    return net, path


def test_the_net_is_published_with_its_record_and_is_no_copy(tmp_path):
    net, record = job(tmp_path / "job")
    target = tmp_path / "records" / "imp.json"
    publish(record, net, target)
    assert set(contents(target.parent)) == {
        "imp.json",
        "imp.outcomes.npz",
        "imp.proposals.npz",
        "imp.pairs.npz",
        "imp.net.safetensors",
    }
    assert net.samefile(net_path(target))
    before = contents(target.parent)
    publish(record, net, target)  # again
    assert contents(target.parent) == before


def test_a_published_net_stays_when_the_job_is_trained_anew(tmp_path):
    net, record = job(tmp_path / "job")
    publish(record, net, tmp_path / "imp.json")
    write_bytes(net, b"another net")
    assert net_path(tmp_path / "imp.json").read_bytes() == b"a net"


def test_without_hard_links_it_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    net, record = job(tmp_path / "job")
    publish(record, net, tmp_path / "imp.json")
    assert net_path(tmp_path / "imp.json").read_bytes() == b"a net"
    assert not net.samefile(net_path(tmp_path / "imp.json"))


def test_what_belonged_to_another_record_goes(tmp_path):
    net, record = job(tmp_path / "job")
    target = tmp_path / "imp.json"
    publish(record, net, target)
    signature_path(target).write_bytes(b"signed")
    publish(record, net, target)
    assert signature_path(target).exists()  # the same bytes are still what was signed
    proposals_path(record).unlink()
    make(net={"sha256": sha256_of(b"a net")}, robust=51).save(record)
    publish(record, net, target)
    assert [path.exists() for path in beside(target)] == [True, False, True, True, False]
    refused = tmp_path / "job" / "refusal.json"
    refusal().save(refused)
    publish(refused, None, target)
    assert not any(path.exists() for path in beside(target)) and target.read_bytes() == refused.read_bytes()


@pytest.fixture
def scored(tmp_path):
    """A folder with the whole score of one net, and another net elsewhere."""
    net, record = job(tmp_path / "one")
    write_bytes(tmp_path / "one" / "journal" / "shard-0.json", b"{}")
    write_bytes(signature_path(record), b"signed")
    other = tmp_path / "two" / "net.safetensors"
    write_bytes(other, b"another net")
    return net, record, other


def test_a_folder_of_another_net_is_refused_and_stays_as_it_is(scored):
    _, record, other = scored
    before = contents(record.parent)
    with pytest.raises(PrunebenchError, match=r"already holds the record of another net \(sha256 .*--out.*--force"):
        make_room(record.parent, other, str(other), force=False)
    assert contents(record.parent) == before


def test_force_leaves_nothing_of_the_other_net(scored):
    net, record, other = scored
    refusal().save(record.with_name("refusal.json"))
    make_room(record.parent, other, str(other), force=True)
    assert set(contents(record.parent)) == {net.name, "journal/net"}


def test_the_same_net_finds_all_that_it_left(scored):
    net, record, _ = scored
    before = contents(record.parent)
    for force in (False, True):
        make_room(record.parent, net, str(net), force=force)
        left = contents(record.parent)
        assert left.pop("journal/net").decode() == sha256_of(b"a net") and left == before


def test_a_refusal_holds_nothing_that_could_be_lost(tmp_path):
    net = tmp_path / "one" / "net.safetensors"
    write_bytes(net, b"a net")
    for theirs in (b"a net", b"another net", None):
        refusal(net=theirs and sha256_of(theirs)).save(net.with_name("refusal.json"))
        make_room(net.parent, net, str(net), force=False)


def test_what_is_no_record_is_not_overwritten_either(tmp_path):
    net, record = job(tmp_path)
    record.write_text('{"mine": 1}')
    with pytest.raises(PrunebenchError, match="already holds a damaged record; name another folder"):
        make_room(tmp_path, net, str(net), force=False)
    assert record.read_text() == '{"mine": 1}'


def test_a_journal_counts_for_the_net_that_began_it(tmp_path):
    """A scoring elsewhere was killed: the same net goes on there, another one begins anew."""
    net, _ = job(tmp_path / "one")
    other = tmp_path / "two" / "net.safetensors"
    write_bytes(other, b"another net")
    out, entry = tmp_path / "out", tmp_path / "out" / "journal" / "shard-0.json"
    make_room(out, net, str(net), force=False)
    write_bytes(entry, b"{}")
    make_room(out, net, str(net), force=False)
    assert entry.exists()
    make_room(out, other, str(other), force=False)
    assert not entry.exists()


def test_a_journal_that_run_left_beside_a_net_counts(tmp_path):
    net, record = job(tmp_path)
    record.unlink()
    write_bytes(tmp_path / "journal" / "shard-0.json", b"{}")
    make_room(tmp_path, net, str(net), force=False)
    assert (tmp_path / "journal" / "shard-0.json").exists()
    shutil.copytree(tmp_path / "journal", tmp_path / "out" / "journal")
    (tmp_path / "out" / "journal" / "net").unlink()
    make_room(tmp_path / "out", net, str(net), force=False)
    assert set(contents(tmp_path / "out")) == {"journal/net"}  # nobody says whose it was


def test_a_net_of_the_zoo_is_known_by_its_job(tmp_path):
    make("robustbench:A", 0.0).save(tmp_path / "record.json")
    make_room(tmp_path, tmp_path / "none", "robustbench:A", force=False)
    with pytest.raises(PrunebenchError, match="of another net"):
        make_room(tmp_path, tmp_path / "none", "robustbench:B", force=False)
