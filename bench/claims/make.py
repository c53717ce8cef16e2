"""Making a claim from a score: CLAIM.toml and copies of the files needed to check it."""

from __future__ import annotations

from pathlib import Path

import tomli_w
from pydantic import ValidationError

from prunebench.bench.claims.claim import LARGEST, NAME, About, Asset, Claim, Under
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_known, sha256_of, write_bytes
from prunebench.bench.names import NET, OUTCOMES, PROPOSALS
from prunebench.bench.outcomes import outcomes_path, proposals_path, recount
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record, load_record
from prunebench.bench.schema import Strict, explain

FILES = (NET, OUTCOMES, PROPOSALS, "protocol.toml", NAME)  # of a claim made here


def make(
    record: Path, net: Path, out: Path, *, at_least: str | None = None, best: bool = False, force: bool = False
) -> Path:
    """Write a claim of the score in the file `record` below `out`, with copies of the files needed to check it.

    `net`: the net file that was scored. `at_least`: claim only this share, such as "60 %", instead of the count.
    `best`: claim the best-known number instead of AutoAttack's. `force`: replace another claim or net in `out`. Returns
    the path of the claim. Raises PrunebenchError when record, net, outcomes and proposals do not belong together, when
    the record has no best-known number to claim, when fewer images than `at_least` are robust, and when `out` holds
    another claim or another net.
    """
    scored = load_record(record)
    if not isinstance(scored, Record):
        raise PrunebenchError(f"{record} is a refusal, which supports no claim; name a record with a score.")
    recount(record, scored)
    robust, by = _number(record, scored, best=best)
    files = {"net": _copy(net, scored.net.sha256, f"the net of {record}", NET)}
    files["outcomes"] = _copy(outcomes_path(record), scored.outcomes, f"the outcomes of {record}", OUTCOMES)
    if scored.proposals is not None:
        kept = proposals_path(record)
        files["proposals"] = _copy(kept, scored.proposals, f"the adversarial images of {record}", PROPOSALS)
    rules = _rules(scored, net)
    name, beside = (rules.name, []) if rules.official else ("protocol.toml", [("protocol.toml", _toml_of(rules))])
    try:
        claim = Claim(
            schema=2 if by is None else 3,
            n=scored.score.n,
            robust=robust if at_least is None else None,
            at_least=at_least,
            by=by,
            data=scored.data.sha256,
            protocol=Under(name=name, sha256=rules.sha256),
            about=_about(scored),
            **{what: Asset(path=file, sha256=sha256_of(data)) for what, (file, data) in files.items()},
        )
    except ValidationError as error:
        raise PrunebenchError(f"This claim breaks the rules: {explain(error)}") from None
    if robust < claim.least:
        raise PrunebenchError(
            f"{record} has {robust} of {claim.n} images robust, but a claim of at least {at_least} needs "
            f"{claim.least}; claim a smaller share."
        )
    _put(out, dict([*files.values(), *beside, (NAME, _toml_of(claim))]), force=force)
    return out / NAME


def _number(path: Path, record: Record, *, best: bool) -> tuple[int, str | None]:
    """The number of robust images to claim, and the suite that it is by; None for AutoAttack's."""
    if not best:
        return record.score.robust, None
    if record.beyond.best is None:
        raise PrunebenchError(
            f"{path} has no best-known number to claim; score the net again with --best, or claim AutoAttack's number "
            "without it."
        )
    return record.beyond.best.robust, record.beyond.best.suite


def _about(record: Record) -> About:
    """The description of the net that its record gives."""
    version = record.env.get("prunebench")
    label, share = record.job.label, round(record.net.sparsity, 6)
    return About(
        pruner=label if len(label) <= 200 and label.isprintable() else record.job.pruner[:200],
        sparsity=share if share < 1 else None,
        version=None if version is None else str(version),
    )


def _put(out: Path, files: dict[str, bytes], *, force: bool) -> None:
    """Write the files of a claim below `out`, the claim last; with `force`, replace another claim's files.

    Raises PrunebenchError when `out` holds a file of another claim or net, which would pass for the new claim's.
    """
    others = [name for name in FILES if _is_other(out / name, files.get(name))]
    if others and not force:
        raise PrunebenchError(
            f"{out} holds another claim or another net ({', '.join(others)}); name another folder, or overwrite it "
            "with --force."
        )
    try:
        if others:
            (out / NAME).unlink(missing_ok=True)  # no claim exists while its files change
        for name in others:
            if name not in files:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise PrunebenchError(f"Cannot remove the old claim in {out} ({error.strerror}); check the folder.") from None
    for name in sorted(files, key=FILES.index):
        write_bytes(out / name, files[name])


def _is_other(path: Path, data: bytes | None) -> bool:
    """Whether `path` exists but is not a regular file with these bytes."""
    if not path.exists() and not path.is_symlink():
        return False
    if data is None or path.is_symlink() or not path.is_file() or path.stat().st_size != len(data):
        return True
    return path.read_bytes() != data


def _toml_of(values: Strict) -> bytes:
    return tomli_w.dumps(values.model_dump(mode="json", by_alias=True, exclude_none=True)).encode()


def _rules(record: Record, net: Path) -> Protocol:
    """The rules under which a record was made: its own, built-in ones, or those in the net's header."""
    if record.known_rules is not None:
        return record.known_rules
    from prunebench.bench.checkpoint import open_net

    rules = open_net(net).header.protocol
    if rules.sha256 == record.protocol.sha256:
        return rules
    raise PrunebenchError(
        f"The record was made under {record.protocol.name} with the sha256 {record.protocol.sha256[:12]}..., which is "
        f"neither built in nor in the header of {net}; score the net under today's rules."
    )


def _copy(path: Path, sha256: str, what: str, name: str) -> tuple[str, bytes]:
    """`name` and the bytes to write under it, from the file `path`, which is `what` and must have this hash."""
    return name, read_known(
        path, sha256, what, LARGEST, missing="check the path", other="name the file that was scored"
    )
