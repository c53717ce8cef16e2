"""Scoring: a net file in, outcomes and a record out. No pruner code runs, and no attack's own claim is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.adversarials import Proposals, pack, pack_pairs, rounded
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.attacks.torchattacks import peer
from prunebench.bench.beside import JOURNAL, REFUSAL
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.collapse import collapse
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import Cost, DataId, Flag, Point, ProtocolId, Score
from prunebench.bench.files import sha256_of
from prunebench.bench.interop.robustbench import PREFIX, open_zoo
from prunebench.bench.mask import distribution
from prunebench.bench.models import prunable
from prunebench.bench.outcomes import pack_outcomes
from prunebench.bench.protocol import Protocol, load
from prunebench.bench.record import Record
from prunebench.bench.score import flags, probes
from prunebench.bench.score.cascade import Bits, Found, attack_all, attack_shard, facts_of
from prunebench.bench.score.effort import effort_of
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.progress import Progress, Report
from prunebench.bench.score.referee import NO_ANSWER, Referee, batch_size, exact_float32
from prunebench.bench.score.result import Scored, refusal_of
from prunebench.bench.seeds import derive


def score(
    net: str | Path,
    protocol: str | Protocol | None = None,
    examples: int | None = None,
    *,
    out: str | Path | None = None,
    store: Store | None = None,
    device: str = "auto",
    report: Report | None = None,
    parent: str | Path | None = None,
    also: Sequence[str] = (),
    keep_proposals: bool = False,
    mirror: str | None = None,
) -> Record:
    """Attack the net in the file `net` with AutoAttack *standard* and count the test images that survive.

    `protocol`: by default the protocol the net was made for; any other must be named. `examples`: use only this many
    test images, from the start. `out`: a folder for the record, the outcomes and the journal from which a killed run
    resumes. `parent`: a dense net whose adversarials are also tried, for a flag. `also`: additional weak attacks, such
    as "torchattacks:CW". `keep_proposals`: keep the adversarials, so that a claim can be replayed. `net` may be
    "robustbench:NAME", a dense net of RobustBench's zoo, for which `protocol` is required (`mirror`: see
    `interop.robustbench.open_zoo`). Raises Refused, and writes the reason to `out`, for a net that cannot be scored.
    """
    path, folder = Path(net), None if out is None else Path(out)
    peers = {name: peer(name) for name in also}
    where = machine.device_named(device)
    opened = None
    try:
        store = store or Store(Path("data"))
        rules = protocol if isinstance(protocol, Protocol) or protocol is None else load(protocol, to_train=False)
        opened = open_zoo(str(net), rules, store, mirror=mirror) if str(net).startswith(PREFIX) else open_net(path)
        rules = rules or _made_for(opened, path)
        test, whole = _test_images(opened, path, rules, examples, store)
        if parent is not None:
            _test_images(dense := open_net(Path(parent)), Path(parent), rules, examples, store)
        scoring = _Scoring(opened, path, rules, test, where, folder, report, peers)
        scored = scoring(dense if parent is not None else None, whole=whole, keep_proposals=keep_proposals)
    except Refused as refused:
        if folder is not None:
            refusal_of(path, opened, refused, where).save(folder / REFUSAL)
        raise
    if folder is not None:
        (folder / REFUSAL).unlink(missing_ok=True)
        scored.save(folder)
    return scored.record


def score_shard(
    net: str | Path,
    number: int,
    protocol: Protocol,
    examples: int | None = None,
    *,
    out: str | Path,
    store: Store,
    device: str = "auto",
    report: Report | None = None,
    keep_proposals: bool = False,
) -> None:
    """Run the attacks of a scoring on shard `number` alone, and write the results to the journal in `out`.

    `score` with the same arguments reads them there and makes a record without attacking that shard again. Raises
    Refused for a net that cannot be scored on these images.
    """
    path, opened = Path(net), open_net(Path(net))
    test, _ = _test_images(opened, path, protocol, examples, store)
    scoring = _Scoring(opened, path, protocol, test, machine.device_named(device), Path(out), report, {})
    scoring.shard(number, keep_images=keep_proposals)


def _made_for(net: Net, path: Path) -> Protocol:
    """The protocol in the net's header; refused if it has a built-in name but different rules."""
    rules = net.header.protocol
    try:
        known = load(rules.name)
    except PrunebenchError:
        return rules  # a protocol of the user's own: its rules travel in the header
    if known != rules:
        raise Refused(
            "protocol",
            f"{path} was made for rules of {rules.name} (sha256 {rules.sha256[:12]}) that differ from today's "
            f"({known.sha256[:12]}); name a protocol with --protocol to score it anyway.",
        )
    return rules


def _test_images(net: Net, path: Path, rules: Protocol, examples: int | None, store: Store) -> tuple[Split, bool]:
    """The test images, and whether they are the protocol's full set; refused if they do not fit the net."""
    header, info = net.header, store.info(rules.data)
    if (header.classes, header.shape) != (info.classes, info.shape):
        raise Refused(
            "protocol",
            f"{path} takes {header.shape} images of {header.classes} classes, but {rules.name} has {info.shape} of "
            f"{info.classes}; name a protocol that fits.",
        )
    if examples is not None and rules.test is not None and examples > rules.test:
        raise PrunebenchError(f"{rules.name} has {rules.test} test images, fewer than --examples {examples}.")
    test = store.testing(rules.data, examples or rules.test)
    return test, len(test) == len(store.testing(rules.data, rules.test))


class _Scoring:
    """The scoring of one net."""

    def __init__(
        self,
        net: Net,
        path: Path,
        rules: Protocol,
        test: Split,
        device: torch.device,
        out: Path | None,
        report: Report | None,
        also: Mapping[str, Listed],
    ) -> None:
        self.net, self.rules, self.test, self.device = net, rules, test, device
        self.referee, self.effort = self._referee(net), effort_of(path, net.header)
        facts = facts_of(self.referee, net, test)
        self.journal = Journal(None if out is None else out / JOURNAL, facts)
        self.report, self.also, self.suite = report, also, suite_of(rules)

    def __call__(self, parent: Net | None, *, whole: bool, keep_proposals: bool) -> Scored:
        """Measure everything and make the record; `whole`: the test images are the protocol's full set."""
        test, referee, rules = self.test, self.referee, self.rules
        with exact_float32():
            predicted = referee.answers(as_float(test.images))
            clean = predicted == test.labels
            found = attack_all(
                referee,
                test,
                clean,
                self.journal,
                also=self.also,
                keep_images=keep_proposals,
                progress=self._progress(len(test)),
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
            score = score.model_copy(update={"flags": self._flags(score, predicted, found, parent)})
            pairs = pack_pairs(probes.pairs(referee, test, clean, derive(rules.attack_seed, "pairs")))
            proposals = self._proposals(clean & ~robust, found) if keep_proposals else None
        bits = (
            {name: bits.numpy() for name, bits in kind.items()} for kind in (found.standing, found.weak, found.curve)
        )
        outcomes = pack_outcomes(test.labels.numpy(), predicted.numpy(), *bits)
        record = self._record(score, found, whole, parent, outcomes, proposals, pairs)
        return Scored(record, outcomes, proposals, pairs)

    def shard(self, number: int, *, keep_images: bool) -> None:
        """Run all attacks on one shard and journal the results."""
        part = self.test.take(shard := self.referee.shards(len(self.test))[number])
        with exact_float32():
            clean = self.referee.answers(as_float(part.images)) == part.labels
            progress = self._progress(shard.stop - shard.start)
            attack_shard(
                self.referee, self.test, number, clean, self.journal, keep_images=keep_images, progress=progress
            )

    def _progress(self, images: int) -> Progress | None:
        return None if self.report is None else Progress(self.rules, self.test, images, self.report, self.also)

    def _referee(self, net: Net) -> Referee:
        return Referee(net.module, self.rules, batch_size(self.rules, net.header.arch, self.device.type), self.device)

    def _flags(self, score: Score, predicted: Tensor, found: Found, parent: Net | None) -> tuple[Flag, ...]:
        referee, test, suite, n, effort = self.referee, self.test, self.suite, score.n, self.effort
        images, seed = as_float(test.images), self.rules.attack_seed
        fooled = None
        if parent is not None:
            dense = self._referee(parent)
            fooled = probes.transferred(
                referee, dense, test, found.standing[suite.by_gradient], derive(seed, "transfer")
            )
            referee.passes += dense.passes
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
        found: Found,
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
        record: Record = Record.sealed(
            protocol=ProtocolId.of(rules),
            rules=rules.model_dump(mode="json"),
            job=header.job,
            net=self.net.id,
            score=score,
            data=DataId(name=rules.data, sha256=test.sha256, train_sha256=header.train_sha256),
            official=whole and rules.official and header.protocol == rules and header.arch == rules.model,
            cost=Cost(
                stages=stages,
                train_passes=sum(stage.passes for stage in stages),
                train_seconds=None if effort is None else sum(effort.stages),
                processor_seconds=None if effort is None else effort.processor,
                score_passes=self.referee.passes + found.passes,  # as if nothing came from the journal
                score_seconds=found.seconds,
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
