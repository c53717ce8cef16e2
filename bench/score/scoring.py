"""Scoring: a net file in, outcomes and a record out. No pruner's code is run and no attack is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.adversarials import Proposals, pack, pack_pairs, rounded
from prunebench.bench.attacks.suite import Attack, adapted
from prunebench.bench.attacks.torchattacks import peer
from prunebench.bench.beside import JOURNAL, RECORD, REFUSAL, clear
from prunebench.bench.bounded import json_of
from prunebench.bench.checkpoint import LARGEST, Header, Net, open_net
from prunebench.bench.collapse import collapse
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.files import canonical_json, digest_outside, read_outside, sha256_of, write_bytes
from prunebench.bench.interop.robustbench import PREFIX, open_zoo
from prunebench.bench.mask import distribution
from prunebench.bench.models import prunable
from prunebench.bench.protocol import Protocol, load
from prunebench.bench.record import (
    Cost,
    DataId,
    Flag,
    Hashed,
    Point,
    ProtocolId,
    Record,
    Refusal,
    Score,
    Seconds,
    Sha256,
    load_record,
    outcomes_path,
    pack_outcomes,
    pairs_path,
    proposals_path,
)
from prunebench.bench.score import flags, probes
from prunebench.bench.score.cascade import Report, Trial
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import NO_ANSWER, Referee, batch_size, exact_float32
from prunebench.bench.seeds import derive

TIMES = "times.json"
LARGEST_TIMES = 2**20  # bytes


@dataclass(frozen=True)
class Scored:
    """A record and the bytes of the files that belong beside it."""

    record: Record
    outcomes: bytes
    proposals: bytes | None
    pairs: bytes

    def save(self, folder: Path) -> None:
        """Write all of it; the record, which names the others, last."""
        path = folder / RECORD
        write_bytes(outcomes_path(path), self.outcomes)
        write_bytes(pairs_path(path), self.pairs)
        if self.proposals is None:
            proposals_path(path).unlink(missing_ok=True)
        else:
            write_bytes(proposals_path(path), self.proposals)
        self.record.save(path)


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
    """Attack the net in the file `net` with AutoAttack *standard* and count what survives.

    `protocol`: by default the one that the net was made for; another one must be asked for by name. `examples`: only
    the first so many test images. `out`: a folder for record, outcomes and the journal from which a killed run goes on.
    `parent`: the dense net whose adversarial images are tried as well, for a flag. `also`: more weak attacks, such as
    "torchattacks:CW". `keep_proposals`: keep what fooled the net, so that a claim can be replayed. `net` may be
    "robustbench:NAME", a dense net of RobustBench's zoo, for which `protocol` must be named (`mirror`: see
    `interop.robustbench.open_zoo`). Raises Refused, and leaves the reason in `out`, for a net that cannot be scored.
    """
    path, folder = Path(net), None if out is None else Path(out)
    peers = {name: peer(name) for name in also}
    where = machine.device_named(device)
    opened = None
    try:
        store = store or Store(Path("data"))
        rules = protocol if isinstance(protocol, Protocol) or protocol is None else load(protocol)
        opened = open_zoo(str(net), rules, store, mirror=mirror) if str(net).startswith(PREFIX) else open_net(path)
        rules = rules or _made_for(opened, path)
        test, whole = _test_images(opened, path, rules, examples, store)
        if parent is not None:
            _test_images(dense := open_net(Path(parent)), Path(parent), rules, examples, store)
        scoring = _Scoring(opened, path, rules, test, where, folder, report, peers)
        scored = scoring(dense if parent is not None else None, whole=whole, keep_proposals=keep_proposals)
    except Refused as refused:
        if folder is not None:
            _refusal(path, opened, refused, where).save(folder / REFUSAL)
        raise
    if folder is not None:
        (folder / REFUSAL).unlink(missing_ok=True)
        scored.save(folder)
    return scored.record


def attack_shard(
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
    """Run the attacks of a scoring on shard `number` alone, and leave in the journal in `out` what they found.

    `score` with the same arguments finds it there, and makes a record without attacking that shard again. Raises
    Refused for a net that cannot be scored on these images.
    """
    path, opened = Path(net), open_net(Path(net))
    test, _ = _test_images(opened, path, protocol, examples, store)
    scoring = _Scoring(opened, path, protocol, test, machine.device_named(device), Path(out), report, {})
    scoring.shard(number, keep_images=keep_proposals)


def _made_for(net: Net, path: Path) -> Protocol:
    """The protocol in the net's header; refused when it goes by a built-in name and has other rules."""
    rules = net.header.protocol
    try:
        known = load(rules.name)
    except PrunebenchError:
        return rules  # a protocol of the user's own: its rules travel in the header
    if known != rules:
        raise Refused(
            "protocol",
            f"{path} was made for {rules.name} with other rules (sha256 {rules.sha256[:12]}) than today's "
            f"({known.sha256[:12]}); ask for a protocol by name (--protocol) to score it all the same.",
        )
    return rules


def _test_images(net: Net, path: Path, rules: Protocol, examples: int | None, store: Store) -> tuple[Split, bool]:
    """The test images, and whether they are all that the protocol wants; refused when the net takes other ones."""
    header, info = net.header, store.info(rules.data)
    if (header.classes, header.shape) != (info.classes, info.shape):
        raise Refused(
            "protocol",
            f"{path} takes {header.shape} images of {header.classes} classes, {rules.name} has {info.shape} of "
            f"{info.classes}; name a protocol that fits.",
        )
    if examples is not None and rules.test is not None and examples > rules.test:
        raise PrunebenchError(f"{rules.name} has {rules.test} test images, fewer than --examples {examples}.")
    test = store.testing(rules.data, examples or rules.test)
    return test, len(test) == len(store.testing(rules.data, rules.test))


def journal_facts(referee: Referee, net: Net, test: Split) -> list[object]:
    """All that decides what an attack finds: net, images, rules, batch, machine, kernels, the attacks."""
    where = [machine.env_key(referee.device), referee.fast.bits(net.header.shape), machine.attack_code()]
    return [net.id.sha256, test.sha256, referee.rules.sha256, referee.batch, *where]


class _Scoring:
    """One net on its way to a record."""

    def __init__(
        self,
        net: Net,
        path: Path,
        rules: Protocol,
        test: Split,
        device: torch.device,
        out: Path | None,
        report: Report | None,
        also: Mapping[str, Attack],
    ) -> None:
        self.net, self.path, self.rules, self.test, self.device = net, path, rules, test, device
        self.referee = self._referee(net)
        facts = journal_facts(self.referee, net, test)
        self.trial = Trial(self.referee, test, Journal(None if out is None else out / JOURNAL, facts), report, also)

    def __call__(self, parent: Net | None, *, whole: bool, keep_proposals: bool) -> Scored:
        """Measure everything and write it down; `whole`: these are all the images that the protocol wants."""
        test, trial, referee = self.test, self.trial, self.referee
        images = as_float(test.images)
        with exact_float32():
            predicted = referee.answers(images)
            clean = predicted == test.labels
            before = referee.passes
            survived = trial.standard(clean, keep_images=keep_proposals)
            disagreements = sum(entry.disagreements for entry in trial.entries)
            unconfirmed = sum(entry.unconfirmed for entry in trial.entries)
            weak = trial.weak(clean)
            curve = trial.curve(clean, weak["pgd-20"])
            attacked = referee.passes - before
            robust = list(survived.values())[-1]
            score = Score(
                n=len(test),
                clean=int(clean.sum()),
                robust=int(robust.sum()),
                survived=_counts(survived),
                ran=adapted(self.net.header.classes),
                disagreements=disagreements,
                unconfirmed=unconfirmed,
                batch=referee.batch,
                shard=self.rules.shard,
                weak=_counts(weak),
                curve=tuple(Point(eps=eps, robust=count) for eps, count in _counts(curve).items()),
                flags=(),
            )
            flags = self._flags(score, predicted, survived, weak, parent)
            seed = derive(self.rules.attack_seed, "pairs")
            pairs = pack_pairs(probes.pairs(referee, test, clean, seed))
            proposals = self._proposals(clean & ~robust) if keep_proposals else None
        outcomes = pack_outcomes(
            test.labels.numpy(),
            predicted.numpy(),
            *({name: bits.numpy() for name, bits in kind.items()} for kind in (survived, weak, curve)),
        )
        passes = referee.passes - attacked + sum(entry.passes for entry in trial.entries)  # as if nothing had been kept
        score = score.model_copy(update={"flags": flags})
        record = self._record(score, passes, whole, parent, outcomes, proposals, pairs)
        return Scored(record, outcomes, proposals, pairs)

    def shard(self, number: int, *, keep_images: bool) -> None:
        """Run all attacks on one shard, for the journal."""
        shard = self.referee.shards(len(self.test))[number]
        part, clean = self.test.take(shard), torch.zeros(len(self.test), dtype=torch.bool)
        trial = replace(self.trial, only=number)
        with exact_float32():
            clean[shard] = self.referee.answers(as_float(part.images)) == part.labels
            trial.standard(clean, keep_images=keep_images)
            trial.curve(clean, trial.weak(clean)["pgd-20"])

    def _referee(self, net: Net) -> Referee:
        return Referee(net.module, self.rules, batch_size(self.rules, net.header.arch, self.device.type), self.device)

    def _flags(
        self, score: Score, predicted: Tensor, survived: dict[str, Tensor], weak: dict[str, Tensor], parent: Net | None
    ) -> tuple[Flag, ...]:
        referee, test, n = self.referee, self.test, score.n
        images, seed = as_float(test.images), self.rules.attack_seed
        fooled = None
        if parent is not None:
            dense = self._referee(parent)
            fooled = probes.transferred(referee, dense, test, survived["fab-t"], derive(seed, "transfer"))
            referee.passes += dense.passes
        beaten = survived["square"] & ~torch.stack(list(weak.values())).all(0)
        return (
            flags.black_box_wins(score.survived["fab-t"], score.survived["square"], n),
            flags.zero_gradients(*probes.vanishing(referee, images, test.labels), n),
            flags.eps_curve(score.curve, n, int(test.labels.bincount().max()) / n),
            flags.weak_beats_strong(int(beaten.sum()), n),
            flags.weak_strong_gap(score.weak["pgd-20"], score.robust, n),
            flags.nondeterministic(0, n),  # else it had been refused
            flags.quantised_input(probes.unmoved(referee, images, derive(seed, "nudge")), n, probes.NUDGE),
            flags.softmax_output(probes.probabilities(referee.logits(images)), n),
            flags.transfer(fooled, n),
            flags.kernel_disagrees(
                score.unconfirmed or 0, score.proposed, probes.turned(referee, images, test.labels), n
            ),
            self._budget(),
            flags.out_of_range(referee.sizes.excess),
            flags.rounding(int((predicted == NO_ANSWER).sum()), n),
            flags.constant(collapse(self.net), predicted.tolist(), test.labels.tolist()),
        )

    def _budget(self) -> Flag:
        effort = effort_of(self.path, self.net.header)
        return flags.budget_overrun(*((effort.processor, effort.allowed) if effort is not None else (None, None)))

    def _proposals(self, fooled: Tensor) -> bytes:
        """What fooled the net on the images in `fooled`, bool (n,), for a replay."""
        assert self.trial.images is not None  # they were asked for
        radius = self.rules.threat.radius
        index = fooled.nonzero().squeeze(1)
        originals, images = as_float(self.test.images)[index].numpy(), self.trial.images[index].numpy()
        whole = torch.zeros(0, dtype=torch.bool)
        if len(index):
            near = torch.from_numpy(rounded(images, originals, radius))
            whole = self.referee.logits(near).argmax(1) == self.test.labels[index]
        return pack(Proposals(index.numpy(), images), originals, radius, whole.numpy())

    def _record(
        self,
        score: Score,
        passes: int,
        whole: bool,
        parent: Net | None,
        outcomes: bytes,
        proposals: bytes | None,
        pairs: bytes,
    ) -> Record:
        header, rules, test, entries = self.net.header, self.rules, self.test, self.trial.entries
        effort = effort_of(self.path, header)
        told = effort.stages if effort is not None else [None] * len(header.stages)
        stages = tuple(s.model_copy(update={"seconds": t}) for s, t in zip(header.stages, told, strict=True))
        notes: dict[str, str | int | float | bool | None] = {"source": header.source}
        if parent is not None:
            notes["parent"] = parent.id.sha256
        if effort is not None:
            notes["sandbox"] = effort.sandbox
        record: Record = Record.sealed(
            protocol=ProtocolId(name=rules.name, version=rules.version, sha256=rules.sha256),
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
                score_passes=passes,
                score_seconds=sum(e.seconds for e in entries),
                device=str(machine.env(self.device)["device"]),
            ),
            env=machine.env(self.device) | {"kernels": self.referee.fast.bits(self.net.header.shape)},
            notes=notes | distribution(prunable(self.net.module).values()),
            outcomes=sha256_of(outcomes),
            proposals=None if proposals is None else sha256_of(proposals),
            pairs=sha256_of(pairs),
        )
        return record


def _counts(bits: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(alive.sum()) for name, alive in bits.items()}


def forget_others(net: Path) -> None:
    """Delete what lies beside the net file `net` and was measured of another net."""
    try:
        scored = load_record(net.with_name(RECORD))
    except PrunebenchError:
        return  # none is there, or none that anybody would believe
    of = scored.net.sha256 if isinstance(scored, Record) else scored.net
    if of != _file_sha256(net):
        clear(net.parent)


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


def _refusal(path: Path, net: Net | None, refused: Refused, device: torch.device) -> Refusal:
    """The refusal as a record; whose net it was is told when the header could be read."""
    rules = net and net.header.protocol
    refusal: Refusal = Refusal.sealed(
        refused=refused.check,
        reason=str(refused),
        file=path.name,
        net=net.id.sha256 if net else _file_sha256(path),
        protocol=rules and ProtocolId(name=rules.name, version=rules.version, sha256=rules.sha256),
        job=net and net.header.job,
        env=machine.env(device),
    )
    return refusal


def _file_sha256(path: Path) -> str | None:
    try:
        return digest_outside(path, "a net file", LARGEST)
    except PrunebenchError:
        return None
