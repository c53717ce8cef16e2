"""Engines: who takes the steps of a grid and has them done. Here, processes of one machine; `bench.grid.ray`: Ray."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.connection import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from prunebench.bench.lab.train import Report

News = tuple[str, str, float, float]  # the name of a step, what is at work in it, how much is done, of how much


class Work(Protocol):
    """A step in a form that another process can take: its name, and what to call with where to tell of progress."""

    @property
    def name(self) -> str:
        """Unlike that of any other step at work."""

    def __call__(self, report: Report) -> Any:
        """Do it; what is returned, too, can go from process to process."""


class Engine(Protocol):
    """Has steps done side by side, while it is entered; when it is left with an error, what is at work is stopped."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def room(self, running: int) -> bool:
        """Whether one more step may be submitted while `running` have not ended."""

    def submit(self, step: Work) -> Future[Any]:
        """Have `step` done; the future holds what it returned, or what happened to the process that was at it."""

    def news(self) -> Iterator[News]:
        """What the steps have told since the last call, without waiting for more."""

    def why(self, error: BaseException) -> str:
        """What it means, as a sentence, that a future holds `error`, and the way out."""


class Pool:
    """`workers` processes of this machine, which die with this one; where one dies, another takes its place.

    Each is an executor of its own, because what happens to a process of an executor happens to all that it has.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def __str__(self) -> str:
        return f"{self.workers} side by side"

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        self._news = spawn.Queue()
        logged = spawn.Queue()
        self._listener = QueueListener(logged, _Here())
        self._listener.start()
        self._worker = partial(
            ProcessPoolExecutor, 1, mp_context=spawn, initializer=_begin, initargs=(self._news, logged)
        )
        self._workers = [self._worker() for _ in range(self.workers)]
        self._last: list[Future[Any] | None] = [None] * self.workers  # the step that each was given last
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
        """As long as a process is idle: what comes next is decided as late as can be."""
        return running < self.workers

    def submit(self, step: Work) -> Future[Any]:
        """Have `step` done by the first idle process, which has begun if any has; there is room for it."""
        number = next(n for n, last in enumerate(self._last) if last is None or last.done())
        try:
            future = self._workers[number].submit(_do, step)
        except BrokenProcessPool:  # it died, in the step before or since then
            self._workers[number].shutdown()
            self._workers[number] = self._worker()
            future = self._workers[number].submit(_do, step)
        self._last[number] = future
        return future

    def news(self) -> Iterator[News]:
        """What the processes have told."""
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return

    def why(self, error: BaseException) -> str:
        """A process died, or what it was to take or to return could not be handed over."""
        if isinstance(error, BrokenProcessPool):
            return "Its worker process died, perhaps for want of memory; run again, with fewer --jobs."
        return f"{type(error).__name__}: {error}"


def seldom(tell: Callable[[str, float, float], None], seconds: float = 0.25) -> Report:
    """`tell`, but no more often than every so many seconds."""
    last = -seconds

    def report(what: str, done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            tell(what, done, total)

    return report


class _Here(logging.Handler):
    """Takes what a worker logged to the loggers of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it here, unless it says why nets run dense: that holds for all jobs, and a run says it itself."""
        if record.name != "prunebench.executor":
            logging.getLogger(record.name).handle(record)


_news: Any = None  # in a worker: the queue to the process that started the grid


def _begin(news: Any, logged: Any) -> None:
    """In a worker: know whom to tell, and die with them, so that nobody writes after a new run has begun."""
    global _news
    _news = news
    logging.getLogger("prunebench").addHandler(QueueHandler(logged))
    news.cancel_join_thread()  # what nobody will read must not hold up the end; what was logged is read until then
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _do(step: Work) -> Any:
    """In a worker: do `step`."""
    return step(seldom(lambda *told: _news.put((step.name, *told))))
