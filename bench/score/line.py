"""The attacks on one shard of test images, one after the other, through the journal."""

from __future__ import annotations

from torch import Tensor

from prunebench.bench.attacks.suite import Listed
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score.arithmetic import FLOAT32
from prunebench.bench.score.journal import Entry, Finding, Journal
from prunebench.bench.score.progress import ProgressEstimate
from prunebench.bench.score.referee import Referee


class Line:
    """The images of one shard and the journal entries of the attacks run on them."""

    def __init__(
        self, referee: Referee, part: Split, shard: slice, journal: Journal, progress: ProgressEstimate | None
    ) -> None:
        self.referee, self.part, self.shard, self.journal, self.progress = referee, part, shard, journal, progress
        self.entries: list[Entry] = []

    def run(
        self,
        name: str,
        listed: Listed,
        seed: int,
        standing: Tensor,
        images: Tensor | None = None,
        threat: Threat | None = None,
        group: str = "",
    ) -> Tensor:
        """The images of `standing`, bool (k,), that survive an attack; adversarials of the rest go to `images`.

        `group`: words before the attack's name in the journal, which tell it from others of the same name.
        """
        label = name.replace(":", " ") if threat is None else f"{name} eps {threat.eps.replace('/', ':')}"
        label = f"{group} {label}".strip()
        listen = (
            None
            if self.progress is None
            else self.progress.listener(name, label, self.shard.start // self.referee.rules.shard)
        )

        arithmetic = FLOAT32 if listed.exact else self.referee.arithmetic

        def measure() -> Finding:
            after = standing.clone()
            if not after.any():
                return Finding(after, 0, 0, self.referee.batch, 0, as_float(self.part.images[:0]))
            part = self.part.take(after.nonzero().squeeze(1))
            found = self.referee.fooled(
                listed.attack,
                as_float(part.images),
                part.labels,
                seed,
                threat,
                listen,
                surrogate=listed.surrogate,
                arithmetic=arithmetic,
            )
            after[standing] = ~found.fooled
            return Finding(
                after,
                found.rejected,
                found.kernel_only,
                self.referee.batch,
                found.passes,
                found.images[found.fooled],
                found.repaired,
            )

        entry, found = self.journal.entry(
            label, self.shard, seed, standing, measure, arithmetic=arithmetic, keep_images=images is not None
        )
        if self.progress is not None:
            self.progress.finished(name, len(standing), int(entry.bits.sum()))
        self.entries.append(entry)
        if images is not None and found is not None:
            images[standing & ~entry.bits] = found
        return entry.bits
