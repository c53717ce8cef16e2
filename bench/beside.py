"""The files beside a record: how a net is copied there, and which stale files to remove."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import digest_outside, write_aside, write_bytes
from prunebench.bench.names import JOURNAL, NET, RECORD, REFUSAL
from prunebench.bench.outcomes import outcomes_path, pairs_path, proposals_path
from prunebench.bench.record import LARGEST_NET, Record, load_record

_OWNER = "net"  # a file in the journal that holds the sha256 of the net it describes


def net_path(record: Path) -> Path:
    """The path of the net that the record at `record` scores, kept so that it can be measured again."""
    return record.with_suffix(f".{NET}")


def signature_path(record: Path) -> Path:
    """The path of the signature of the record at `record`, if it is signed."""
    return record.with_name(f"{record.name}.sig")


def beside(record: Path) -> tuple[Path, ...]:
    """The paths of all files that belong to the record at `record`, whether they exist or not."""
    return tuple(of(record) for of in (outcomes_path, proposals_path, pairs_path, net_path, signature_path))


def publish(source: Path, net: Path | None, target: Path) -> None:
    """Copy the record at `source` and its files to `target`, and remove the files of any other record there.

    `net`: the scored net, hard-linked where the file system can, else copied; None for a refusal. A signature is kept
    only if the record's bytes are unchanged. The record is written last, because it names the other files.
    """
    data = source.read_bytes()
    for of in (outcomes_path, proposals_path, pairs_path):
        if net is not None and of(source).exists():
            write_bytes(of(target), of(source).read_bytes())
        else:
            of(target).unlink(missing_ok=True)
    if net is None:
        net_path(target).unlink(missing_ok=True)
    else:
        write_aside(net_path(target), lambda aside: _link_or_copy(net, aside))
    if not target.exists() or target.read_bytes() != data:
        signature_path(target).unlink(missing_ok=True)
    write_bytes(target, data)


def _link_or_copy(source: Path, aside: Path) -> None:
    """Nets are replaced, never changed in place, so a link keeps its content when the job is retrained."""
    try:
        aside.unlink()
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)


def make_room(folder: Path, net: Path, name: str, *, force: bool) -> None:
    """Prepare `folder` for the record of the net in the file `net`; results and journal of the same net are kept.

    `name`: the command's name for a net that is not a file. Raises PrunebenchError, and changes nothing, when a record
    there is of another net; `force` removes that record and its files instead. A journal of an unknown net is removed,
    for it only saves time. A refusal is overwritten by the new result.
    """
    sha256, record, journal = digest_of(net), folder / RECORD, folder / JOURNAL
    whose = _whose(record, name, sha256)
    if whose is not None and not force:
        raise PrunebenchError(
            f"{record} already holds {whose}; name another folder with --out, or replace its results with --force."
        )
    if whose is not None:
        clear(folder)
    owner, mine = journal / _OWNER, sha256 or name
    if journal.exists() and not record.exists():
        at_home = folder.resolve() == net.parent.resolve()  # `run` and the functions write no owner file
        if (owner.read_text(errors="replace") != mine) if owner.is_file() else not at_home:
            shutil.rmtree(journal)
    write_bytes(owner, mine.encode())


def _whose(path: Path, name: str, sha256: str | None) -> str | None:
    """What the record at `path` is, if not one of this net; None if it is, or if there is no record."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        found = load_record(path)
    except PrunebenchError:
        return "a damaged record"
    if not isinstance(found, Record):
        return "a refusal"
    same = found.job.pruner == name if sha256 is None else found.net.sha256 == sha256  # the job names a zoo's net
    return None if same else f"the record of another net (sha256 {found.net.sha256[:12]}...)"


def clear(folder: Path) -> None:
    """Remove all results in `folder`: record and refusal, the files that belong to them, and the journal."""
    for path in (folder / RECORD, folder / REFUSAL, *beside(folder / RECORD), signature_path(folder / REFUSAL)):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def digest_of(net: Path) -> str | None:
    """The sha256 of a net file; None if it is missing, too large or not a regular file."""
    try:
        return digest_outside(net, "a net file", LARGEST_NET)
    except PrunebenchError:
        return None


def forget_others(net: Path) -> None:
    """Delete results beside the net file `net` that were measured on another net."""
    try:
        scored = load_record(net.with_name(RECORD))
    except PrunebenchError:
        return  # there is no record, or only an invalid one
    of = scored.net.sha256 if isinstance(scored, Record) else scored.net
    if of != digest_of(net):
        clear(net.parent)
