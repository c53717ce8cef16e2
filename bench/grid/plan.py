"""What a grid will take, before it runs: sample passes, time on this device and on more of them, disk."""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.bench.data import Store
from prunebench.bench.grid.dry_run import Rehearsed, Shares, Work, rehearse
from prunebench.bench.grid.run import Order, order_of
from prunebench.bench.grid.task import Ended, Step
from prunebench.bench.protocol import Job, Protocol
from prunebench.pruners import parse

RECORD_BYTES = 100_000  # about: a record, its outcomes and pairs, twice, and the journal


@dataclass(frozen=True)
class Line:
    """A pruner at one sparsity, its seeds together: jobs, passes charged, and what is really computed for it.

    A stage that several jobs share counts for the first that asks for it. Seconds are those of one worker.
    """

    pruner: str
    sparsity: float
    jobs: int
    train_passes: int
    score_passes: int
    train_seconds: float
    score_seconds: float
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """The plan of a grid. `spans`: seconds from beginning to end, by the number of devices."""

    lines: tuple[Line, ...]
    spans: dict[int, float]
    workers: int
    shares: Shares

    @property
    def total(self) -> Line:
        """All lines together."""
        columns = ("jobs", "train_passes", "score_passes", "train_seconds", "score_seconds", "bytes")
        return Line("all", 0.0, *(sum(getattr(line, column) for line in self.lines) for column in columns))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        facts = {
            "lines": [vars(line) for line in self.lines],
            "workers": self.workers,
            "seconds": {str(count): span for count, span in self.spans.items()},
            "assumed": vars(self.shares),
        }
        return facts | {
            "total": {key: value for key, value in vars(self.total).items() if key not in ("pruner", "sparsity")}
        }


def plan(
    protocol: Protocol,
    grid: list[tuple[str, Job]],
    store: Store,
    *,
    workers: int = 1,
    devices: Sequence[int] = (1,),
    threads: int = 1,
    device: str = "auto",
    examples: int | None = None,
    shares: Shares,
    seconds: float = 0.5,
    began: float | None = None,
) -> Forecast:
    """Go through the jobs of the first seed without training, try how fast this device is, and add up.

    `workers`: jobs side by side on a device; as many processes try at once, since they slow one another down. Jobs of
    other seeds are taken to cost the same and to share nothing with those of the first, as stages are kept by seed.
    `seconds`: of one trial. `began`: when the command did, as `time.time()` tells it; that of the run takes as long
    until its workers begin. Raises PrunebenchError where a job would fail.
    """
    seeds = list(dict.fromkeys(job.seed for _, job in grid))
    first = [(spec, job) for spec, job in grid if job.seed == seeds[0]]
    spawn = multiprocessing.get_context("spawn")
    began = time.time() if began is None else began
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        asked = [
            pool.submit(_rehearse, first, protocol, store, device, threads, examples, shares, seconds)
            for _ in range(workers)
        ]
        starts, found = zip(*(future.result() for future in asked), strict=True)
    jobs = [_mean(same) for same in zip(*found, strict=True)]
    everything = [_under(job, seed) for seed in seeds for job in jobs]
    costs = {one.job.name: one for one in everything}
    asked_for = list(zip([spec for spec, _ in first] * len(seeds), (one.job for one in everything), strict=True))
    start = statistics.fmean(starts) - began
    spans = {
        count: start + makespan(order_of(protocol, asked_for, Path(), store, examples=examples), costs, workers * count)
        for count in devices
    }
    return Forecast(_lines(everything), spans, workers, shares)


def _rehearse(
    grid: list[tuple[str, Job]],
    protocol: Protocol,
    store: Store,
    device: str,
    threads: int,
    examples: int | None,
    shares: Shares,
    seconds: float,
) -> tuple[float, list[Rehearsed]]:
    """In a process of its own: when it could begin to train, had it not tried anything, and every job gone through."""
    began = time.time()
    jobs = [(parse(spec).pruner, job) for spec, job in grid]
    found, once = rehearse(
        jobs,
        protocol,
        store,
        device=device,
        threads=threads,
        examples=examples,
        shares=shares,
        seconds=seconds,
        resolve=lambda spec: parse(spec).pruner,
    )
    return began + once, found


def _mean(same: tuple[Rehearsed, ...]) -> Rehearsed:
    """One job as several processes found it: their mean seconds."""

    def mean(works: Sequence[Work]) -> Work:
        return replace(works[0], seconds=statistics.fmean(work.seconds for work in works))

    stages = zip(*(one.works for one in same), strict=True)
    return replace(same[0], works=tuple(mean(works) for works in stages), score=mean([one.score for one in same]))


def _under(one: Rehearsed, seed: int) -> Rehearsed:
    """The same job under another seed, where the store keeps its stages under keys of their own."""
    works = tuple(replace(work, key=work.key and f"{work.key}-{seed}") for work in one.works)
    return replace(one, job=one.job.model_copy(update={"seed": seed}), works=works)


def makespan(order: Order, costs: Mapping[str, Rehearsed], workers: int) -> float:
    """Seconds from beginning to end when `workers` take all the steps of `order`; `costs`: of each job, by its name.

    The shards of a net take the same time each, and its record none. Who wants a stage that another one computes
    waits for it.
    """
    kept: dict[str, float] = {}  # stage -> when it is there
    running: list[tuple[float, int, Step, deque[Work]]] = []  # when its stage ends, its number, what is left of it
    numbers = itertools.count()
    now = 0.0
    while True:
        while len(running) < workers and (step := order.next()) is not None:
            heapq.heappush(running, (now, next(numbers), step, _works(step, costs, order.shards)))
        if not running:
            return now
        now, number, step, left = heapq.heappop(running)
        if not left:
            order.came(step, Ended(step.task, "done", "planned") if step.what == "record" else None)
            continue
        work = left.popleft()
        done = now + work.seconds if work.key not in kept else max(now, kept[work.key])
        if work.key is not None:
            kept.setdefault(work.key, done)
        heapq.heappush(running, (done, number, step, left))


def _works(step: Step, costs: Mapping[str, Rehearsed], shards: int) -> deque[Work]:
    """What a step consists of."""
    one = costs[step.task.job.name]
    shard = replace(one.score, seconds=one.score.seconds / shards)
    return deque({"train": one.works, "attack": (shard,), "record": ()}[step.what])


def _lines(jobs: Sequence[Rehearsed]) -> tuple[Line, ...]:
    """The jobs by pruner and sparsity, in their order."""
    kept = set[str]()
    lines: dict[tuple[str, float], Line] = {}
    for one in jobs:
        fresh = [work for work in one.works if work.key is None or work.key not in kept]
        kept |= {work.key for work in fresh if work.key is not None}
        what = (one.job.label, one.job.sparsity)
        line = lines.get(what, Line(*what, 0, 0, 0, 0.0, 0.0, 0))
        lines[what] = replace(
            line,
            jobs=line.jobs + 1,
            train_passes=line.train_passes + one.passes,
            score_passes=line.score_passes + one.score.passes,
            train_seconds=line.train_seconds + sum(work.seconds for work in fresh),
            score_seconds=line.score_seconds + one.score.seconds,
            bytes=line.bytes + one.bytes + RECORD_BYTES + sum(work.bytes for work in fresh),
        )
    return tuple(lines.values())
