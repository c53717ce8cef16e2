"""The files that lie beside a record: which they are, how a net gets there, and what must not stay there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import digest_outside, write_aside, write_bytes
from prunebench.bench.outcomes import outcomes_path, pairs_path, proposals_path
from prunebench.bench.record import LARGEST_NET, Record, load_record

RECORD, REFUSAL, JOURNAL = "record.json", "refusal.json", "journal"

_OWNER = "net"  # a file of the journal: the sha256 of the net that it speaks of


def net_path(record: Path) -> Path:
    """Where the net lies whose score the record at `record` is, so that it can be measured again."""
    return record.with_suffix(".net.safetensors")


def signature_path(record: Path) -> Path:
    """Where the signature of the record at `record` lies, if somebody signed it."""
    return record.with_name(f"{record.name}.sig")


def beside(record: Path) -> tuple[Path, ...]:
    """Where everything lies that belongs to the record at `record`, whether it is there or not."""
    return tuple(of(record) for of in (outcomes_path, proposals_path, pairs_path, net_path, signature_path))


def publish(source: Path, net: Path | None, target: Path) -> None:
    """Copy the record at `source`, and all that belongs to it, to `target`; what belonged to another one goes.

    `net`: the net that was scored, linked where the file system can, copied otherwise; None for a refusal. A signature
    stays as long as the record is the same bytes. The record, which names the others, is written last.
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
    """Nets are replaced and never changed in place, so a link stays what it was when the job is trained anew."""
    try:
        aside.unlink()
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)


def make_room(folder: Path, net: Path, name: str, *, force: bool) -> None:
    """Prepare `folder` for the record of the net in the file `net`: what is there of this net stays, also its journal.

    `name`: how the command names the net, for one that is no file. Raises PrunebenchError, and leaves everything, when
    a record there is of another net; with `force` it is removed with all that belongs to it instead. A journal whose
    net is unknown is removed, for it only saves time; a refusal is replaced by what comes out now.
    """
    sha256, record, journal = digest_of(net), folder / RECORD, folder / JOURNAL
    whose = _whose(record, name, sha256)
    if whose is not None and not force:
        raise PrunebenchError(
            f"{record} is {whose}, and nothing is overwritten; name another folder with --out, or replace what is "
            "there with --force."
        )
    if whose is not None:
        clear(folder)
    owner, mine = journal / _OWNER, sha256 or name
    if journal.exists() and not record.exists():
        at_home = folder.resolve() == net.parent.resolve()  # `run` and the functions leave no owner in a net's folder
        if (owner.read_text(errors="replace") != mine) if owner.is_file() else not at_home:
            shutil.rmtree(journal)
    write_bytes(owner, mine.encode())


def _whose(path: Path, name: str, sha256: str | None) -> str | None:
    """What the record at `path` is, if it is not of this net; None if it is, or if there is none."""
    if not path.exists() and not path.is_symlink():
        return None
    try:
        found = load_record(path)
    except PrunebenchError:
        return "not a whole record"
    if not isinstance(found, Record):
        return "a refusal under the name of a record"
    same = found.job.pruner == name if sha256 is None else found.net.sha256 == sha256  # the job tells a net of the zoo
    return None if same else f"the record of another net (sha256 {found.net.sha256[:12]}...)"


def clear(folder: Path) -> None:
    """Remove all that was measured of a net in `folder`: record and refusal, what belongs to them, and the journal."""
    for path in (folder / RECORD, folder / REFUSAL, *beside(folder / RECORD), signature_path(folder / REFUSAL)):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def digest_of(net: Path) -> str | None:
    """The sha256 of a net file; None for what is none, be it missing, too large or no regular file."""
    try:
        return digest_outside(net, "a net file", LARGEST_NET)
    except PrunebenchError:
        return None


def forget_others(net: Path) -> None:
    """Delete what lies beside the net file `net` and was measured of another net."""
    try:
        scored = load_record(net.with_name(RECORD))
    except PrunebenchError:
        return  # none is there, or none that anybody would believe
    of = scored.net.sha256 if isinstance(scored, Record) else scored.net
    if of != digest_of(net):
        clear(net.parent)
