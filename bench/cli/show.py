"""Results on the command line: tables for people that fit the terminal, and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from prunebench.bench.cli.watch import say, stop_waiting
from prunebench.bench.errors import printable
from prunebench.bench.progress import duration

WIDE = 10_000  # columns, where nothing says how wide the output is: no cell is broken
FOLDED = 24  # columns, down to which a column of sentences may be folded

if TYPE_CHECKING:
    from prunebench.bench.checkpoint import Net
    from prunebench.bench.facts import Flag
    from prunebench.bench.grid.plan import Forecast
    from prunebench.bench.record import Record


def out(*tables: Table | str) -> None:
    """Print results to standard output: lines unchanged, and tables as wide as the terminal, $COLUMNS, or their text.

    A table that is too wide loses columns from the right, and a line says which.
    """
    stop_waiting()
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else WIDE
    console = Console(width=wide, markup=False, highlight=False)
    for table in tables:
        if isinstance(table, str):
            print(table)
            continue
        dropped = _fit(table, console)
        with console.capture() as shown:
            console.print(table)
        print("\n".join(line.rstrip() for line in shown.get().splitlines()))
        if dropped:
            print(f"Left out for lack of space: {', '.join(dropped)}; --json or a wider terminal shows them.")


def _fit(table: Table, console: Console) -> list[str]:
    """Remove columns of `table` from the right until the cells of the rest stay whole; returns the titles of those.

    The first two columns stay, and so do columns without a title. Columns of sentences may be folded.
    """
    dropped: list[str] = []
    while len(table.columns) > 2 and _needed(table, console) > console.width:
        last = next((column for column in reversed(table.columns[2:]) if column.no_wrap and column.header), None)
        if last is None:
            break
        table.columns.remove(last)
        dropped.insert(0, str(last.header))
    return dropped


def _needed(table: Table, console: Console) -> int:
    """The least width of `table` with whole cells."""
    padding, total = table.padding[1] + table.padding[3], 0
    for column in table.columns:
        cells = [Measurement.get(console, console.options, cell).maximum for cell in (column.header, *column.cells)]
        widest = max(cells, default=0)
        total += (widest if column.no_wrap else min(widest, FOLDED)) + padding
    return total - (0 if table.pad_edge else padding)


def print_json(values: object) -> None:
    """Print results to standard output as JSON."""
    stop_waiting()
    print(json.dumps(values, indent=1))


def written(word: str, files: Sequence[Path]) -> str:
    """A line that names files relative to the working folder if they are inside it."""
    here = Path.cwd()
    names = (path.relative_to(here) if path.is_relative_to(here) else path for path in files)
    return f"{word}: {', '.join(printable(str(name)) for name in names)}"


def wrote(files: Sequence[Path], *, as_json: bool, word: str = "Written", **facts: object) -> None:
    """Say which files were written, for people or as JSON with further `facts`."""
    if as_json:
        print_json({"written": [str(file) for file in files]} | facts)
    else:
        out(written(word, files))


def table(*columns: str, rows: Sequence[tuple[str, ...]], right: tuple[str, ...] = ()) -> Table:
    """A plain table, without a header if its columns have no names; columns in `right` are right-aligned."""
    result = Table(show_header=any(columns), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right
        result.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        result.add_row(*map(printable, row))
    return result


def net_facts(net: Net) -> dict[str, object]:
    """The header of a net file and the weights counted in it, as a JSON value."""
    header, counted = net.header.model_dump(mode="json"), net.id.model_dump(mode="json")
    return {"header": header, "net": counted, "sparsity": net.sparsity}


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
        say(f"prunebench: warning: {printable(sentence)}")


def forecast_table(found: Forecast) -> list[Table | str]:
    """The cost forecast of a grid, for people."""
    columns = ("Pruner", "Sparsity", "Jobs", "Training", "Scoring", "MB", "M passes", "M to score")
    rows = [
        (
            line.pruner,
            f"{line.sparsity:g}",
            f"{line.jobs}",
            duration(line.train_seconds),
            duration(line.score_seconds),
            f"{line.bytes / 1e6:,.1f}",
            f"{line.train_passes / 1e6:,.1f}",
            f"{line.score_passes / 1e6:,.1f}",
        )
        for line in (*found.lines, found.total)
    ]
    side = "one job at a time" if found.workers == 1 else f"{found.workers} jobs side by side on each"
    spans = [
        f"In all about {duration(span)} on {count} device{'s' * (count > 1)} like this one, {side}."
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
