"""Progress and results on the command line: bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from prunebench.bench.errors import printable

if TYPE_CHECKING:
    from prunebench.bench.checkpoint import Net
    from prunebench.bench.facts import Flag
    from prunebench.bench.grid.plan import Forecast
    from prunebench.bench.record import Record

PLAIN_EVERY = 15.0  # seconds between plain lines about the same job


class Watch:
    """Shows running jobs: `report(job, what, done, of)` for progress, `line` for a separate line.

    Bars are drawn on standard error, so that standard output holds results alone. Each distinct log message, such as
    what a net runs dense and why, is printed once, as a line. With `quiet`, only `line` prints.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, soft_wrap=True)
        self.bars: Progress | None = None
        self.plain = not quiet
        self.log = _Lines((lambda text: None) if quiet else self.line)
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns, console=self.console, transient=True)
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, tuple[str, float, float]] = {}  # job -> activity, start time, time last shown

    def __enter__(self) -> Watch:
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

    def report(self, job: str, what: str, done: float, of: float) -> None:
        """Show that `job` has done `done` of `of` of `what`."""
        if self.bars is not None:
            if job not in self.tasks:
                self.tasks[job] = self.bars.add_task(job)
            self.bars.update(self.tasks[job], description=f"{job}: {what}", completed=done, total=of)
        elif self.plain:
            self._plainly(job, what, done, of)

    def _plainly(self, job: str, what: str, done: float, of: float) -> None:
        now, kind = time.monotonic(), what.split(",")[0].split(":")[0]
        known, began, shown = self.began.get(job, ("", now, now))
        if known != kind:
            began, shown = now, now
        elif now - shown >= PLAIN_EVERY and done > 0:
            shown, left = now, (now - began) * (of - done) / done
            self.line(f"{job}: {what}, {done / of:.0%}, about {_duration(left)} left")
        self.began[job] = (kind, began, shown)

    def finish(self, job: str, text: str) -> None:
        """Replace the job's bar with a line."""
        if self.bars is not None and job in self.tasks:
            self.bars.remove_task(self.tasks.pop(job))
        self.line(f"{job}: {text}")

    def line(self, text: str) -> None:
        """Print one plain line."""
        self.console.print(text, markup=False, highlight=False)


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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def out(*tables: Table | str) -> None:
    """Print results to standard output: tables as wide as the terminal or 80 columns, lines unchanged."""
    console = Console(width=None if sys.stdout.isatty() else 80, markup=False, highlight=False)
    for table in tables:
        if isinstance(table, str):
            print(table)
        else:
            console.print(table)


def as_json(values: object) -> None:
    """Print results to standard output as JSON."""
    print(json.dumps(values, indent=1))


def written(word: str, files: Sequence[Path]) -> str:
    """A line that names files relative to the working folder if they are inside it."""
    here = Path.cwd()
    names = (path.relative_to(here) if path.is_relative_to(here) else path for path in files)
    return f"{word}: {', '.join(printable(str(name)) for name in names)}"


def table(*columns: str, rows: Sequence[tuple[str, ...]], right: tuple[str, ...] = ()) -> Table:
    """A plain table, without a header if its columns have no names; columns in `right` are right-aligned."""
    result = Table(show_header=any(columns), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*map(printable, row))
    return result


def net_tables(net: Net, name: str) -> list[Table | str]:
    """The header of a net file and the weights counted in it, as tables."""
    from prunebench.bench.pattern import patterns_of

    header, job = net.header, net.header.job
    about = [
        ("architecture", f"{header.arch}, {header.classes} classes, images {header.shape}"),
        ("made for", f"{header.protocol.name} v{header.protocol.version}, sha256 {header.protocol.sha256[:12]}"),
        ("made by", f"{job.label}, requested sparsity {job.sparsity}, seed {job.seed}"),
        ("weights", f"{net.id.nonzero} of {net.id.prunable} kept, sparsity {net.sparsity:.6f}"),
        *((("pattern of zeros", ", ".join(found)),) if (found := patterns_of(net.module)) else ()),
        *((f"cost: {stage.name}", f"{stage.passes:,} sample passes") for stage in header.stages),
    ]
    layers = [
        (layer.name, "x".join(map(str, layer.shape)), f"{layer.nonzero}", f"{1 - layer.nonzero / layer.size:.4f}")
        for layer in net.layers
    ]
    return [
        f"{name}, sha256\n{net.id.sha256}\n",
        table("", "", rows=about),
        "",
        table("layer", "shape", "kept", "sparsity", rows=layers, right=("kept", "sparsity")),
    ]


def warn(sentences: Sequence[str]) -> None:
    """Print each sentence as a warning on standard error; standard output holds results alone."""
    for sentence in sentences:
        print(f"prunebench: warning: {printable(sentence)}", file=sys.stderr)


def forecast_table(found: Forecast) -> list[Table | str]:
    """The cost forecast of a grid, for people."""
    columns = ("Pruner", "Sparsity", "Jobs", "M passes", "M to score", "Training", "Scoring", "MB")
    rows = [
        (
            line.pruner,
            f"{line.sparsity:g}",
            f"{line.jobs}",
            f"{line.train_passes / 1e6:,.1f}",
            f"{line.score_passes / 1e6:,.1f}",
            _duration(line.train_seconds),
            _duration(line.score_seconds),
            f"{line.bytes / 1e6:,.1f}",
        )
        for line in (*found.lines, found.total)
    ]
    side = "one job at a time" if found.workers == 1 else f"{found.workers} jobs side by side on each"
    spans = [
        f"In all about {_duration(span)} on {count} device{'s' * (count > 1)} like this one, {side}."
        for count, span in found.spans.items()
    ]
    shares = f"{found.rehearsal.clean:.0%} of the test images correct and {found.rehearsal.robust:.0%} robust"
    about = (
        "Sample passes (forward 1, backward 2) in millions, as charged. A stage\n"
        "that jobs share is computed once; the first job bears its time and disk. Times\n"
        "are for one worker, from short trials on this machine.\n"
        f"Assumed of every net: {shares} (--clean, --robust)."
    )
    return [
        table(*columns, rows=[*rows[:-1], (rows[-1][0], "", *rows[-1][2:])], right=columns[1:]),
        "",
        about,
        *spans,
    ]


def score_table(record: Record) -> list[Table | str]:
    """The contents of a record, for people."""
    from prunebench.bench.stats import wilson

    score = record.score

    def rate(count: int) -> tuple[str, str]:
        low, high = wilson(count, score.n)
        return f"{count} of {score.n}", f"{100 * count / score.n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    rows = [("clean", *rate(score.clean)), *((f"after {a}", *rate(c)) for a, c in score.survived.items())]
    beyond = record.beyond
    if beyond.best is not None:
        rows.append((f"after {beyond.best.suite}, best known", *rate(beyond.best.robust)))
    if (other := beyond.other_norm) is not None:
        rows.append((f"after AutoAttack in {other.threat.norm} {other.threat.eps}", *rate(other.robust)))
    rows += [(f"after {attack} alone", *rate(count)) for attack, count in score.weak.items()]
    rules = f"{record.protocol.name} v{record.protocol.version}, {'official' if record.official else 'not official'}"
    return [
        f"{record.job.label}, sparsity {record.net.sparsity:.4f}, {rules}\n",
        table("still correct", "images", "% [95 % interval]", rows=rows, right=("images",)),
        "",
        *_attacks(record),
        *_measured(record),
        table(
            "eps", "still correct after pgd-20", rows=[(p.eps, rate(p.robust)[1]) for p in score.curve], right=("eps",)
        ),
        "",
        table("flag", "", "", rows=[_flag_row(flag) for flag in score.flags]),
        "",
    ]


def _attacks(record: Record) -> list[Table | str]:
    """A line on the arithmetic of attacks that were not exact."""
    arithmetic = record.attack_arithmetic
    if arithmetic.exact:
        return []
    again = f"{arithmetic.repaired} times an image was attacked again in float32"
    return [f"Attacks in {arithmetic.name}, verdicts in float32; {again}.", ""]


def _measured(record: Record) -> list[Table | str]:
    """Tables of planted adversarials and corruptions, and a line on distances, where they were measured."""
    planted, distances, corruptions = record.beyond.planted, record.beyond.distances, record.beyond.corruptions
    shown: list[Table | str] = []
    if planted is not None:
        counts = [*planted.found.items(), ("all of them", planted.together), ("random search", planted.control)]
        rows = [(name, str(count)) for name, count in counts]
        shown += [table(f"found, of {planted.images} planted", "images", rows=rows, right=("images",)), ""]
    if distances is not None:
        far = "unknown" if distances.median is None else f"{distances.median:.4f}"
        shown += [f"Median distance to the nearest adversarial image found: {far}", ""]
    if corruptions is not None:
        head = f"corruption, severity {corruptions.severity}"
        shown += [
            table(
                head,
                "correct",
                rows=[(name, str(count)) for name, count in corruptions.right.items()],
                right=("correct",),
            ),
            "",
        ]
    return shown


def _flag_row(flag: Flag) -> tuple[str, str, str]:
    if flag.value is None:
        return flag.name, "unknown", flag.sentence
    return flag.name, f"{flag.value:.3g} > {flag.threshold:g}" if flag.up else "down", flag.sentence if flag.up else ""
