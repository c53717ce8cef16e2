"""Forecast what a grid will cost: sample passes, time on this device and on several like it, and disk space."""

from __future__ import annotations

import heapq
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from prunebench.bench.grid.dry_run import SUMS, Line, Rehearsal, summed
from prunebench.bench.job import Job


@dataclass(frozen=True)
class Forecast:
    """The forecast for a grid. `spans`: seconds from start to end, by number of devices."""

    lines: tuple[Line, ...]
    spans: dict[int, float]
    workers: int
    rehearsal: Rehearsal

    @property
    def total(self) -> Line:
        """The sum of all lines."""
        return summed("all", 0.0, self.lines)

    def as_json(self) -> dict[str, Any]:
        """The forecast as a JSON value."""
        return {
            "lines": [vars(line) for line in self.lines],
            "workers": self.workers,
            "seconds": {str(count): span for count, span in self.spans.items()},
            "assumed": {"clean": self.rehearsal.clean, "robust": self.rehearsal.robust},
            "total": {column: getattr(self.total, column) for column in SUMS},
        }


def forecast(
    grid: list[tuple[str, Job]],
    rehearsal: Rehearsal,
    *,
    workers: int = 1,
    devices: Sequence[int] = (1,),
    began: float | None = None,
) -> Forecast:
    """Dry-run the jobs of the first seed, time this device, and add up the costs.

    `workers`: parallel jobs per device; as many processes are timed at once, since they slow one another down. Jobs of
    other seeds are assumed to cost the same. `began`: when the command began, by `time.time()`; a run needs as long
    until its workers start. Raises PrunebenchError if a job would fail.
    """
    began = time.time() if began is None else began
    first = [(spec, job) for spec, job in grid if job.seed == grid[0][1].seed]
    seeds = len({job.seed for _, job in grid})
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(rehearsal, first) for _ in range(workers)]
        ready, found = asked[0].result()
    shards = -(-len(rehearsal.test) // rehearsal.protocol.shard)
    spans = {count: ready - began + makespan(found * seeds, workers * count, shards) for count in devices}
    lines = tuple(summed(line.pruner, line.sparsity, [line] * seeds) for line in found)
    return Forecast(lines, spans, workers, rehearsal)


def makespan(jobs: Sequence[Line], workers: int, shards: int) -> float:
    """Approximate seconds for `workers` to train all `jobs` and attack each net in `shards` shards.

    Workers share all work evenly, but each net is trained by one worker, and attacked after its training.
    """
    ends = [0.0] * workers
    for job in jobs:
        heapq.heapreplace(ends, ends[0] + job.train_seconds)
    evenly = sum(job.train_seconds + job.score_seconds for job in jobs) / workers
    return max(evenly, max(ends) + jobs[-1].score_seconds / min(workers, shards))
