"""What training a net took, in a file beside it: nets themselves compare byte for byte."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from prunebench.bench.bounded import json_of
from prunebench.bench.checkpoint import Header
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Seconds, Sha256
from prunebench.bench.files import canonical_json, read_outside, sha256_of
from prunebench.bench.record import Hashed

TIMES = "times.json"
LARGEST_TIMES = 2**20  # bytes


class Effort(Hashed):
    """What training a net took here: the seconds of its `stages` as its process told them, and what we measured.

    `header`: the hash of the net's. `processor`: processor seconds of all that the pruner's process did, None where the
    kernel does not tell. `allowed`: how many its passes may take (`bench.lab.budget`), None where that says nothing.
    `sandbox`: whether it ran in one.
    """

    header: Sha256
    stages: tuple[Seconds, ...] = Field(strict=False)
    processor: Seconds | None
    allowed: Seconds | None
    sandbox: bool


def save_effort(net: Path, header: Header, **values: object) -> None:
    """Write what the training of `net` took beside it: nets themselves compare byte for byte."""
    Effort.sealed(header=_of(header), **values).save(net.with_name(TIMES))


def effort_of(net: Path, header: Header) -> Effort | None:
    """What the training of `net` took, from beside it; None where nothing whole is there, or something of another."""
    try:
        effort = Effort.model_validate(
            json_of(read_outside(net.with_name(TIMES), "times of a training", LARGEST_TIMES))
        )
    except (PrunebenchError, ValueError):
        return None
    whole = effort.own_sha256 == effort.sha256 and effort.header == _of(header)
    return effort if whole and len(effort.stages) == len(header.stages) else None


def _of(header: Header) -> str:
    return sha256_of(canonical_json(header.model_dump(mode="json")))
