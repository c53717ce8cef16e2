"""Scoring: a net file in, outcomes and a record out. No pruner's code is run and no attack is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import machine
from bench.attacks import STANDARD, Attack, adapted
from bench.checkpoint import LARGEST, Header, Net, open_net
from bench.data import Split, Store, as_float
from bench.errors import PrunebenchError, Refused
from bench.files import canonical_json, sha256_of, write_bytes, write_json
from bench.journal import Entry, Journal
from bench.mask import distribution
from bench.models import prunable
from bench.protocol import Protocol, load
from bench.record import Cost, DataId, ProtocolId, Record, Refusal, Score, Stage, outcomes_path, pack_outcomes
from bench.referee import Referee, batch_size, exact_float32
from bench.seeds import derive

Report = Callable[[str, float, float], None]  # what is at work, how much is done, of how much (sample passes)

REFUSAL, RECORD, TIMES = "refusal.json", "record.json", "times.json"
# Sample passes that an attack costs a point that survives it, for ETAs: forwards + 2 * backwards.
_PRICE = {"apgd-ce": 102 + 2 * 101, "apgd-t": 910 + 2 * 909, "fab-t": 1800 + 2 * 900, "square": 5000}


def score(
    net: str | Path, protocol: str | Protocol | None = None, examples: int | None = None, *,
    out: str | Path | None = None, store: Store | None = None, device: str = "auto", report: Report | None = None,
) -> Record:  # fmt: skip
    """Attack the net in the file `net` with AutoAttack *standard* and count what survives.

    `protocol`: by default the one that the net was made for; another one must be asked for by name. `examples`: only
    the first so many test images. `out`: a folder for record, outcomes and the journal from which a killed run goes on.
    Raises Refused, and leaves the reason in `out`, for a net that cannot be scored.
    """
    path, folder = Path(net), None if out is None else Path(out)
    where = machine.device_named(device)
    opened = None
    try:
        opened = open_net(path)
        rules = protocol if isinstance(protocol, Protocol) else load(protocol) if protocol else _made_for(opened, path)
        record, outcomes = _score(opened, path, rules, examples, folder, store or Store(Path("data")), where, report)
    except Refused as refused:
        if folder is not None:
            _refusal(path, opened, refused, where).save(folder / REFUSAL)
        raise
    if folder is not None:
        (folder / REFUSAL).unlink(missing_ok=True)
        write_bytes(outcomes_path(folder / RECORD), outcomes)
        record.save(folder / RECORD)
    return record


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


def _score(
    net: Net, path: Path, rules: Protocol, examples: int | None, out: Path | None, store: Store, device: torch.device,
    report: Report | None,
) -> tuple[Record, bytes]:  # fmt: skip
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
    referee = Referee(net.module, rules, batch_size(rules, header.arch, device.type), device)
    facts = [net.id.sha256, test.sha256, rules.sha256, referee.batch, machine.env_key(device)]
    with exact_float32():
        predicted = referee.steady_logits(as_float(test.images)).argmax(1)
        clean_passes = referee.passes
        journal = Journal(None if out is None else out / "journal", facts)
        standing, entries = _attack_all(referee, test, predicted == test.labels, journal, report)
    survived = {attack: int(bits.sum()) for attack, bits in standing.items()}
    outcomes = pack_outcomes(
        test.labels.numpy(), predicted.numpy(), {attack: bits.numpy() for attack, bits in standing.items()}, {}, {}
    )
    stages, train_seconds = _timed(path, header)
    whole = len(test) == len(store.testing(rules.data, rules.test))
    record: Record = Record.sealed(
        protocol=ProtocolId(name=rules.name, version=rules.version, sha256=rules.sha256),
        job=header.job,
        net=net.id,
        score=Score(
            n=len(test), clean=int((predicted == test.labels).sum()), robust=list(survived.values())[-1],
            survived=survived, ran=adapted(header.classes), disagreements=sum(e.disagreements for e in entries),
            batch=referee.batch, shard=rules.shard, weak={}, curve=(), flags=(),
        ),
        data=DataId(name=rules.data, sha256=test.sha256, train_sha256=header.train_sha256),
        official=whole and rules.official and header.protocol == rules and header.arch == rules.model,
        cost=Cost(
            stages=stages, train_passes=sum(stage.passes for stage in stages), train_seconds=train_seconds,
            score_passes=clean_passes + sum(e.passes for e in entries), score_seconds=sum(e.seconds for e in entries),
            device=str(machine.env(device)["device"]),
        ),
        env=machine.env(device),
        notes={"source": header.source} | distribution(prunable(net.module).values()),
        outcomes=sha256_of(outcomes),
        proposals=None,
        pairs=None,
    )  # fmt: skip
    return record, outcomes


def _attack_all(
    referee: Referee, test: Split, clean: Tensor, journal: Journal, report: Report | None
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Every shard through every attack, each on what survived the ones before; returns who stands after each."""
    after = {name: torch.zeros(len(test), dtype=torch.bool) for name in STANDARD}
    entries: list[Entry] = []
    progress = _Progress(len(test), report)
    size = referee.rules.shard
    for number, start in enumerate(range(0, len(test), size)):
        shard = slice(start, min(start + size, len(test)))
        seed = derive(referee.rules.attack_seed, "attack", f"shard-{number}")
        standing = clean[shard]
        for name, attack in STANDARD.items():
            referee.listener = progress.listener(name, number)
            entry = journal.entry(
                name, shard, seed, standing, _Measurement(referee, attack, test.take(shard), standing, seed)
            )
            progress.finished(name, len(standing), int(entry.bits.sum()))
            standing = after[name][shard] = entry.bits
            entries.append(entry)
    return after, entries


class _Measurement:
    """One attack on those images of a shard that still stand, to be made when the journal does not know it."""

    def __init__(self, referee: Referee, attack: Attack, shard: Split, standing: Tensor, seed: int) -> None:
        self.referee, self.attack, self.shard, self.standing, self.seed = referee, attack, shard, standing, seed

    def __call__(self) -> tuple[Tensor, int, int, int]:
        """Who stands afterwards, disagreements, batch size, sample passes."""
        before, left, disagreements = self.referee.passes, self.standing.clone(), 0
        if left.any():
            part = self.shard.take(left.nonzero().squeeze(1))
            fooled, disagreements = self.referee.fooled(self.attack, as_float(part.images), part.labels, self.seed)
            left[self.standing] = ~fooled
        return left, disagreements, self.referee.batch, self.referee.passes - before


class _Progress:
    """How far a scoring is, in sample passes: what is done, and what is left if images keep falling as they did."""

    def __init__(self, images: int, report: Report | None) -> None:
        self.images, self.report = images, report
        self.done = self.current = self.estimate = 0.0
        self.seen = dict.fromkeys(_PRICE, (0, 0))  # attack -> images it reached, images that survived it

    def listener(self, attack: str, shard: int) -> Callable[[int], None] | None:
        """What to call with the sample passes of every forward of `attack` on shard number `shard`."""
        if self.report is None:
            return None
        report, self.estimate = self.report, self._left()

        def listen(passes: int) -> None:
            self.current += passes
            so_far = self.done + self.current
            report(f"shard {shard + 1}, {attack}", so_far, so_far + max(self.estimate - self.current, 1.0))

        return listen

    def finished(self, attack: str, reached: int, survived: int) -> None:
        """Note what an attack left of a shard."""
        self.done, self.current = self.done + self.current, 0.0
        before = self.seen[attack]
        self.seen[attack] = (before[0] + reached, before[1] + survived)

    def _left(self) -> float:
        """Sample passes still to come."""
        total, share = 0.0, 1.0
        for attack, price in _PRICE.items():
            reached, survived = self.seen[attack]
            total += (self.images - reached) * share * price
            share = survived / reached if reached else share
        return total


def save_times(net: Path, header: Header, seconds: list[float]) -> None:
    """Put down what each stage of the training of `net` took, beside it: nets themselves compare byte for byte."""
    write_json(net.with_name(TIMES), {"header": _of(header), "seconds": seconds})


def _timed(net: Path, header: Header) -> tuple[tuple[Stage, ...], float | None]:
    """The stages with their seconds, and the sum, where they were put down beside the net."""
    path = net.with_name(TIMES)
    times = json.loads(path.read_bytes()) if path.exists() else {}
    if times.get("header") != _of(header):
        return header.stages, None
    seconds: list[float] = times["seconds"]
    stages = tuple(s.model_copy(update={"seconds": t}) for s, t in zip(header.stages, seconds, strict=True))
    return stages, sum(seconds)


def _of(header: Header) -> str:
    return sha256_of(canonical_json(header.model_dump(mode="json")))


def _refusal(path: Path, net: Net | None, refused: Refused, device: torch.device) -> Refusal:
    """The refusal as a record; whose net it was is told when the header could be read."""
    rules = net and net.header.protocol
    refusal: Refusal = Refusal.sealed(
        refused=refused.check, reason=str(refused), file=path.name, net=net.id.sha256 if net else _file_sha256(path),
        protocol=rules and ProtocolId(name=rules.name, version=rules.version, sha256=rules.sha256),
        job=net and net.header.job, env=machine.env(device),
    )  # fmt: skip
    return refusal


def _file_sha256(path: Path) -> str | None:
    readable = path.is_file() and path.stat().st_size <= LARGEST
    return sha256_of(path.read_bytes()) if readable else None
