"""Run a grid of jobs: train, score, publish; a step is skipped if its result exists and is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Protocol as Interface

from prunebench.bench.beside import publish
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, sha256_of, sole_user
from prunebench.bench.grid.local import Engine, Pool
from prunebench.bench.grid.task import Ended, Step, Task
from prunebench.bench.job import Job
from prunebench.bench.names import NET, RECORD, REFUSAL
from prunebench.bench.player.host import describe
from prunebench.bench.progress import JobProgressCallback, ProgressUpdate
from prunebench.bench.protocol import Protocol, as_sparsity
from prunebench.bench.score.arithmetic import arithmetic_named
from prunebench.bench.score.measurement import Asked
from prunebench.bench.spec import source_of


class Pruner(Interface):
    """What a job must know about a pruner: its name, its non-default options, and whether it prunes."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> dict[str, bool | int | float | str]: ...

    @property
    def prunes(self) -> bool: ...


def job_of(pruner: Pruner, sparsity: float | None, seed: int) -> Job:
    """The job of one pruner. Raises PrunebenchError if that sparsity cannot be requested of the pruner."""
    if not pruner.prunes:
        if sparsity:
            raise PrunebenchError(
                f"Pruner {pruner.name!r} does not prune, so sparsity {sparsity} is impossible; use 0."
            )
        sparsity = 0.0
    elif sparsity is None:
        raise PrunebenchError(f"Pruner {pruner.name!r} needs a sparsity in [0, 1); give --sparsity.")
    return Job(pruner=pruner.name, options=pruner.options, sparsity=float(as_sparsity(sparsity)), seed=seed)


def grid(specs: Iterable[str], sparsities: Iterable[float], seeds: Iterable[int]) -> list[tuple[str, Job]]:
    """Every pruner at every sparsity (0 if it does not prune) for every seed, seeds outermost, without duplicates."""
    described = [(one.spec, one) for one in describe(list(specs))]
    jobs: dict[str, tuple[str, Job]] = {}
    for seed in seeds:
        for spec, pruner in described:
            for sparsity in sparsities if pruner.prunes else [0.0]:
                job = job_of(pruner, sparsity, seed)
                jobs.setdefault(job.name, (spec, job))
    return list(jobs.values())


def run(
    protocol: Protocol,
    jobs: list[tuple[str, Job]],
    out: Path,
    store: Store,
    *,
    engine: Engine | None = None,
    threads: int = 1,
    device: str = "auto",
    examples: int | None = None,
    best: bool = False,
    also: Sequence[str] = (),
    keep_proposals: bool = False,
    tensorboard: bool = False,
    sandbox: bool = False,
    arithmetic: str = "float32",
    report: JobProgressCallback | None = None,
    ended: Callable[[Ended], None] | None = None,
) -> list[Ended]:
    """Train and score `jobs` on `engine` (one process by default), and publish their records below `out/records`.

    `best`: attack the survivors of AutoAttack again. `also`: more measurements, as for `score`. `keep_proposals`: keep
    the images that fooled each net, so that a claim can be replayed. `tensorboard`, `sandbox`: as for `task.train`.
    `arithmetic`: as for `score`. Finished steps are kept, so a killed run resumes where it stopped. A job that fails is
    reported once and does not stop the others. `report` and `ended` are called in this process. Raises PrunebenchError
    if another run is using `out`, and for unknown names in `also` and `arithmetic`.
    """
    # Before any training: are the names known?
    Asked.of(also, best=best, keep_images=keep_proposals, arithmetic=arithmetic_named(arithmetic))
    with sole_user(out):
        scheduler = scheduler_of(
            protocol,
            jobs,
            out,
            store,
            threads=threads,
            device=device,
            examples=examples,
            best=best,
            also=also,
            keep_proposals=keep_proposals,
            tensorboard=tensorboard,
            sandbox=sandbox,
            arithmetic=arithmetic,
        )
        results = []
        with engine or Pool() as engine:  # inside the lock: no worker outlives it
            for result in _work_through(scheduler, engine, report):
                _publish(result, out / "records")
                results.append(result)
                if ended is not None:
                    ended(result)
    return results


def scheduler_of(
    protocol: Protocol,
    jobs: list[tuple[str, Job]],
    out: Path,
    store: Store,
    *,
    threads: int = 1,
    device: str = "auto",
    examples: int | None = None,
    best: bool = False,
    also: Sequence[str] = (),
    keep_proposals: bool = False,
    tensorboard: bool = False,
    sandbox: bool = False,
    arithmetic: str = "float32",
) -> Scheduler:
    """The order in which the steps of `jobs` run, below `out`; a dense net is the parent of the nets of its seed."""
    folders = folders_of(protocol, jobs, out)
    dense = {job.seed: job.name for _, job in jobs if job.pruner == "dense" and not job.options}
    tasks = []
    for spec, job in jobs:
        parent = dense.get(job.seed, job.name)
        tasks.append(
            Task(
                spec,
                job,
                protocol,
                folders[job.name],
                out / "stages",
                store,
                device,
                threads,
                examples,
                best,
                keep_proposals,
                None if parent == job.name else folders[parent],
                tensorboard,
                sandbox,
                tuple(also),
                arithmetic,
            )
        )
    images = len(store.testing(protocol.data, examples or protocol.test))
    return Scheduler(tasks, shards=-(-images // protocol.shard))


def progress_of(protocol: Protocol, jobs: list[tuple[str, Job]], out: Path) -> tuple[int, int]:
    """How many of `jobs` have a record below `out`, and how many more have a net; both unchecked."""
    folders = folders_of(protocol, jobs, out).values()
    scored = [folder for folder in folders if (folder / RECORD).exists()]
    return len(scored), sum((folder / NET).exists() for folder in folders if folder not in scored)


def folders_of(protocol: Protocol, jobs: list[tuple[str, Job]], out: Path) -> dict[str, Path]:
    """The folder of each of `jobs` below `out`, by the job's name."""
    sources = {spec: source_of(spec) for spec in {spec for spec, _ in jobs}}  # each takes tens of milliseconds
    return {job.name: out / "jobs" / job_id(protocol, sources[spec], job) for spec, job in jobs}


def job_id(protocol: Protocol, source: str, job: Job) -> str:
    """The folder name of a job: its name and a hash of the rules, the job and the `source` of the pruner."""
    facts = [protocol.sha256, job.model_dump(mode="json"), source]
    return f"{job.name}-{sha256_of(canonical_json(facts))[:12]}"


class Scheduler:
    """Chooses the next step: finishing a job goes before starting one, so that records appear early.

    A net is attacked, shard by shard, as soon as it has been trained. Its record is written once all shards are
    attacked and its parent has been trained.
    """

    def __init__(self, tasks: Iterable[Task], shards: int) -> None:
        """`shards`: the number of shards on which each net is attacked."""
        self.shards = shards
        self.untrained = deque(tasks)
        self.attacks = deque[Step]()
        self.unattacked: dict[Path, int] = {}  # unfinished shards of each net without a record
        self.settled: set[Path | None] = {None}  # parents that have been trained or have failed
        self.trained = list[Task]()
        self.over = set[Path]()

    def next(self) -> Step | None:
        """The step to run now; None if all remaining steps depend on running ones."""
        for task in self.trained:
            if not self.unattacked[task.folder] and task.parent in self.settled:
                self.trained.remove(task)
                return Step(task, "record")
        if self.attacks:
            return self.attacks.popleft()
        return Step(self.untrained.popleft(), "train") if self.untrained else None

    def came(self, step: Step, ended: Ended | None) -> Ended | None:
        """Note that `step` returned `ended`; return it the first time that a step ends its task."""
        task = step.task
        if step.what == "train":
            self.settled.add(task.folder)
        if task.folder in self.over:
            return None
        if ended is not None:
            self.over.add(task.folder)
            self.attacks = deque(other for other in self.attacks if other.task.folder != task.folder)
            self.trained = [other for other in self.trained if other.folder != task.folder]
        elif step.what == "train":
            self.trained.append(task)
            self.unattacked[task.folder] = self.shards
            self.attacks.extend(Step(task, "attack", shard) for shard in range(self.shards))
        else:
            self.unattacked[task.folder] -= 1
        return ended


def _work_through(scheduler: Scheduler, engine: Engine, report: JobProgressCallback | None) -> Iterator[Ended]:
    """Run all steps of `scheduler` on `engine`, and yield each task as it ends."""
    running: dict[Future[Ended | None], Step] = {}
    shares: dict[str, float] = {}  # share done of each attack step, by name
    while True:
        while engine.room(len(running)) and (step := scheduler.next()) is not None:
            running[engine.submit(step)] = step
        if not running:
            return
        wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        if report is not None:
            _pass_on(engine.updates(), {step.name: step for step in running.values()}, scheduler, shares, report)
        for future in [future for future in running if future.done()]:
            step = running.pop(future)
            shares.pop(step.name, None)
            error = future.exception()
            result = future.result() if error is None else Ended(step.task, "failed", engine.why(error))
            if (ended := scheduler.came(step, result)) is not None:
                yield ended


def _pass_on(
    updates: Iterable[ProgressUpdate],
    running: dict[str, Step],
    scheduler: Scheduler,
    shares: dict[str, float],
    report: JobProgressCallback,
) -> None:
    """Report the progress of each job; for a net attacked in several shards, their combined progress."""
    for name, what, done, of in updates:
        if (step := running.get(name)) is None:
            continue  # it has ended in the meantime
        job = step.task.job.name
        if step.what != "attack" or scheduler.shards == 1:
            report(job, what, done, of)
            continue
        shares[name] = done / of
        over = scheduler.shards - scheduler.unattacked.get(step.task.folder, 0)
        at_work = sum(shares.get(other.name, 0.0) for other in running.values() if other.task is step.task)
        report(job, f"attacks, {over} of {scheduler.shards} shards done", over + at_work, scheduler.shards)


def _publish(result: Ended, records: Path) -> None:
    """Copy the record, the net and the files beside it (or the refusal) to the folder that the leaderboard reads."""
    task, refused = result.task, result.how == "refused"
    source = task.folder / (REFUSAL if refused else RECORD)
    if result.how != "failed" and source.exists():
        publish(source, None if refused else task.folder / NET, records / task.protocol.name / f"{task.job.name}.json")
