"""Forecast what a grid will cost: sample passes, time on this device and on several like it, and disk space."""

from __future__ import annotations

import heapq
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from prunebench.bench.data import Store
from prunebench.bench.grid.dry_run import Line, Shares, rehearse
from prunebench.bench.protocol import Job, Protocol

SUMS = tuple(field.name for field in fields(Line))[2:]  # the columns of a line that can be summed


@dataclass(frozen=True)
class Forecast:
    """The forecast for a grid. `spans`: seconds from start to end, by number of devices."""

    lines: tuple[Line, ...]
    spans: dict[int, float]
    workers: int
    shares: Shares

    @property
    def total(self) -> Line:
        """The sum of all lines."""
        return Line("all", 0.0, *(sum(getattr(line, column) for line in self.lines) for column in SUMS))

    def as_json(self) -> dict[str, Any]:
        """The forecast as a JSON value."""
        return {
            "lines": [vars(line) for line in self.lines],
            "workers": self.workers,
            "seconds": {str(count): span for count, span in self.spans.items()},
            "assumed": vars(self.shares),
            "total": {column: getattr(self.total, column) for column in SUMS},
        }


def forecast(
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
    """Dry-run the jobs of the first seed, time this device, and add up the costs.

    `workers`: parallel jobs per device; as many processes are timed at once, since they slow one another down. Jobs of
    other seeds are assumed to cost the same. `seconds`: time spent timing each kind of work. `began`: when the command
    began, by `time.time()`; a run needs as long until its workers start. Raises PrunebenchError if a job would fail.
    """
    began = time.time() if began is None else began
    seeds = {job.seed for _, job in grid}
    first = [(spec, job) for spec, job in grid if job.seed == grid[0][1].seed]
    options: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "examples": examples,
        "shares": shares,
        "seconds": seconds,
    }
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(rehearse, first, protocol, store, **options) for _ in range(workers)]
        ready, found = asked[0].result()
    shards = -(-len(store.testing(protocol.data, examples or protocol.test)) // protocol.shard)
    spans = {count: ready - began + makespan(found * len(seeds), workers * count, shards) for count in devices}
    lines = (Line(line.pruner, line.sparsity, *(len(seeds) * getattr(line, c) for c in SUMS)) for line in found)
    return Forecast(tuple(lines), spans, workers, shares)


def makespan(jobs: Sequence[Line], workers: int, shards: int) -> float:
    """Approximate seconds for `workers` to train all `jobs` and attack each net in `shards` shards.

    Workers share all work evenly, but each net is trained by one worker, and attacked after its training.
    """
    ends = [0.0] * workers
    for job in jobs:
        heapq.heapreplace(ends, ends[0] + job.train_seconds)
    side = min(workers, shards)
    evenly = sum(job.train_seconds + job.score_seconds for job in jobs) / workers
    return max(evenly, max(ends) + jobs[-1].score_seconds / side)
