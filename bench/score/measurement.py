"""All measurements of one net, and the record made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.adversarials import Proposals, pack, pack_pairs, rounded
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.attacks.torchattacks import peer
from prunebench.bench.beyond import Beyond
from prunebench.bench.checkpoint import Net
from prunebench.bench.collapse import collapse
from prunebench.bench.data import Split, as_float
from prunebench.bench.facts import AttackArithmetic, Cost, DataId, Flag, Point, ProtocolId, Score
from prunebench.bench.files import sha256_of
from prunebench.bench.mask import distribution
from prunebench.bench.models import prunable
from prunebench.bench.names import JOURNAL
from prunebench.bench.outcomes import pack_outcomes
from prunebench.bench.pattern import patterns_of
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record, schema_for
from prunebench.bench.score import flags, probes
from prunebench.bench.score.arithmetic import FLOAT32, Arithmetic, exact_float32
from prunebench.bench.score.cascade import Bits, Found, attack_all, attack_shard, facts_of
from prunebench.bench.score.effort import effort_of
from prunebench.bench.score.extras import EXTRAS, measured, require
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.progress import ProgressEstimate
from prunebench.bench.score.pursuit import Pursued, pursue_all, pursue_shard
from prunebench.bench.score.referee import NO_ANSWER, Referee, batch_size
from prunebench.bench.score.result import Scored
from prunebench.bench.seeds import derive


@dataclass(frozen=True)
class Asked:
    """What to measure besides AutoAttack and the suite's weak attacks.

    `best`: whether to attack the survivors again, for the best-known number. `extras`: names in `EXTRAS`. `weak`: more
    weak attacks. `keep_images`: whether to keep the adversarials. `arithmetic`: that of the suite's attacks.
    """

    best: bool = False
    extras: tuple[str, ...] = ()
    weak: Mapping[str, Listed] = field(default_factory=dict)
    keep_images: bool = False
    arithmetic: Arithmetic = FLOAT32

    @classmethod
    def of(cls, also: Sequence[str], *, best: bool, keep_images: bool, arithmetic: Arithmetic = FLOAT32) -> Asked:
        """From the names on the command line. Raises PrunebenchError for an unknown one."""
        extras = tuple(name for name in EXTRAS if name in also)
        require(extras)
        return cls(best, extras, {name: peer(name) for name in also if name not in EXTRAS}, keep_images, arithmetic)


class Measurement:
    """All measurements of one net, and the record made of them."""

    def __init__(
        self,
        net: Net,
        path: Path,
        rules: Protocol,
        test: Split,
        device: torch.device,
        out: Path | None,
        report: ProgressCallback | None,
        asked: Asked,
    ) -> None:
        self.net, self.rules, self.test, self.device = net, rules, test, device
        self.asked, self.report, self.suite = asked, report, suite_of(rules)
        self.referee, self.effort = self._referee(net), effort_of(path, net.header)
        with exact_float32():  # on a card, the kernels are compared with the net here
            facts = facts_of(self.referee, net, test)
        self.journal = Journal(None if out is None else out / JOURNAL, facts)

    def __call__(self, parent: Net | None, *, whole: bool) -> Scored:
        """Measure everything and make the record; `whole`: the test images are the protocol's full set."""
        test, referee, rules, asked = self.test, self.referee, self.rules, self.asked
        dense = None if parent is None else self._referee(parent)
        with exact_float32():
            predicted = referee.answers(as_float(test.images))
            clean = predicted == test.labels
            found = attack_all(
                referee,
                test,
                clean,
                self.journal,
                also=asked.weak,
                keep_images=asked.keep_images,
                progress=(progress := self._progress(len(test))),
            )
            robust = found.standing[list(self.suite.ranked)[-1]]
            score = Score(
                n=len(test),
                clean=int(clean.sum()),
                robust=int(robust.sum()),
                survived=_counts(found.standing),
                ran=self.suite.ran(self.net.header.classes),
                rejected=found.rejected,
                kernel_only=found.kernel_only,
                batch=referee.batch,
                shard=rules.shard,
                weak=_counts(found.weak),
                curve=tuple(Point(eps=eps, robust=count) for eps, count in _counts(found.curve).items()),
                flags=(),
            )
            pursued = None
            if asked.best:
                source = None if parent is None or dense is None else (parent.id.sha256, dense)
                pursued = pursue_all(referee, test, found, self.journal, parent=source, progress=progress)
            facts, arrays = measured(asked.extras, referee, test, clean, robust)
            if pursued is not None:
                facts["best"] = pursued.counted(self.suite.best.name, robust)
            beyond = Beyond.model_validate(facts)
            score = score.model_copy(update={"flags": self._flags(score, beyond, predicted, found, dense)})
            pairs = pack_pairs(probes.pairs(referee, test, clean, derive(rules.attack_seed, "pairs")))
            proposals = self._proposals(clean & ~robust, found) if asked.keep_images else None
        kinds = (found.standing, found.weak, found.curve)
        survived, weak, curve = ({name: bits.numpy() for name, bits in kind.items()} for kind in kinds)
        if pursued is not None:
            arrays |= {f"best/{name}": standing.numpy() for name, standing in pursued.standing.items()}
        outcomes = pack_outcomes(test.labels.numpy(), predicted.numpy(), survived, weak, curve, arrays)
        attacked = [part for part in (found, pursued) if part is not None]
        record = self._record(score, beyond, attacked, whole, parent, outcomes, proposals, pairs)
        return Scored(record, outcomes, proposals, pairs)

    def shard(self, number: int) -> None:
        """Run all attacks on one shard and journal the results."""
        part = self.test.take(shard := self.referee.shards(len(self.test))[number])
        with exact_float32():
            clean = self.referee.answers(as_float(part.images)) == part.labels
            progress = self._progress(shard.stop - shard.start)
            found = attack_shard(
                self.referee,
                self.test,
                number,
                clean,
                self.journal,
                keep_images=self.asked.keep_images,
                progress=progress,
            )
            if self.asked.best:
                pursue_shard(self.referee, self.test, number, found.standing, self.journal, progress=progress)

    def _progress(self, images: int) -> ProgressEstimate | None:
        if self.report is None:
            return None
        return ProgressEstimate(self.rules, self.test, images, self.report, self.asked.weak, best=self.asked.best)

    def _referee(self, net: Net) -> Referee:
        batch = batch_size(self.rules, net.header.arch, self.device.type)
        return Referee(net.module, self.rules, batch, self.device, self.asked.arithmetic)

    def _flags(
        self, score: Score, beyond: Beyond, predicted: Tensor, found: Found, dense: Referee | None
    ) -> tuple[Flag, ...]:
        referee, test, suite, n, effort = self.referee, self.test, self.suite, score.n, self.effort
        images, seed = as_float(test.images), self.rules.attack_seed
        fooled = None
        if dense is not None:
            before = dense.passes
            fooled = probes.transferred(
                referee, dense, test, found.standing[suite.by_gradient], derive(seed, "transfer")
            )
            referee.passes += dense.passes - before
        beaten = found.standing[suite.black_box] & ~torch.stack(list(found.weak.values())).all(0)
        return (
            flags.black_box_wins(score.survived[suite.by_gradient], score.survived[suite.black_box], n),
            flags.zero_gradients(*probes.vanishing(referee, images, test.labels), n),
            flags.eps_curve(score.curve, n, int(test.labels.bincount().max()) / n),
            flags.weak_beats_strong(int(beaten.sum()), n),
            flags.weak_strong_gap(score.weak[suite.curve], score.robust, n),
            flags.quantised_input(probes.unmoved(referee, images, derive(seed, "nudge")), n, probes.NUDGE),
            flags.softmax_output(probes.probabilities(referee.logits(images)), n),
            flags.transfer(fooled, n),
            flags.kernel_disagrees(score.kernel_only, score.proposed, probes.turned(referee, images, test.labels), n),
            flags.budget_overrun(*((effort.processor, effort.allowed) if effort is not None else (None, None))),
            flags.planted(beyond.planted),
            flags.out_of_range(referee.sizes.excess),
            flags.rounding(int((predicted == NO_ANSWER).sum()), n),
            flags.constant(collapse(self.net), predicted.tolist(), test.labels.tolist()),
        )

    def _proposals(self, fooled: Tensor, found: Found) -> bytes:
        """The packed adversarials of the images in `fooled`, bool (n,), for a replay."""
        assert found.images is not None  # they were asked for
        radius = self.rules.threat.radius
        index = fooled.nonzero().squeeze(1)
        originals, images = as_float(self.test.images)[index].numpy(), found.images[index].numpy()
        whole = torch.zeros(0, dtype=torch.bool)
        if len(index):
            near = torch.from_numpy(rounded(images, originals, radius))
            whole = self.referee.logits(near).argmax(1) == self.test.labels[index]
        return pack(Proposals(index.numpy(), images), originals, radius, whole.numpy())

    def _record(
        self,
        score: Score,
        beyond: Beyond,
        attacked: Sequence[Found | Pursued],
        whole: bool,
        parent: Net | None,
        outcomes: bytes,
        proposals: bytes | None,
        pairs: bytes,
    ) -> Record:
        header, rules, test, effort = self.net.header, self.rules, self.test, self.effort
        told = effort.stages if effort is not None else [None] * len(header.stages)
        stages = tuple(s.model_copy(update={"seconds": t}) for s, t in zip(header.stages, told, strict=True))
        notes: dict[str, str | int | float | bool | None] = {"source": header.source}
        if parent is not None:
            notes["parent"] = parent.id.sha256
        if effort is not None:
            notes["sandbox"] = effort.sandbox
        repaired = sum(part.repaired for part in attacked)
        arithmetic = AttackArithmetic(name=self.asked.arithmetic.name, repaired=repaired)
        record: Record = Record.sealed(
            schema=schema_for(arithmetic),
            protocol=ProtocolId.of(rules),
            rules=rules.model_dump(mode="json"),
            job=header.job,
            net=self.net.id,
            patterns=patterns_of(self.net.module),
            score=score,
            attack_arithmetic=arithmetic,
            beyond=beyond,
            data=DataId(name=rules.data, sha256=test.sha256, train_sha256=header.train_sha256),
            official=whole and rules.official and header.protocol.sha256 == rules.sha256 and header.arch == rules.model,
            cost=Cost(
                stages=stages,
                train_passes=sum(stage.passes for stage in stages),
                train_seconds=None if effort is None else sum(effort.stages),
                processor_seconds=None if effort is None else effort.processor,
                score_passes=self.referee.passes
                + sum(part.passes for part in attacked),  # as if nothing came from the journal
                score_seconds=sum(part.seconds for part in attacked),
                device=str(machine.env(self.device)["device"]),
            ),
            env=machine.env(self.device) | {"kernels": self.referee.fast.bits(header.shape)},
            notes=notes | distribution(prunable(self.net.module).values()),
            outcomes=sha256_of(outcomes),
            proposals=None if proposals is None else sha256_of(proposals),
            pairs=sha256_of(pairs),
        )
        return record


def _counts(bits: Bits) -> dict[str, int]:
    return {name: int(standing.sum()) for name, standing in bits.items()}
