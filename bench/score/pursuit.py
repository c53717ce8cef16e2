"""The best-known number: stronger attacks on the images that survive the cascade, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.bench.attacks.base import Attack, Model
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.attacks.targets import TARGETS, malt
from prunebench.bench.attacks.targets import passes as targeted
from prunebench.bench.beyond import Best
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score import probes
from prunebench.bench.score.cascade import Bits, Found
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.line import Line
from prunebench.bench.score.progress import ProgressEstimate
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive


@dataclass(frozen=True)
class Pursued:
    """The results of the attacks on the survivors of some images.

    `standing`: after each attack in order, bool (n,); an attack that did not run in a shard leaves its bits as they
    were. `long`: the images in shards where the long attacks ran. `repaired`: images that an attack attacked again in
    exact float32. `passes`, `seconds`: the cost of all.
    """

    standing: Bits
    long: int
    repaired: int
    passes: int
    seconds: float

    def counted(self, suite: str, robust: Tensor) -> Best:
        """The facts for a record; `robust`: bool (n,), the survivors of the cascade."""
        by, before = {}, robust
        for name, after in self.standing.items():
            by[name], before = int((before & ~after).sum()), after
        return Best(suite=suite, robust=int(before.sum()), by=by, long=self.long, passes=self.passes)


def pursue_shard(
    referee: Referee,
    test: Split,
    number: int,
    standing: Bits,
    journal: Journal,
    *,
    parent: tuple[str, Referee] | None = None,
    progress: ProgressEstimate | None = None,
) -> Pursued:
    """Run the suite's attacks for the best-known number on the survivors of shard `number` of `test`.

    A pure function of its arguments. `standing`: the shard's images that survive each ranked attack, bool (k,), in
    order. `parent`: the sha256 of another net with its referee, whose adversarials are tried last.
    """
    suite = suite_of(referee.rules)
    shard = referee.shards(len(test))[number]
    line = Line(referee, test.take(shard), shard, journal, progress)
    stream = derive(referee.rules.attack_seed, "best", f"shard-{number}")
    by_gradient, robust = standing[suite.by_gradient], standing[suite.black_box]
    before = referee.passes
    size, after = len(robust), _short(line, stream, robust)
    now = [robust, *after.values()][-1]
    misled = int((by_gradient & ~robust).sum()) + int((robust & ~now).sum())
    part = line.part.take(robust.nonzero().squeeze(1))
    vanished = max(probes.vanishing(referee, as_float(part.images), part.labels)) if len(part) else 0
    pursued = max(misled, vanished) > suite.best.trigger * size
    for name, listed in suite.best.long.items():
        after[name] = now = line.run(name, listed, stream, now, group="best") if pursued else now
    if parent is not None:
        sha256, source = parent
        listed = Listed(_through(source, referee), targeted(TARGETS), exact=True)
        after["transfer"] = line.run("transfer", listed, stream, now, group=f"best from {sha256[:16]}")
    found = Pursued(
        after,
        size if pursued else 0,
        repaired=sum(entry.repaired for entry in line.entries),
        passes=sum(entry.passes for entry in line.entries),
        seconds=sum(entry.seconds for entry in line.entries),
    )
    referee.passes = before  # those of the probe are few, and must not depend on what the journal holds
    return found


def pursue_all(
    referee: Referee,
    test: Split,
    found: Found,
    journal: Journal,
    *,
    parent: tuple[str, Referee] | None = None,
    progress: ProgressEstimate | None = None,
) -> Pursued:
    """Run `pursue_shard` on every shard of `test` and join the results; `found`: those of the cascade."""
    if parent is not None:
        parent[1].answers(as_float(test.images[: referee.batch]))  # a net beyond float32 is attacked in float64
    parts = [
        pursue_shard(
            referee,
            test,
            number,
            {name: bits[shard] for name, bits in found.standing.items()},
            journal,
            parent=parent,
            progress=progress,
        )
        for number, shard in enumerate(referee.shards(len(test)))
    ]
    return Pursued(
        {name: torch.cat([part.standing[name] for part in parts]) for name in parts[0].standing},
        sum(part.long for part in parts),
        sum(part.repaired for part in parts),
        sum(part.passes for part in parts),
        sum(part.seconds for part in parts),
    )


def pursue_sample(
    referee: Referee, test: Split, standing: Tensor, seed: int, *, progress: ProgressEstimate | None = None
) -> Tensor:
    """Run the suite's short attacks alone, with the seed `seed`, on the images `standing` of `test`.

    Both `standing` and the survivors that are returned are bool (n,).
    """
    left = []
    for number, shard in enumerate(referee.shards(len(test))):
        line = Line(referee, test.take(shard), shard, Journal(None, []), progress)
        after = _short(line, derive(seed, "best", f"shard-{number}"), standing[shard])
        left += [standing[shard], *after.values()][-1:]
    return torch.cat(left)


def _short(line: Line, stream: int, standing: Tensor) -> Bits:
    """The images of a shard that survive each short attack in turn, bool (k,)."""
    after = Bits()
    for name, listed in suite_of(line.referee.rules).best.short.items():
        standing = after[name] = line.run(name, listed, stream, standing, group="best")
    return after


def _through(source: Referee, referee: Referee) -> Attack:
    """An attack that proposes adversarials of `source`; its passes are charged to `referee`."""

    def attack(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
        before = source.passes
        proposals = malt(source.view(), images, labels, threat, generator=generator)
        referee.passes += source.passes - before
        return proposals

    return attack
