"""Making a claim of a score: CLAIM.toml, and copies of what it can be checked against."""

from __future__ import annotations

from pathlib import Path

import tomli_w
from pydantic import ValidationError

from prunebench.bench.claims.claim import LARGEST, NAME, About, Asset, Claim, Under
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_known, sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, proposals_path, recount
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record, load_record
from prunebench.bench.schema import Strict, explain

FILES = ("net.safetensors", "outcomes.npz", "proposals.npz", "protocol.toml", NAME)  # of a claim that is made here


def make(record: Path, net: Path, out: Path, *, at_least: str | None = None, force: bool = False) -> Path:
    """Write a claim of the score in the file `record` below `out`, and copy there what it can be checked against.

    `net`: the net file that was scored. `at_least`: claim that share alone, as "60 %", in place of the count. `force`:
    write even where another claim or another net lies. Returns the path of the claim. Raises PrunebenchError when
    record, net, outcomes and proposals do not belong together, when fewer images than `at_least` are robust, and when
    `out` holds another claim or another net.
    """
    scored = load_record(record)
    if not isinstance(scored, Record):
        raise PrunebenchError(f"{record} is a refusal, of which there is nothing to claim; name a record with a score.")
    recount(record, scored)
    files = {"net": _copy(net, scored.net.sha256, f"the net of {record}", "net.safetensors")}
    files["outcomes"] = _copy(outcomes_path(record), scored.outcomes, f"the outcomes of {record}", "outcomes.npz")
    if scored.proposals is not None:
        kept = proposals_path(record)
        files["proposals"] = _copy(kept, scored.proposals, f"the adversarial images of {record}", "proposals.npz")
    rules = _rules(scored, net)
    name, beside = (rules.name, []) if rules.official else ("protocol.toml", [("protocol.toml", _toml_of(rules))])
    try:
        claim = Claim(
            schema=2,
            n=scored.score.n,
            robust=scored.score.robust if at_least is None else None,
            at_least=at_least,
            data=scored.data.sha256,
            protocol=Under(name=name, sha256=rules.sha256),
            about=_about(scored),
            **{what: Asset(path=file, sha256=sha256_of(data)) for what, (file, data) in files.items()},
        )
    except ValidationError as error:
        raise PrunebenchError(f"This claim breaks the rules: {explain(error)}") from None
    if scored.score.robust < claim.least:
        raise PrunebenchError(
            f"{record} has {scored.score.robust} of {claim.n} images robust, and at least {at_least} are "
            f"{claim.least}; claim a smaller share."
        )
    _put(out, dict([*files.values(), *beside, (NAME, _toml_of(claim))]), force=force)
    return out / NAME


def _about(record: Record) -> About:
    """What a record tells of its net."""
    version = record.env.get("prunebench")
    label, share = record.job.label, round(record.net.sparsity, 6)
    return About(
        pruner=label if len(label) <= 200 and label.isprintable() else record.job.pruner[:200],
        sparsity=share if share < 1 else None,
        version=None if version is None else str(version),
    )


def _put(out: Path, files: dict[str, bytes], *, force: bool) -> None:
    """Write the files of a claim below `out`, the claim last; with `force` in place of another claim's.

    Raises PrunebenchError when a file of another claim or net lies there: beside a new one it would be taken for its.
    """
    others = [name for name in FILES if _is_other(out / name, files.get(name))]
    if others and not force:
        raise PrunebenchError(
            f"{out} holds another claim or another net ({', '.join(others)}); name another folder, or put the new "
            "claim in its place with --force."
        )
    try:
        if others:
            (out / NAME).unlink(missing_ok=True)  # while its files change there is no claim
        for name in others:
            if name not in files:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise PrunebenchError(f"Cannot remove the old claim in {out} ({error.strerror}); check the folder.") from None
    for name in sorted(files, key=FILES.index):
        write_bytes(out / name, files[name])


def _is_other(path: Path, data: bytes | None) -> bool:
    """Whether something lies at `path` that is not a regular file of these bytes."""
    if not path.exists() and not path.is_symlink():
        return False
    if data is None or path.is_symlink() or not path.is_file() or path.stat().st_size != len(data):
        return True
    return path.read_bytes() != data


def _toml_of(values: Strict) -> bytes:
    return tomli_w.dumps(values.model_dump(mode="json", by_alias=True, exclude_none=True)).encode()


def _rules(record: Record, net: Path) -> Protocol:
    """The rules that a record was made under: its own, built-in ones, or those in the header of the net."""
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
    """What is to be written under `name`: the bytes of the file `path`, which is `what` and must have that hash."""
    return name, read_known(
        path, sha256, what, LARGEST, missing="check the path", other="name the file that was scored"
    )
