"""The cascade: runs the attacks in order on each shard of test images, through the journal, and joins the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import Net
from prunebench.bench.data import Split, as_float
from prunebench.bench.schema import exact
from prunebench.bench.score.curve import radii
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.line import Line
from prunebench.bench.score.progress import ProgressEstimate
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

Bits = dict[str, Tensor]  # by attack or eps: bool (n,), the images still standing


@dataclass(frozen=True)
class Found:
    """The results of the attacks on some images.

    `standing`: after each ranked attack, bool (n,) on the CPU. `weak`, `curve`: after each weak attack alone, and at
    each eps alone. `rejected`: proposals of ranked attacks that moved an image and fooled nothing. `kernel_only`:
    proposals that fooled only the fast net. `repaired`: images that a ranked attack attacked again in exact float32.
    `passes`, `seconds`: the cost of all attacks. `images`: float32 (n, c, h, w), the adversarials of the ranked
    attacks, zero elsewhere; None when not requested.
    """

    standing: Bits
    weak: Bits
    curve: Bits
    rejected: int
    kernel_only: int
    repaired: int
    passes: int
    seconds: float
    images: Tensor | None


def facts_of(referee: Referee, net: Net, test: Split) -> list[object]:
    """The facts that all journal entries depend on: net, images, rules, batch, machine, kernels, attack code."""
    where = [machine.env_key(referee.device), referee.fast.bits(net.header.shape), machine.attack_code()]
    return [net.id.sha256, test.sha256, referee.rules.sha256, referee.batch, *where]


def attack_shard(
    referee: Referee,
    test: Split,
    number: int,
    clean: Tensor,
    journal: Journal,
    *,
    only: Sequence[str] | None = None,
    seed: int | None = None,
    also: Mapping[str, Listed] | None = None,
    keep_images: bool = False,
    progress: ProgressEstimate | None = None,
) -> Found:
    """Run the protocol's suite on shard `number` of `test`; `clean`, bool (k,), marks its correctly classified images.

    A pure function of its arguments: results do not depend on the order of shards. `only`: run just these ranked
    attacks, without weak attacks or the curve. `seed`: by default the protocol's. `also`: additional weak attacks by
    name.
    """
    rules, suite = referee.rules, suite_of(referee.rules)
    shard = referee.shards(len(test))[number]
    line = Line(referee, test.take(shard), shard, journal, progress)
    standing, images = clean, None
    after: Bits = {}
    if keep_images:
        images = torch.zeros_like(as_float(line.part.images))
    root = rules.attack_seed if seed is None else seed
    stream = derive(root, "attack", f"shard-{number}")
    for name in suite.ranked if only is None else only:
        standing = after[name] = line.run(name, suite.ranked[name], stream, standing, images)
    entries = list(line.entries)
    weak: Bits = {}
    curve: Bits = {}
    if only is None:
        stream = derive(root, "weak", f"shard-{number}")
        for name, listed in (dict(suite.weak) | dict(also or {})).items():
            weak[name] = line.run(name, listed, stream, clean)
        for eps in radii(rules.threat, math.prod(line.part.images.shape[1:])):
            if exact(eps) == exact(rules.threat.eps):
                curve[eps] = weak[suite.curve]
            else:
                at_eps = rules.threat.model_copy(update={"eps": eps})
                curve[eps] = line.run(suite.curve, suite.weak[suite.curve], stream, clean, threat=at_eps)
    return Found(
        after,
        weak,
        curve,
        rejected=sum(entry.rejected for entry in entries),
        kernel_only=sum(entry.kernel_only for entry in entries),
        repaired=sum(entry.repaired for entry in entries),
        passes=sum(entry.passes for entry in line.entries),
        seconds=sum(entry.seconds for entry in line.entries),
        images=images,
    )


def joined(shards: Sequence[Found]) -> Found:
    """Join the results of `shards`, which must all have run the same attacks."""

    def bits(of: Sequence[Bits]) -> Bits:
        return {name: torch.cat([shard[name] for shard in of]) for name in of[0]}

    images = [shard.images for shard in shards if shard.images is not None]
    return Found(
        bits([shard.standing for shard in shards]),
        bits([shard.weak for shard in shards]),
        bits([shard.curve for shard in shards]),
        rejected=sum(shard.rejected for shard in shards),
        kernel_only=sum(shard.kernel_only for shard in shards),
        repaired=sum(shard.repaired for shard in shards),
        passes=sum(shard.passes for shard in shards),
        seconds=sum(shard.seconds for shard in shards),
        images=torch.cat(images) if images else None,
    )


def attack_all(
    referee: Referee,
    test: Split,
    clean: Tensor,
    journal: Journal,
    *,
    only: Sequence[str] | None = None,
    seed: int | None = None,
    also: Mapping[str, Listed] | None = None,
    keep_images: bool = False,
    progress: ProgressEstimate | None = None,
) -> Found:
    """Run `attack_shard`, with the same options, on every shard of `test` and join the results; `clean`: bool (n,)."""
    each = partial(attack_shard, only=only, seed=seed, also=also, keep_images=keep_images, progress=progress)
    shards = enumerate(referee.shards(len(test)))
    return joined([each(referee, test, number, clean[shard], journal) for number, shard in shards])
