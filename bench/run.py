"""A grid of jobs: train, score, publish the record; every step is skipped when its result is there and whole."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.checkpoint import Header, open_net, seal
from bench.curves import Curves
from bench.data import Store
from bench.errors import PrunebenchError, Refused
from bench.files import canonical_json, sha256_of, sole_user, write_bytes
from bench.lab import Lab
from bench.protocol import Job, Protocol, as_sparsity
from bench.record import Record, load_record, outcomes_path, pairs_path, proposals_path, recount
from bench.score import RECORD, REFUSAL, save_times, score
from bench.train import Report
from pruners import Chosen, parse

NET = "net.safetensors"


@dataclass(frozen=True)
class Task:
    """One job of a grid, in a form that another process can take: the pruner by its spec, the job, where, on what.

    `parent`: the folder of the dense net under the same seed, if that is in the grid; it is trained first, and its
    adversarial images are tried on this net.
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


def job_of(chosen: Chosen, sparsity: float | None, seed: int) -> Job:
    """The job of one pruner. Raises PrunebenchError when the pruner cannot be asked for that sparsity."""
    if not chosen.prunes:
        if sparsity:
            raise PrunebenchError(
                f"Pruner {chosen.name!r} does not prune, so sparsity {sparsity} makes no sense; use 0."
            )
        sparsity = 0.0
    elif sparsity is None:
        raise PrunebenchError(f"Pruner {chosen.name!r} needs a sparsity in [0, 1); give --sparsity.")
    return Job(pruner=chosen.name, options=chosen.options, sparsity=float(as_sparsity(sparsity)), seed=seed)


def grid(specs: Iterable[str], sparsities: Iterable[float], seeds: Iterable[int]) -> list[tuple[str, Job]]:
    """Every pruner at every sparsity (at 0 if it does not prune) under every seed, seeds outermost, no job twice."""
    chosen = [(spec, parse(spec)) for spec in specs]
    jobs: dict[str, tuple[str, Job]] = {}
    for seed in seeds:
        for spec, pruner in chosen:
            for sparsity in sparsities if pruner.prunes else [0.0]:
                job = job_of(pruner, sparsity, seed)
                jobs.setdefault(job.name, (spec, job))
    return list(jobs.values())


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


def run(
    protocol: Protocol, jobs: list[tuple[str, Job]], out: Path, store: Store, *, workers: int = 1, threads: int = 1,
    device: str = "auto", examples: int | None = None, keep_proposals: bool = False, tensorboard: bool = False,
    report: Callable[[str, str, float, float], None] | None = None, ended: Callable[[Ended], None] | None = None,
) -> list[Ended]:  # fmt: skip
    """Train and score `jobs`, `workers` side by side, and publish their records below `out/records`.

    `keep_proposals`: keep what fooled each net, so that a claim can be replayed. `tensorboard`: as for `train`. What is
    done already is kept, so a run that was killed goes on where it was. A job that fails is reported once and does not
    stop the others. `report(job, what, done, of)` and `ended` are called in this process. Raises PrunebenchError when
    another run is at work in `out`.
    """
    with sole_user(out):
        folders = {job.name: out / "jobs" / job_id(protocol, spec, job) for spec, job in jobs}
        dense = {job.seed: job.name for _, job in jobs if job.pruner == "dense" and not job.options}
        tasks = []
        for spec, job in jobs:
            parent = dense.get(job.seed, job.name)
            tasks.append(
                Task(
                    spec, job, protocol, folders[job.name], out / "stages", store, device, threads, examples,
                    keep_proposals, None if parent == job.name else folders[parent], tensorboard,
                )
            )  # fmt: skip
        results = []
        with closing(_side_by_side(tasks, workers, report)) as ends:  # no worker outlives the lock
            for result in ends:
                _publish(result, out / "records")
                results.append(result)
                if ended is not None:
                    ended(result)
    return results


def job_id(protocol: Protocol, spec: str, job: Job) -> str:
    """The folder of a job: readable, and a hash of the rules, the job and the source of the pruner."""
    facts = [protocol.sha256, job.model_dump(mode="json"), parse(spec).source]
    return f"{job.name}-{sha256_of(canonical_json(facts))[:12]}"


def _publish(result: Ended, records: Path) -> None:
    """Copy the record and the files beside it (or the refusal) to where the leaderboard reads them."""
    target = records / result.task.protocol.name / f"{result.task.job.name}.json"
    source = result.task.folder / (REFUSAL if result.how == "refused" else RECORD)
    if result.how == "failed" or not source.exists():
        return
    if result.how != "refused":
        for beside in (outcomes_path, proposals_path, pairs_path):
            if beside(source).exists():
                write_bytes(beside(target), beside(source).read_bytes())
            else:
                beside(target).unlink(missing_ok=True)
    write_bytes(target, source.read_bytes())


def _side_by_side(
    tasks: list[Task], workers: int, report: Callable[[str, str, float, float], None] | None
) -> Generator[Ended]:
    """Work through `tasks` in `workers` processes and yield each as it ends.

    A net is scored as soon as it and its parent have been trained; until then the workers train the next ones.
    """
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    news = spawn.Queue()
    folders = {task.folder for task in tasks}
    untrained, trained, settled = deque(tasks), list[Task](), set[Path]()
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(news,)) as pool:
        futures: dict[Future[Ended | None], Task] = {}
        try:
            while untrained or trained or futures:
                while len(futures) < workers:
                    free = (task for task in trained if task.parent not in folders or task.parent in settled)
                    if (task := next(free, None)) is not None:
                        trained.remove(task)
                        futures[_submit(pool, _score, task)] = task
                    elif untrained:
                        task = untrained.popleft()
                        futures[_submit(pool, _train, task)] = task
                    else:
                        break
                _pass_on(news, report)
                for future in [future for future in futures if future.done()]:
                    task = futures.pop(future)
                    settled.add(task.folder)
                    if (ended := _result(future, task)) is None:
                        trained.append(task)
                    else:
                        yield ended
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _submit(pool: ProcessPoolExecutor, step: Callable[[Task], Ended | None], task: Task) -> Future[Ended | None]:
    """The step handed to the pool; when that is broken, a future that says so."""
    try:
        return pool.submit(step, task)
    except BrokenProcessPool as error:
        broken: Future[Ended | None] = Future()
        broken.set_exception(error)
        return broken


def _pass_on(news: Any, report: Callable[[str, str, float, float], None] | None) -> None:
    """Hand on what the workers have told; wait a little for more."""
    try:
        item = news.get(timeout=0.1)
        while True:
            if report is not None:
                report(*item)
            item = news.get_nowait()
    except queue.Empty:
        return


def _result(future: Future[Ended | None], task: Task) -> Ended | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return Ended(task, "failed", "A worker process died, perhaps for want of memory; run again, with fewer --jobs.")


_news: Any = None  # in a worker: the queue to the process that started the grid


def _begin(news: Any) -> None:
    """In a worker: know whom to tell, and die with them, so that nobody writes after a new run has begun."""
    global _news
    _news = news
    news.cancel_join_thread()  # what nobody will read must not hold up the end
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _train(task: Task) -> Ended | None:
    """In a worker process: see to it that the net is there; None when it is still to be scored."""

    def step() -> Ended | None:
        if _scored(task):
            return Ended(task, "kept", "done before")
        try:
            train(
                task.spec, task.job, task.protocol, task.folder, task.stages, task.store, device=task.device,
                report=_reporter(task), tensorboard=task.tensorboard,
            )  # fmt: skip
        except Refused as refused:  # by the checks of the net file: there is no net to refuse a score
            return Ended(task, "failed", str(refused))
        return None

    return _kept_from_raising(task, step)


def _score(task: Task) -> Ended | None:
    """In a worker process: score the net that is there."""

    def step() -> Ended:
        record = score(
            task.folder / NET, examples=task.examples, out=task.folder, store=task.store, device=task.device,
            report=_reporter(task), protocol=task.protocol, parent=task.dense, keep_proposals=task.keep_proposals,
        )  # fmt: skip
        return Ended(task, "done", f"{record.score.robust} of {record.score.n} robust, {record.score.clean} clean")

    return _kept_from_raising(task, step)


def _reporter(task: Task) -> Report:
    last = 0.0

    def report(what: str, done: float, total: float) -> None:
        nonlocal last
        if _news is not None and time.monotonic() - last > 0.25:
            last = time.monotonic()
            _news.put((task.job.name, what, done, total))

    return report


def _kept_from_raising(task: Task, step: Callable[[], Ended | None]) -> Ended | None:
    """What `step` says; an error ends this task with its reason and no other."""
    torch.set_num_threads(task.threads)
    try:
        return step()
    except Refused as refused:
        return Ended(task, "refused", str(refused))
    except PrunebenchError as error:
        return Ended(task, "failed", str(error))
    except Exception as error:  # noqa: BLE001  a pruner may be anybody's code; its fault must not stop the others
        log = task.folder / "error.txt"
        write_bytes(log, traceback.format_exc().encode())
        return Ended(task, "failed", f"{type(error).__name__}: {error} (the whole story is in {log})")


def _scored(task: Task) -> bool:
    """Whether the folder holds this net, and outcomes and record of it over the images that are asked for now."""
    path, rules = task.folder / NET, task.protocol
    if not _made_for(path, task.job, rules, parse(task.spec).source, task.store):
        return False
    try:
        record = load_record(task.folder / RECORD)
        if isinstance(record, Record):
            recount(task.folder / RECORD, record)
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
