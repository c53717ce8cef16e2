"""The output of a scoring: a record and the files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prunebench.bench import machine
from prunebench.bench.beside import digest_of
from prunebench.bench.checkpoint import Net
from prunebench.bench.errors import Refused
from prunebench.bench.facts import ProtocolId
from prunebench.bench.files import write_bytes
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import outcomes_path, pairs_path, proposals_path
from prunebench.bench.record import Record, Refusal


@dataclass(frozen=True)
class Scored:
    """A record and the contents of the files beside it."""

    record: Record
    outcomes: bytes
    proposals: bytes | None
    pairs: bytes

    def save(self, folder: Path) -> None:
        """Write all files; the record comes last because it names the others."""
        path = folder / RECORD
        write_bytes(outcomes_path(path), self.outcomes)
        write_bytes(pairs_path(path), self.pairs)
        if self.proposals is None:
            proposals_path(path).unlink(missing_ok=True)
        else:
            write_bytes(proposals_path(path), self.proposals)
        self.record.save(path)


def refusal_of(path: Path, net: Net | None, refused: Refused, device: torch.device) -> Refusal:
    """The refusal as a record; it names the protocol and job if the net's header could be read."""
    rules = net and net.header.protocol
    refusal: Refusal = Refusal.sealed(
        refused=refused.check,
        reason=str(refused),
        file=path.name,
        net=net.id.sha256 if net else digest_of(path),
        protocol=rules and ProtocolId.of(rules),
        job=net and net.header.job,
        env=machine.env(device),
    )
    return refusal
