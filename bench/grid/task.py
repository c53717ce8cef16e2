"""One job of a grid and its steps, which any process may run: train, attack a shard, write the record.

The pruner itself runs in another process (`bench.player.process`). Here its weights are sealed, attacked and recorded.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from prunebench.bench import beside, executor, machine
from prunebench.bench.beside import forget_others
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.grid.cards import need, seated
from prunebench.bench.job import Job
from prunebench.bench.lab.budget import allowed, price
from prunebench.bench.lab.meter import granted
from prunebench.bench.names import NET, RECORD
from prunebench.bench.outcomes import complete, proposals_path
from prunebench.bench.player import handover, sandbox
from prunebench.bench.player.handover import Play
from prunebench.bench.player.host import Fault, Host, host
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record, load_record
from prunebench.bench.score.effort import effort_of, save_effort
from prunebench.bench.score.extras import has
from prunebench.bench.score.scoring import score, score_shard
from prunebench.bench.spec import source_of


@dataclass(frozen=True)
class Task:
    """One job of a grid, in a form that can be sent to another process: pruner spec, job, folders and device.

    `parent`: the folder of the dense net with the same seed, if that is in the grid; its adversarial images are tried
    on this net. `also`, `arithmetic`: as for `score`.
    """

    spec: str
    job: Job
    protocol: Protocol
    folder: Path
    stages: Path
    store: Store
    device: str
    threads: int
    examples: int | None
    best: bool
    keep_proposals: bool
    parent: Path | None
    tensorboard: bool
    sandbox: bool = False
    also: tuple[str, ...] = ()
    arithmetic: str = "float32"

    @property
    def dense(self) -> Path | None:
        """The net of the parent, if it exists."""
        return self.parent / NET if self.parent is not None and (self.parent / NET).exists() else None


@dataclass(frozen=True)
class Ended:
    """How a task ended: `how` is "done", "kept" (done before), "refused" or "failed"; `why` is a sentence."""

    task: Task
    how: str
    why: str


@dataclass(frozen=True)
class Step:
    """A unit of work for one process: train the net of a task, attack it on one shard, or write its record.

    Results found in the task's folder are kept, so a step may be repeated, or run by two processes at once.
    """

    task: Task
    what: Literal["train", "attack", "record"]
    shard: int = 0

    @property
    def name(self) -> str:
        """Unique among the steps of a grid."""
        return f"{self.task.job.name} {self.what} {self.shard}"

    def __call__(self, report: ProgressCallback) -> Ended | None:
        """Run the step; returns None unless the task has ended. An error ends only this task."""
        task = self.task
        torch.set_num_threads(task.threads)
        try:
            with seated(task.device, lambda: need(task.protocol, task.store)) as device:
                return getattr(replace(self, task=replace(task, device=device)), f"_{self.what}")(report)
        except Refused as refused:
            return Ended(task, "refused", str(refused))
        except Fault as fault:
            return self._failed(str(fault), fault.trace)
        except PrunebenchError as error:
            return Ended(task, "failed", str(error))
        except Exception as error:  # noqa: BLE001  an error in one job must not stop the others
            return self._failed(f"{type(error).__name__}: {error}", traceback.format_exc())

    def _failed(self, sentence: str, trace: str) -> Ended:
        log = self.task.folder / "error.txt"
        write_bytes(log, trace.encode(errors="replace"))
        return Ended(self.task, "failed", f"{sentence}; details are in {log}")

    def _train(self, report: ProgressCallback) -> Ended | None:
        task = self.task
        if _scored(task):
            return Ended(task, "kept", "done before")
        try:
            train(
                task.spec,
                task.job,
                task.protocol,
                task.folder,
                task.stages,
                task.store,
                device=task.device,
                report=report,
                tensorboard=task.tensorboard,
                sandboxed=task.sandbox,
            )
        except Refused as refused:  # by the checks of the net file: without a net there is no score to refuse
            return Ended(task, "failed", str(refused))
        return None

    def _attack(self, report: ProgressCallback) -> None:
        task = self.task
        with suppress(Refused):  # the record step will refuse it, for all of its images
            score_shard(
                task.folder / NET,
                self.shard,
                task.protocol,
                task.examples,
                out=task.folder,
                store=task.store,
                device=task.device,
                report=report,
                best=task.best,
                keep_proposals=task.keep_proposals,
                arithmetic=task.arithmetic,
            )

    def _record(self, report: ProgressCallback) -> Ended:
        task = self.task
        record = score(
            task.folder / NET,
            examples=task.examples,
            out=task.folder,
            store=task.store,
            device=task.device,
            report=report,
            protocol=task.protocol,
            parent=task.dense,
            best=task.best,
            also=task.also,
            keep_proposals=task.keep_proposals,
            arithmetic=task.arithmetic,
        )
        best = "" if record.beyond.best is None else f" ({record.beyond.best.robust} best known)"
        found = record.score
        return Ended(task, "done", f"{found.robust} of {found.n} robust{best}, {found.clean} clean")


def train(
    spec: str,
    job: Job,
    protocol: Protocol,
    folder: Path,
    stages: Path,
    store: Store,
    *,
    device: str = "auto",
    report: ProgressCallback | None = None,
    tensorboard: bool = False,
    sandboxed: bool = False,
) -> Path:
    """Train the net of `job` in another process, seal it into `folder`, and return its path.

    A complete net with its effort beside it is kept. `tensorboard`: write training curves to event files below
    `folder/tensorboard`. `sandboxed`: the pruner's process can write only to `folder`, which then also holds its
    stages, and has neither network nor test images. Raises PrunebenchError if the pruner, its budget or the checks of
    the net file object, and Fault for an error in the pruner's own code.
    """
    path, source = folder / NET, source_of(spec)
    if _made_for(path, job, protocol, source, store):
        forget_others(path)
        return path
    where = machine.device_named(device)
    images, _ = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    info, threads = store.info(protocol.data), torch.get_num_threads()
    executor.lacking()  # compiles missing kernels: a sandbox could not save them
    folder.mkdir(parents=True, exist_ok=True)
    try:
        play = Play(spec, job, protocol, store, folder, stages, str(where), threads, tensorboard)
        seconds = (_sandboxed if sandboxed else host().ask)(play, report)[1]
        state, charged = handover.take(folder)
        header = Header(
            arch=protocol.model,
            classes=info.classes,
            shape=info.shape,
            protocol=protocol,
            job=job,
            source=source,
            train_sha256=images.sha256,
            stages=tuple(s.model_copy(update={"seconds": None}) for s in charged),
        )
        bound = None
        if seconds is not None and where.type == "cpu":  # GPU work takes no processor time
            bound = allowed(sum(stage.passes for stage in charged), price(protocol, store, threads))
        told = tuple(stage.seconds or 0.0 for stage in charged)
        save_effort(path, header, stages=told, processor=seconds, allowed=bound, sandbox=sandboxed)
        seal(path, state, header, passes_granted=granted(protocol, len(images)))
        forget_others(path)
    finally:
        (folder / handover.NAME).unlink(missing_ok=True)
        (folder / sandbox.LENT).unlink(missing_ok=True)
    return path


def make_room(folder: Path, job: Job, protocol: Protocol, source: str, *, force: bool) -> None:
    """Raise PrunebenchError if `folder` holds another net: of another job, protocol or source of the pruner.

    With `force`, delete that net instead, and everything measured on it: its record, outcomes, images and journal.
    """
    path = folder / NET
    if not path.exists():
        return
    try:
        header = open_net(path).header
        asked = (header.job, header.protocol.sha256) == (job, protocol.sha256)
        same = asked and header.source == source
        what = f"of {header.protocol.name}, {header.job.name}{', by other code of the pruner' * asked}"
    except Refused:
        same, what = False, "that cannot be read"
    if same:
        return
    if not force:
        raise PrunebenchError(
            f"{folder} holds another net, {what}, while this net is of {protocol.name}, {job.name}; name another "
            "folder with --out, or replace that net and its scores with --force."
        )
    beside.clear(folder)
    path.unlink()


def _sandboxed(play: Play, report: ProgressCallback | None) -> tuple[object, float | None]:
    """Ask a process that serves this request alone, and can see and change only what its training needs."""
    covered = sandbox.hidden(play.store)
    prefix = sandbox.command(play.folder, covered, cards=play.device != "cpu")
    lent = sandbox.lend(play.store, play.protocol, play.folder)
    return Host(prefix).ask(replace(play, store=lent, stages=play.folder / "stages"), report)


def _made_for(path: Path, job: Job, protocol: Protocol, source: str, store: Store) -> bool:
    """Whether the net at `path` is complete and was trained with the same job, rules, pruner and images."""
    try:
        header = open_net(path).header
    except Refused:
        return False
    made = header.job, header.protocol.sha256, header.source
    if effort_of(path, header) is None or made != (job, protocol.sha256, source):
        return False
    train, _ = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    return header.train_sha256 == train.sha256


def _scored(task: Task) -> bool:
    """Whether the folder holds this net, with its outcomes and its record on the requested images."""
    path, rules = task.folder / NET, task.protocol
    if not _made_for(path, task.job, rules, source_of(task.spec), task.store):
        return False
    try:
        record = load_record(task.folder / RECORD)
        if not isinstance(record, Record):
            return False
        complete(task.folder / RECORD, record)
    except PrunebenchError:
        return False
    if task.dense is not None and record.notes.get("parent") != sha256_of(task.dense.read_bytes()):
        return False
    if (task.best and record.beyond.best is None) or not has(record, task.also):
        return False
    kept = proposals_path(task.folder / RECORD)
    if task.keep_proposals and not (kept.exists() and sha256_of(kept.read_bytes()) == record.proposals):
        return False
    test = task.store.testing(rules.data, task.examples or rules.test)
    done = (record.protocol.sha256, record.data.sha256, record.score.n, record.attack_arithmetic.name)
    asked = (rules.sha256, test.sha256, len(test), task.arithmetic)
    return done == asked and record.net.sha256 == sha256_of(path.read_bytes())
