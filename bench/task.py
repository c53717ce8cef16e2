"""One job of a grid and its steps, each of which any process may take: train, attack a shard, write the record."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench import machine
from bench.checkpoint import Header, open_net, seal
from bench.curves import Curves
from bench.data import Store
from bench.errors import PrunebenchError, Refused
from bench.files import sha256_of, write_bytes
from bench.lab import Lab
from bench.protocol import Job, Protocol
from bench.record import Record, complete, load_record, proposals_path
from bench.score import RECORD, attack_shard, save_times, score
from bench.train import Report
from pruners import parse

NET = "net.safetensors"


@dataclass(frozen=True)
class Task:
    """One job of a grid, in a form that another process can take: the pruner by its spec, the job, where, on what.

    `parent`: the folder of the dense net under the same seed, if that is in the grid; its adversarial images are tried
    on this net.
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
    keep_proposals: bool
    parent: Path | None
    tensorboard: bool

    @property
    def dense(self) -> Path | None:
        """The parent's net, if there is one."""
        return self.parent / NET if self.parent is not None and (self.parent / NET).exists() else None


@dataclass(frozen=True)
class Ended:
    """How a task ended: `how` is "done", "kept" (it had been done before), "refused" or "failed", `why` a sentence."""

    task: Task
    how: str
    why: str


@dataclass(frozen=True)
class Step:
    """What one process does at a time: train the net of a task, attack it on one shard, or write its record.

    What has been done is found in the task's folder and kept, so a step may be taken again, or by two at once.
    """

    task: Task
    what: Literal["train", "attack", "record"]
    shard: int = 0

    @property
    def name(self) -> str:
        """Unlike that of any other step of a grid."""
        return f"{self.task.job.name} {self.what} {self.shard}"

    def __call__(self, report: Report) -> Ended | None:
        """Take the step; None unless the task has come to its end. An error ends this task and no other."""
        task = self.task
        torch.set_num_threads(task.threads)
        try:
            return {"train": self._train, "attack": self._attack, "record": self._record}[self.what](report)
        except Refused as refused:
            return Ended(task, "refused", str(refused))
        except PrunebenchError as error:
            return Ended(task, "failed", str(error))
        except Exception as error:  # noqa: BLE001  a pruner may be anybody's code; its fault must not stop the others
            log = task.folder / "error.txt"
            write_bytes(log, traceback.format_exc().encode())
            return Ended(task, "failed", f"{type(error).__name__}: {error} (the whole story is in {log})")

    def _train(self, report: Report) -> Ended | None:
        task = self.task
        if _scored(task):
            return Ended(task, "kept", "done before")
        try:
            train(
                task.spec, task.job, task.protocol, task.folder, task.stages, task.store, device=task.device,
                report=report, tensorboard=task.tensorboard,
            )  # fmt: skip
        except Refused as refused:  # by the checks of the net file: there is no net to refuse a score
            return Ended(task, "failed", str(refused))
        return None

    def _attack(self, report: Report) -> Ended | None:
        task = self.task
        try:
            attack_shard(
                task.folder / NET, self.shard, task.protocol, task.examples, out=task.folder, store=task.store,
                device=task.device, report=report, keep_proposals=task.keep_proposals,
            )  # fmt: skip
        except Refused:
            return None  # it will be refused when its record is to be written, for all of its images
        return None

    def _record(self, report: Report) -> Ended:
        task = self.task
        record = score(
            task.folder / NET, examples=task.examples, out=task.folder, store=task.store, device=task.device,
            report=report, protocol=task.protocol, parent=task.dense, keep_proposals=task.keep_proposals,
        )  # fmt: skip
        return Ended(task, "done", f"{record.score.robust} of {record.score.n} robust, {record.score.clean} clean")


def train(spec: str, job: Job, protocol: Protocol, folder: Path, stages: Path, store: Store, *, device: str = "auto",
          report: Report | None = None, tensorboard: bool = False) -> Path:  # fmt: skip
    """Train the net of `job` into `folder` and return its path; a net that is there and whole is kept.

    `tensorboard`: put the course of its trainings into event files below `folder/tensorboard`. Raises PrunebenchError
    for whatever the pruner, its budget or the checks of the net file object to.
    """
    path = folder / NET
    chosen = parse(spec)
    if _made_for(path, job, protocol, chosen.source, store):
        return path
    where = machine.device_named(device)
    lab = Lab(
        job, protocol, store, stages, device=where, report=report, resolve=lambda spec: parse(spec).pruner,
        curves=Curves(folder / "tensorboard") if tensorboard else None,
    )  # fmt: skip
    state = chosen.pruner(job, lab)
    header = Header(
        arch=protocol.model, classes=lab.info.classes, shape=lab.info.shape, protocol=protocol, job=job,
        source=chosen.source, train_sha256=lab.train_sha256,
        stages=tuple(s.model_copy(update={"seconds": None}) for s in lab.meter.stages),
    )  # fmt: skip
    save_times(path, header, [stage.seconds or 0.0 for stage in lab.meter.stages])
    seal(path, state, header, passes_granted=lab.meter.granted)
    return path


def _made_for(path: Path, job: Job, protocol: Protocol, source: str, store: Store) -> bool:
    """Whether the net at `path` is whole and the one that would be trained now: same job, rules, pruner and images."""
    try:
        header = open_net(path).header
    except Refused:
        return False
    if (header.job, header.protocol, header.source) != (job, protocol, source):
        return False
    train, _ = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    return header.train_sha256 == train.sha256


def _scored(task: Task) -> bool:
    """Whether the folder holds this net, and outcomes and record of it over the images that are asked for now."""
    path, rules = task.folder / NET, task.protocol
    if not _made_for(path, task.job, rules, parse(task.spec).source, task.store):
        return False
    try:
        record = load_record(task.folder / RECORD)
        if isinstance(record, Record):
            complete(task.folder / RECORD, record)
    except PrunebenchError:
        return False
    if not isinstance(record, Record):
        return False
    if task.dense is not None and record.notes.get("parent") != sha256_of(task.dense.read_bytes()):
        return False
    if task.keep_proposals and not _holds(proposals_path(task.folder / RECORD), record.proposals):
        return False
    test = task.store.testing(rules.data, task.examples or rules.test)
    found = (record.net.sha256, record.protocol.sha256, record.data.sha256, record.score.n)
    return found == (sha256_of(path.read_bytes()), rules.sha256, test.sha256, len(test))


def _holds(path: Path, sha256: str | None) -> bool:
    return path.exists() and sha256_of(path.read_bytes()) == sha256
