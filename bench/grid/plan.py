"""What a grid will take, before it runs: sample passes, time on this device and on more of them, disk."""

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

SUMS = tuple(field.name for field in fields(Line))[2:]  # the columns of a line that add up


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
        return Line("all", 0.0, *(sum(getattr(line, column) for line in self.lines) for column in SUMS))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "lines": [vars(line) for line in self.lines],
            "workers": self.workers,
            "seconds": {str(count): span for count, span in self.spans.items()},
            "assumed": vars(self.shares),
            "total": {column: getattr(self.total, column) for column in SUMS},
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
    """Go through the jobs of the first seed without training, time how fast this device is, and add up.

    `workers`: jobs side by side on a device; as many processes are timed at once, since they slow one another down.
    Jobs of other seeds are taken to cost the same. `seconds`: for each kind of work that is timed. `began`: when the
    command began, by `time.time()`; a run takes as long until its workers begin. Raises PrunebenchError where a job
    would fail.
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
    """Seconds in which `workers` train all `jobs` and attack each net in so many `shards`, about.

    Workers share all work evenly, but a net is trained by one of them, and attacked after its training.
    """
    ends = [0.0] * workers
    for job in jobs:
        heapq.heapreplace(ends, ends[0] + job.train_seconds)
    side = min(workers, shards)
    evenly = sum(job.train_seconds + job.score_seconds for job in jobs) / workers
    return max(evenly, max(ends) + jobs[-1].score_seconds / side)
