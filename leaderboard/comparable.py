"""What two records must have in common before one may be placed above the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from prunebench.bench.errors import PrunebenchError, cut
from prunebench.bench.protocol import as_sparsity
from prunebench.bench.record import Record

_EQUAL: dict[str, Callable[[Record], object]] = {
    "versions of the protocol": lambda r: r.protocol.version,
    "rules (the protocol's sha256)": lambda r: r.protocol.sha256,
    "test images (the data's sha256)": lambda r: r.data.sha256,
    "training images (the data's train_sha256)": lambda r: r.data.train_sha256,
    "numbers of images": lambda r: r.score.n,
    "attacks": lambda r: tuple(r.score.survived),
}


def refuse_incomparable(records: Mapping[Path, Record]) -> None:
    """Raise PrunebenchError, naming both files, unless these records of one protocol can be ranked together.

    They must agree on the rules, the images and the attacks (training images may be unknown). Each must be of a
    different job and reach its requested sparsity.
    """
    for what, value in _EQUAL.items():
        known = [(path, value(record)) for path, record in records.items() if value(record) is not None]
        for path, found in known:
            first, wanted = known[0]
            if found != wanted:
                raise PrunebenchError(
                    f"{first} and {path} have different {what}, {_short(wanted)} and {_short(found)}, so protocol "
                    f"{records[path].protocol.name!r} cannot rank them together; keep them in separate folders."
                )
    _refuse_same_job(records)
    for path, record in records.items():
        net, asked = record.net, as_sparsity(record.job.sparsity)
        if net.prunable - net.nonzero < Fraction(asked) * net.prunable:
            raise PrunebenchError(
                f"{path} asks for sparsity {asked} but keeps {net.nonzero} of {net.prunable} weights, so it cannot "
                "be ranked at that sparsity; score the net under its own sparsity."
            )


def _refuse_same_job(records: Mapping[Path, Record]) -> None:
    seen: dict[tuple[str, Decimal, int], Path] = {}
    for path, record in records.items():
        key = (record.job.label, as_sparsity(record.job.sparsity), record.job.seed)
        earlier = seen.setdefault(key, path)
        if earlier != path:
            raise PrunebenchError(
                f"{earlier} and {path} are both records of {key[0]} at sparsity {key[1]} with seed {key[2]}; "
                "keep one of them."
            )


def _short(value: object) -> str:
    """`value` as text, a hash by its first digits."""
    return cut(value, 12) if isinstance(value, str) else str(value)
