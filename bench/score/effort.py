"""The cost of training a net, stored beside it so that net files themselves can be compared byte for byte."""

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
    """The cost of training a net here: the seconds of its `stages` as its process reported them, and our measurements.

    `header`: the hash of the net's header. `processor`: processor seconds of the pruner's whole process, None where the
    kernel does not report them. `allowed`: the processor seconds that its passes may take (`bench.lab.budget`), None
    where that is meaningless. `sandbox`: whether it ran in a sandbox.
    """

    header: Sha256
    stages: tuple[Seconds, ...] = Field(strict=False)
    processor: Seconds | None
    allowed: Seconds | None
    sandbox: bool


def save_effort(net: Path, header: Header, **values: object) -> None:
    """Write the cost of training `net` beside the net file."""
    Effort.sealed(header=_of(header), **values).save(net.with_name(TIMES))


def effort_of(net: Path, header: Header) -> Effort | None:
    """The training cost stored beside `net`; None if it is missing, damaged or another net's."""
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
