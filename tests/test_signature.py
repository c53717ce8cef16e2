"""Signatures by OpenSSH: one that holds names its signer, and one that does not is never passed over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from prunebench.bench import signature
from prunebench.bench.beside import signature_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.record import Record
from prunebench.bench.signature import sign, signer
from prunebench.leaderboard.check import check, look, write
from tests.support.records import make, save

installed = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH (ssh-keygen) is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two keys without a passphrase: of alice and of mallory."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        call = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", str(folder / name)]
        subprocess.run(call, check=True)
    return folder


@pytest.fixture
def board(tmp_path, keys):
    """Two records of one row, and a list in which alice stands."""
    records = tmp_path / "records"
    paths = [save(records, make(seed=seed)) for seed in range(2)]
    allow(tmp_path, keys)
    return records, paths


def allow(folder, keys, name="alice@example.org", options="", key="alice"):
    public = " ".join((keys / f"{key}.pub").read_text().split()[:2])
    (folder / "allowed_signers").write_text(f"# who may sign\n{name} {options}{public}\n")


def origin(records):
    return look(records).boards[0].rows[0].origin


@installed
def test_who_signed_is_on_the_board(board, keys):
    records, (first, second) = board
    assert origin(records) == "as handed in"
    assert sign(first, keys / "alice") == signature_path(first)
    assert signer(first, records.parent / "allowed_signers") == "alice@example.org"
    assert signer(second, records.parent / "allowed_signers") is None
    assert origin(records) == "as handed in, signed by alice@example.org 1 of 2"
    sign(second, keys / "alice")
    assert origin(records) == "signed by alice@example.org"
    write(records)
    check(records)
    assert "| signed by alice&#64;example.org |" in (records.parent / "README.md").read_text()


@installed
def test_signing_again_replaces_the_signature(board, keys):
    records, (first, _) = board
    sign(first, keys / "mallory")
    sign(first, keys / "alice")
    assert origin(records).endswith("signed by alice@example.org 1 of 2")


@installed
def test_a_signature_by_nobody_in_the_list_is_refused(board, keys):
    records, (first, _) = board
    write(records)
    sign(first, keys / "mallory")
    for act in (check, write, look):
        with pytest.raises(
            PrunebenchError, match=r"\.json\.sig is by a signer who is not in .*allowed_signers \(No princip"
        ):
            act(records)
    (records.parent / "allowed_signers").unlink()
    with pytest.raises(PrunebenchError, match=r"no file .*allowed_signers lists the accepted keys"):
        check(records)


@installed
def test_a_record_that_is_another_since_it_was_signed_is_refused(board, keys):
    records, (first, _) = board
    sign(first, keys / "alice")
    values = json.loads(first.read_bytes()) | {"official": False}
    first.write_text(json.dumps(values | {"sha256": Record.model_validate(values).own_sha256}))
    with pytest.raises(PrunebenchError, match=r"does not sign the present .* \(.*incorrect signature\)"):
        look(records)


@installed
def test_a_signature_for_something_else_is_refused(board, keys, monkeypatch):
    records, (first, _) = board
    with monkeypatch.context() as patch:
        patch.setattr(signature, "NAMESPACE", "git")
        sign(first, keys / "alice")
    with pytest.raises(PrunebenchError, match="does not sign"):
        look(records)


@installed
def test_a_key_that_is_no_longer_allowed_is_refused(board, keys):
    records, (first, _) = board
    sign(first, keys / "alice")
    allow(records.parent, keys, options='valid-before="20000101" ')
    with pytest.raises(PrunebenchError, match=r"does not sign|by a signer who is not in"):
        look(records)


@installed
@pytest.mark.parametrize("damage", [b"", b"not a signature", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n" * 9])
def test_what_is_no_signature_is_refused_in_a_sentence(board, damage):
    records, (first, _) = board
    signature_path(first).write_bytes(damage)
    with pytest.raises(PrunebenchError, match="is by a signer who is not in"):
        look(records)


def test_a_signature_is_a_regular_file_of_bounded_size(board):
    records, (first, _) = board
    path = signature_path(first)
    path.write_bytes(b"x" * (2**16 + 1))
    with pytest.raises(PrunebenchError, match="larger than 65536 bytes"):
        look(records)
    for make_it in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path)):
        path.unlink()
        make_it()
        with pytest.raises(PrunebenchError, match="not a regular file"):
            look(records)


def test_without_openssh_it_says_what_to_install(board, monkeypatch, tmp_path):
    records, (first, _) = board
    look(records)  # nobody signed: nothing is needed
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PrunebenchError, match=r"ssh-keygen, .*, is not installed; .*openssh-client"):
        sign(first, tmp_path / "key")
    assert not signature_path(first).exists()
    signature_path(first).write_bytes(b"signed")
    with pytest.raises(PrunebenchError, match=r"ssh-keygen, .*, is not installed"):
        look(records)


@installed
def test_only_records_are_signed_and_only_with_a_key(board, tmp_path, keys):
    _, (first, _) = board
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(PrunebenchError, match="is not a record of prunebench"):
        sign(tmp_path / "other.json", keys / "alice")
    for key in ("none", "other.json"):
        with pytest.raises(PrunebenchError, match=r"ssh-keygen cannot sign with .*--key"):
            sign(first, tmp_path / key)
    assert not signature_path(first).exists()


@installed
@pytest.mark.parametrize("name", ["<b>x</b>", "=1+1", "a|b", r"\input{x}", "[x](http://evil.example)"])
def test_a_name_is_nothing_but_text(board, keys, name):
    records, paths = board
    allow(records.parent, keys, f'"{name}"')
    for path in paths:
        sign(path, keys / "alice")
    assert origin(records) == f"signed by {name}"
    write(records)
    text = (records.parent / "README.md").read_text()
    assert "<b>" not in text and "http://" not in text and r"\input" not in (records.parent / "board.tex").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    (row,) = (line for line in lines if "signed by" in line)
    (head,) = (line for line in lines if "Origin" in line)
    assert row.count("|") == head.count("|") > 5
