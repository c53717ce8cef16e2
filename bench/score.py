"""The referee: a net file in, outcomes and a record out. It runs no pruner's code and believes no attack."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench import machine, record
from bench.attacks import STANDARD, Attack, adapted, within
from bench.checkpoint import Net, open_net
from bench.data import Split, Store, as_float
from bench.errors import PrunebenchError, Refused
from bench.files import canonical_json, sha256_of, write_bytes, write_json
from bench.protocol import Protocol, load
from bench.record import Cost, DataId, ProtocolId, Record, Refusal, Score, outcomes_path, pack_outcomes
from bench.seeds import derive

Report = Callable[[str, float, float], None]  # what is at work, how much is done, of how much (sample passes)

# Sample passes that an attack costs a point that survives it, for ETAs: forwards + 2 * backwards.
_PRICE = {"apgd-ce": 102 + 2 * 101, "apgd-t": 910 + 2 * 909, "fab-t": 1800 + 2 * 900, "square": 5000}
_BATCH = {("resnet18", "cpu"): 64, ("vgg16-bn", "cpu"): 64}
REFUSAL, RECORD = "refusal.json", "record.json"


def batch_size(protocol: Protocol, arch: str, device: str) -> int:
    """How many images the referee measures at once: a function of protocol, architecture and device kind alone."""
    return min(protocol.shard, _BATCH.get((arch, device), 256))


def score(
    net: str | Path, protocol: str | Protocol | None = None, examples: int | None = None, *, out: str | Path | None = None,
    store: Store | None = None, device: str = "auto", report: Report | None = None,
) -> Record:  # fmt: skip
    """Attack the net in the file `net` with AutoAttack *standard* and count what survives.

    `protocol`: by default the one that the net was made for; another one must be asked for by name. `examples`: only the
    first so many test images. `out`: a folder for record, outcomes and the journal from which a killed run goes on.
    Raises Refused, and leaves the reason in `out`, for a net that cannot be scored.
    """
    folder = None if out is None else Path(out)
    where = machine.device_named(device)
    try:
        opened = open_net(net)
        rules = _rules(opened, protocol, str(net))
        return _score(opened, rules, examples, folder, store or Store(Path("data")), where, report)
    except Refused as refused:
        if folder is not None:
            _refusal(Path(net), refused, where).save(folder / REFUSAL)
        raise


def _rules(net: Net, asked: str | Protocol | None, name: str) -> Protocol:
    if asked is not None:
        return asked if isinstance(asked, Protocol) else load(asked)
    made_for = net.header.protocol
    try:
        known: Protocol | None = load(made_for.name)
    except PrunebenchError:
        known = None  # a protocol of the user's own: its rules travel in the header
    if known is not None and known != made_for:
        raise Refused(
            "protocol",
            f"{name} was made for {made_for.name} with other rules (sha256 {made_for.sha256[:12]}) than today's "
            f"({known.sha256[:12]}); ask for a protocol by name (--protocol) to score it all the same.",
        )
    return made_for


def _score(
    net: Net, rules: Protocol, examples: int | None, out: Path | None, store: Store, device: torch.device, report: Report | None
) -> Record:
    test = store.testing(rules.data, rules.test if examples is None else _at_most(examples, rules))
    header = net.header
    if (header.classes, header.shape) != (store.info(rules.data).classes, tuple(test.images.shape[1:])):
        raise Refused(
            "protocol",
            f"The net takes {header.shape} images of {header.classes} classes, {rules.name} has "
            f"{tuple(test.images.shape[1:])} of {store.info(rules.data).classes}; name a protocol that fits.",
        )
    referee = Referee(net.module, rules, batch_size(rules, header.arch, device.type), device)
    with _exact_float32():
        logits = referee.logits(as_float(test.images))
        _check_logits(logits, referee.logits(as_float(test.images)))
        predicted = logits.argmax(1)
        key = [net.id.sha256, test.sha256, rules.sha256, referee.batch, machine.env_key(device)]
        journal = _Journal(None if out is None else out / "journal", key)
        alive, passes, seconds, disagreements = _attack_all(referee, test, predicted == test.labels, journal, report)
    survived = {name: bits.numpy() for name, bits in alive.items()}
    outcomes = pack_outcomes(test.labels.numpy(), predicted.numpy(), survived)
    stages, train_seconds = _with_times(net, out)
    result: Record = Record.sealed(
        protocol=ProtocolId(name=rules.name, version=rules.version, sha256=rules.sha256),
        job=header.job,
        net=net.id,
        score=Score(
            n=len(test), clean=int((predicted == test.labels).sum()), robust=int(list(survived.values())[-1].sum()),
            survived={name: int(bits.sum()) for name, bits in survived.items()}, ran=adapted(header.classes),
            disagreements=disagreements, batch=referee.batch, shard=rules.shard,
        ),
        data=DataId(name=rules.data, sha256=test.sha256, train_sha256=header.train_sha256),
        official=rules.official and header.protocol == rules and header.arch == rules.model and examples in (None, rules.test),
        cost=Cost(
            stages=stages, train_passes=sum(stage.passes for stage in stages), train_seconds=train_seconds,
            score_passes=passes + 2 * len(test), score_seconds=seconds, device=str(machine.env(device)["device"]),
        ),
        env=machine.env(device),
        notes={"source": header.source},
        outcomes=sha256_of(outcomes),
    )  # fmt: skip
    if out is not None:
        (out / REFUSAL).unlink(missing_ok=True)
        write_bytes(outcomes_path(out / RECORD), outcomes)
        result.save(out / RECORD)
    return result


class Referee:
    """A net under measurement: frozen, float32, always run on whole batches of one shape.

    A result then does not depend on how the work was cut: the same shape gives the same bits in any order.
    """

    def __init__(self, module: nn.Module, rules: Protocol, batch: int, device: torch.device) -> None:
        self.net = module.to(device).eval().requires_grad_(False)
        self.rules, self.batch, self.device = rules, batch, device
        self.passes = 0
        self.listener: Callable[[int], None] | None = None

    def attacked(self, images: Tensor) -> Tensor:
        """The net as attacks see it; counts sample passes (a forward that leads to a gradient is 3)."""
        passes = len(images) * (3 if images.requires_grad and torch.is_grad_enabled() else 1)
        self.passes += passes
        if self.listener is not None:
            self.listener(passes)
        return self.net(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of `images`, measured in padded batches; on the CPU."""
        measured = []
        for part in images.split(self.batch):
            padded = torch.cat([part, part.new_zeros(self.batch - len(part), *part.shape[1:])])
            measured.append(self.net(padded.to(self.device))[: len(part)].cpu())
        return torch.cat(measured)

    def fooled(self, attack: Attack, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, int]:
        """Which images `attack` gets misclassified, by our own measurement, and how many of its successes were none.

        Both tensors lie on the CPU. A proposal is brought into the ball and into [0, 1] and measured on the plain net.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        clean = images.to(self.device)
        proposals = attack(self.attacked, clean, labels.to(self.device), self.rules.threat, generator=generator)
        usable = proposals.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        proposals = torch.where(usable, proposals, clean)
        proposed = (proposals != clean).flatten(1).any(1).cpu()
        fooled = self.logits(within(proposals, clean, self.rules.threat).cpu()).argmax(1) != labels
        return fooled, int((proposed & ~fooled).sum())


@dataclass(frozen=True)
class _Entry:
    """One attack on one shard: a digit per image that was attacked (1: still right), and what it took."""

    key: str
    alive: str
    disagreements: int
    batch: int
    passes: int
    seconds: float


class _Journal:
    """What has been measured so far, a file per shard and attack; an entry counts only under the very same key."""

    def __init__(self, folder: Path | None, facts: list[object]) -> None:
        self.folder, self.facts = folder, facts

    def entry(self, shard: slice, attack: str, seed: int, before: Tensor, run: Callable[[], tuple[Tensor, int, int, int]]) -> _Entry:
        """The entry in the journal, or what `run` measures now: (alive, disagreements, batch, passes)."""
        bits = "".join("1" if bit else "0" for bit in before.tolist())
        key = sha256_of(canonical_json([*self.facts, shard.start, shard.stop, attack, seed, bits]))
        path = None if self.folder is None else self.folder / f"shard-{shard.start:05}-{shard.stop:05}-{attack}.json"
        if path is not None and path.exists():
            try:
                kept = _Entry(**json.loads(path.read_bytes()))
                if kept.key == key:
                    return kept
            except (ValueError, TypeError):
                pass  # not an entry of ours, so it is measured anew
        began = time.perf_counter()
        alive, disagreements, batch, passes = run()
        digits = "".join("1" if bit else "0" for bit in alive.tolist())
        entry = _Entry(key, digits, disagreements, batch, passes, time.perf_counter() - began)
        if path is not None:
            write_json(path, asdict(entry))
        return entry


def _attack_all(
    referee: Referee, test: Split, clean: Tensor, journal: _Journal, report: Report | None
) -> tuple[dict[str, Tensor], int, float, int]:
    """Every shard through every attack; returns who is still right after each, passes, seconds and disagreements."""
    alive = {name: torch.zeros(len(test), dtype=torch.bool) for name in STANDARD}
    entries: list[_Entry] = []
    progress = _Progress(len(test), report)
    for start in range(0, len(test), referee.rules.shard):
        shard = slice(start, min(start + referee.rules.shard, len(test)))
        images, labels, standing = as_float(test.images[shard]), test.labels[shard], clean[shard].clone()
        seed = derive(referee.rules.attack_seed, "attack", f"shard-{start // referee.rules.shard}")
        for name, attack in STANDARD.items():

            def run(attack: Attack = attack, standing: Tensor = standing) -> tuple[Tensor, int, int, int]:
                before = referee.passes
                index = standing.nonzero().squeeze(1)
                left, wrong = standing.clone(), 0
                if len(index):
                    fooled, wrong = referee.fooled(attack, images[index], labels[index], seed)
                    left[index] = ~fooled
                return left, wrong, referee.batch, referee.passes - before

            referee.listener = progress.listener(name, start // referee.rules.shard)
            entry = journal.entry(shard, name, seed, standing, run)
            standing = torch.tensor([digit == "1" for digit in entry.alive])
            alive[name][shard] = standing
            entries.append(entry)
            progress.finished(name, len(images), int(standing.sum()))
    return alive, sum(e.passes for e in entries), sum(e.seconds for e in entries), sum(e.disagreements for e in entries)


class _Progress:
    """How far a scoring is, in sample passes: what is done, and what is left if images keep falling as they did."""

    def __init__(self, images: int, report: Report | None) -> None:
        self.images, self.report = images, report
        self.done, self.within, self.estimate = 0.0, 0.0, 0.0
        self.seen: dict[str, tuple[int, int]] = {}  # attack -> images it was reached by, images that survived it
        self.next_report = 0.0

    def listener(self, attack: str, shard: int) -> Callable[[int], None] | None:
        """What to call with the sample passes of every forward of `attack` on `shard`."""
        if self.report is None:
            return None
        self.within, self.estimate = 0.0, self._left()

        def listen(passes: int) -> None:
            self.within += passes
            if time.monotonic() >= self.next_report and self.report is not None:
                self.next_report = time.monotonic() + 0.2
                left = max(self.estimate - self.within, 0.02 * self.estimate)
                self.report(f"shard {shard + 1}, {attack}", self.done + self.within, self.done + self.within + left)

        return listen

    def finished(self, attack: str, reached: int, survived: int) -> None:
        """Note what an attack left of a shard."""
        self.done += self.within
        self.within = 0.0
        before = self.seen.get(attack, (0, 0))
        self.seen[attack] = (before[0] + reached, before[1] + survived)

    def _left(self) -> float:
        """Sample passes still to come."""
        total, share = 0.0, 1.0
        for attack, price in _PRICE.items():
            reached, survived = self.seen.get(attack, (0, 0))
            total += (self.images - reached) * share * price
            share = survived / reached if reached else share
        return total


@contextmanager
def _exact_float32() -> Iterator[None]:
    """TF32 off while we measure; put back as it was."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _check_logits(first: Tensor, second: Tensor) -> None:
    if not first.isfinite().all():
        bad = int((~first.isfinite().all(1)).sum())
        raise Refused("non-finite", f"The net gives NaN or infinite logits on {bad} of {len(first)} images; train it anew.")
    if not torch.equal(first, second):
        bad = int((first != second).any(1).sum())
        raise Refused(
            "nondeterministic",
            f"The same {len(first)} images gave other logits the second time on {bad} of them; an attack on a net that "
            "draws at random measures luck, so take the randomness out.",
        )


def _at_most(examples: int, rules: Protocol) -> int:
    if examples < 1 or (rules.test is not None and examples > rules.test):
        raise PrunebenchError(f"--examples {examples} is not between 1 and the {rules.test or 'all'} test images of {rules.name}.")
    return examples


def times_path(folder: Path) -> Path:
    """Where the seconds of a training wait for the record: outside the net, so that nets compare byte for byte."""
    return folder / "times.json"


def _with_times(net: Net, out: Path | None) -> tuple[tuple[record.Stage, ...], float | None]:
    stages = net.header.stages
    path = None if out is None else times_path(out)
    if path is None or not path.exists():
        return stages, None
    times = json.loads(path.read_bytes())
    if times.get("net") != net.id.sha256:
        return stages, None
    timed = tuple(stage.model_copy(update={"seconds": s}) for stage, s in zip(stages, times["seconds"], strict=True))
    return timed, sum(times["seconds"])


def _refusal(net: Path, refused: Refused, device: torch.device) -> Refusal:
    """The refusal as a record; who made the net is told where the header can still be read."""
    try:
        header = open_net(net).header
    except Refused:
        header = None
    protocol = header and ProtocolId(name=header.protocol.name, version=header.protocol.version, sha256=header.protocol.sha256)
    sha256 = sha256_of(net.read_bytes()) if net.is_file() and net.stat().st_size <= 2**30 else None
    refusal: Refusal = Refusal.sealed(
        refused=refused.check, reason=str(refused), file=net.name, net=sha256, protocol=protocol, job=header and header.job,
        env=machine.env(device),
    )  # fmt: skip
    return refusal
