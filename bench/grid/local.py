"""Engines run the steps of a grid: here in processes on one machine, in `bench.grid.ray` on Ray."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Protocol, Self

from prunebench.bench.progress import ProgressCallback, ProgressUpdate


class Runnable(Protocol):
    """A step that can be sent to another process: a name, and a call that takes a progress callback."""

    @property
    def name(self) -> str:
        """Unique among the running steps."""

    def __call__(self, report: ProgressCallback) -> Any:
        """Run the step; the result, too, can be sent between processes."""


class Engine(Protocol):
    """A context manager that runs steps in parallel; leaving it with an error stops the running steps."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def room(self, running: int) -> bool:
        """Whether one more step may be submitted while `running` steps are unfinished."""

    def submit(self, step: Runnable) -> Future[Any]:
        """Run `step`; the future holds its result, or the error that ended its process."""

    def updates(self) -> Iterator[ProgressUpdate]:
        """Progress reported since the last call, without waiting for more."""

    def why(self, error: BaseException) -> str:
        """A sentence that explains why a future holds `error`, and what to do."""


class Pool:
    """`workers` processes on this machine, which die with this one; a process that dies is replaced.

    Each has its own executor, because the death of one process breaks its whole executor.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def __str__(self) -> str:
        return f"{self.workers} side by side"

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        self._updates = spawn.Queue()
        logged = spawn.Queue()
        self._listener = QueueListener(logged, _Here())
        self._listener.start()
        self._worker = partial(
            ProcessPoolExecutor, 1, mp_context=spawn, initializer=_begin, initargs=(self._updates, logged)
        )
        self._workers = [self._worker() for _ in range(self.workers)]
        self._last: list[Future[Any] | None] = [None] * self.workers  # the last step given to each worker
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.shutdown(wait=kind is None, cancel_futures=True)
        if kind is None:
            self._listener.stop()
            return
        for process in set(multiprocessing.active_children()) - self._others:
            process.kill()

    def room(self, running: int) -> bool:
        """Whether a process is idle: the next step is chosen as late as possible."""
        return running < self.workers

    def submit(self, step: Runnable) -> Future[Any]:
        """Run `step` in the first idle process, which has started if any has. Requires room for the step."""
        number = next(n for n, last in enumerate(self._last) if last is None or last.done())
        try:
            future = self._workers[number].submit(_do, step)
        except BrokenProcessPool:  # it died during or after its last step
            self._workers[number].shutdown()
            self._workers[number] = self._worker()
            future = self._workers[number].submit(_do, step)
        self._last[number] = future
        return future

    def updates(self) -> Iterator[ProgressUpdate]:
        """Progress reported by the processes."""
        while True:
            try:
                yield self._updates.get_nowait()
            except queue.Empty:
                return

    def why(self, error: BaseException) -> str:
        """A process died, or a step or its result could not be sent between processes."""
        if isinstance(error, BrokenProcessPool):
            return "Its worker process died, perhaps because memory ran out; run again with fewer --jobs."
        return f"{type(error).__name__}: {error}"


def throttled(callback: ProgressCallback, seconds: float = 0.25) -> ProgressCallback:
    """`callback`, called at most once every `seconds`."""
    last = -seconds

    def report(what: str, done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            callback(what, done, total)

    return report


class _Here(logging.Handler):
    """Passes log records from a worker to the loggers of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record here, unless it says why nets run dense: true of all jobs, and logged by the run."""
        if record.name != "prunebench.executor":
            logging.getLogger(record.name).handle(record)


_updates: Any = None  # in a worker: the queue to the process that started the grid


def _begin(updates: Any, logged: Any) -> None:
    """In a worker: connect to the parent, and die with it, so that no worker writes after a new run has begun."""
    global _updates
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    _updates = updates
    logging.getLogger("prunebench").addHandler(QueueHandler(logged))
    updates.cancel_join_thread()  # unread updates must not delay the exit; log records are read until then
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _do(step: Runnable) -> Any:
    """In a worker: run `step`."""
    return step(throttled(lambda *progress: _updates.put((step.name, *progress))))
