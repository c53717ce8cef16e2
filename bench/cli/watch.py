"""Progress on the command line, on standard error: bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status

from prunebench.bench.progress import duration

PLAIN_EVERY = 15.0  # seconds between plain lines about the same job

_waiting: list[Status] = []  # the spinner that turns until a verb has something to show


def start_waiting(text: str) -> None:
    """On a terminal, show `text` and a spinner until `stop_waiting`: importing torch takes seconds."""
    console = Console(stderr=True)
    if console.is_terminal:
        _waiting.append(Status(text, console=console))
        _waiting[-1].start()


def stop_waiting() -> None:
    """Remove the spinner, if one turns."""
    while _waiting:
        _waiting.pop().stop()


@dataclass
class _Going:
    """A job in progress: the latest report, and when and from where its present count began, for an ETA."""

    began: float
    first: float
    shown: float
    what: str = ""
    done: float = 0.0
    of: float = 1.0

    def heard(self, what: str, done: float, of: float, now: float) -> None:
        """Take a report. A count that falls is another one: attacks follow training."""
        if done < self.done:
            self.began, self.first, self.shown = now, done, now
        self.what, self.done, self.of = what, done, of

    def left(self, now: float) -> float | None:
        """Seconds left at the pace so far; None before the first step."""
        made = self.done - self.first
        return (now - self.began) * (self.of - self.done) / made if made > 0 else None


class Watch:
    """Shows running jobs: `report(job, what, done, of)` for progress, `line` for a separate line.

    Bars are drawn on standard error, so that standard output holds results alone. Each distinct log message, such as
    what a net runs dense and why, is printed once, as a line. With `quiet`, only `line` prints. `jobs`: how many will
    finish, for an estimate of the whole. An interruption says where the jobs stopped.
    """

    def __init__(self, *, quiet: bool, jobs: int = 1) -> None:
        self.console = Console(stderr=True, soft_wrap=True)
        self.bars: Progress | None = None
        self.plain = not quiet
        self.log = _Lines((lambda text: None) if quiet else self.line)
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns, console=self.console, transient=True)
        self.tasks: dict[str, TaskID] = {}
        self.going: dict[str, _Going] = {}
        self.jobs, self.over, self.worked, self.began = jobs, 0, 0, time.monotonic()

    def __enter__(self) -> Watch:
        stop_waiting()
        logging.getLogger("prunebench").addHandler(self.log)
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("prunebench").removeHandler(self.log)
        if self.bars is not None:
            self.bars.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            for job, going in self.going.items():
                self.line(f"{job}: stopped ({going.what}; {going.done / going.of:.0%} done)")

    def report(self, job: str, what: str, done: float, of: float) -> None:
        """Show that `job` has done `done` of `of`, and is at `what`."""
        now = time.monotonic()
        going = self.going.setdefault(job, _Going(now, done, now))
        going.heard(what, done, of, now)
        if self.bars is not None:
            if job not in self.tasks:
                self.tasks[job] = self.bars.add_task(job)
            self.bars.update(self.tasks[job], description=f"{job}: {what}", completed=done, total=of)
        elif self.plain and now - going.shown >= PLAIN_EVERY and (left := going.left(now)) is not None:
            going.shown = now
            self.line(f"{job}: {what}, {done / of:.0%}, about {duration(left)} left")

    def finish(self, job: str, text: str, *, worked: bool = True) -> None:
        """Replace the job's bar with a line; with several jobs, it says how far the whole is.

        `worked`: whether the job was computed now; jobs that were kept tell nothing about the pace.
        """
        self.going.pop(job, None)
        if self.bars is not None and job in self.tasks:
            self.bars.remove_task(self.tasks.pop(job))
        self.over, self.worked = self.over + 1, self.worked + worked
        rest = self.jobs - self.over
        if rest < 1 or not self.plain:
            self.line(f"{job}: {text}")
            return
        left = ""
        if self.worked:
            left = f", about {duration((time.monotonic() - self.began) / self.worked * rest)} left"
        self.line(f"{job}: {text} ({self.over} of {self.jobs} jobs{left})")

    def line(self, text: str) -> None:
        """Print one plain line."""
        self.console.print(text, markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Print one plain line, unless told to be quiet."""
        if self.plain:
            self.line(text)


class _Lines(logging.Handler):
    """Passes on log messages, each distinct one once."""

    def __init__(self, line: Callable[[str], None]) -> None:
        super().__init__()
        self.line, self.said = line, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on one message."""
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            self.line(text)


def say(text: str) -> None:
    """Print one line on standard error."""
    stop_waiting()
    print(text, file=sys.stderr)
