"""Boards -> Markdown, CSV, JSON, LaTeX, terminal: pure functions, the same bytes for the same records."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from prunebench.leaderboard.contrasts import PRIMARY, RANDOM, Contrast
from prunebench.leaderboard.provenance import MEANING, summary
from prunebench.leaderboard.published import rows_for
from prunebench.leaderboard.table import Board, Ranking, Rate, Row

LONGEST = 300  # characters of a text from a record that a table shows
SIGN = "\N{WARNING SIGN}"  # beside a number that a flag casts doubt on
ODDS = "\N{DAGGER}"  # beside a verdict where test and bootstrap are at odds


@dataclass(frozen=True)
class Format:
    """One kind of output: the file it goes to, how it is made, and how every file of it begins."""

    file: str
    render: Callable[[Ranking], str]
    begins: str


def clean(text: str) -> str:
    """`text` on one line, without control, formatting (bidirectional) and unpaired surrogate characters."""
    flat = " ".join(text.split())
    shown = "".join(char for char in flat if unicodedata.category(char)[0] != "C")
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def percent(rate: Rate) -> str:
    """A rate in per cent with its interval: "66.4 [64.1, 68.6]"."""
    return f"{100 * rate.mean:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def points(contrast: Contrast) -> str:
    """A difference in points with its interval: "+1.3 [-4.2, +6.8]"; without one where there is one common seed."""
    if contrast.gap is None:
        return "no common seed"
    return _signed(contrast.gap) + _interval(contrast.low, contrast.high)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"


def _signed(rate: float) -> str:
    return f"{round(100 * rate, 1) + 0:+.1f}"  # + 0: no -0.0


VERDICTS = {"+": "better", "-": "worse", "=": "cannot tell"}


def verdict(contrast: Contrast) -> str:
    """What the test says of a contrast, with a sign where the bootstrap says something else."""
    return VERDICTS[contrast.verdict] + f" {ODDS}" * (contrast.agrees is False)


def resampled(contrast: Contrast) -> str:
    """The bootstrap's interval in points, or that raw outcomes are missing; empty with fewer than two common seeds."""
    if contrast.low is None:
        return ""
    return "not available" if contrast.bootstrap is None else _interval(*contrast.bootstrap).strip()


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def doubts(board: Board) -> list[str]:
    """What the flags that are up say, a line for each row and sentence; not yet escaped."""
    return [
        f"{SIGN} {row.pruner} at {row.sparsity:f}, seed{'s' * (len(doubt.seeds) > 1)} "
        f"{', '.join(map(str, doubt.seeds))}: {doubt.sentence} ({doubt.name})"
        for row in board.rows
        for doubt in row.flags
    ]


def cells(row: Row) -> dict[str, str]:
    """What all the tables for people show of a row, not yet escaped."""
    return {
        "Place": row.standing,
        "Pruner": row.pruner,
        "Sparsity": f"{row.sparsity:f}",
        "Counted": f"{row.true_sparsity:.4f}",
        "Robust %": percent(row.robust) + f" {SIGN}" * bool(row.flags),
        "Clean %": percent(row.clean),
        "Seeds": str(len(row.seeds)),
        "Training, M passes": f"{row.train_passes / 1e6:.1f}",
        "Training, s": "unknown" if row.train_seconds is None else _number(row.train_seconds),
        "Device": ", ".join(row.devices),
        "Origin": row.origin,
    }


def odds(board: Board) -> list[str]:
    """What the sign beside a verdict against magnitude pruning means, where there is one."""
    there = any(contrast.family == "primary" and contrast.agrees is False for contrast in board.contrasts)
    return [
        f"{ODDS} a bootstrap over seeds and images disagrees with the test on whether there is a difference."
    ] * there


LESS, SAID = f"Less {PRIMARY}", "Verdict"  # the columns of the primary contrasts


def compared(board: Board, row: Row) -> dict[str, str]:
    """What the tables for people show of a method against magnitude pruning, not yet escaped; empty for other rows."""
    found = [c for c in board.contrasts if (c.family, c.sparsity, c.pruner) == ("primary", row.sparsity, row.pruner)]
    contrast = found[0] if found else None
    return {
        LESS: points(contrast) if contrast else "",
        "Bootstrap": resampled(contrast) if contrast else "",
        SAID: verdict(contrast) if contrast else "",
    }


def _probability(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def powers(board: Board) -> list[str]:
    """What `power_of` says of each sparsity, a line each."""
    return [f"At {power.sparsity:f}: {power_of(board, power.sparsity)}" for power in board.powers]


def power_of(board: Board, sparsity: Decimal) -> str:
    """How large a difference can be seen at a sparsity, in a sentence or two; empty where nothing is compared."""
    power = next((power for power in board.powers if power.sparsity == sparsity), None)
    if power is None:
        return ""
    asked = f"a true difference of {100 * power.gap:.0f} points to {PRIMARY}"
    if power.mean is None:
        return f"No method shares two seeds with {PRIMARY}, so no difference to it can be found, however large."
    said = f"{power.seeds} seeds find {asked} with probability {_probability(power.mean)}"
    if power.lowest != power.highest:
        said += f" on average ({_probability(power.lowest or 0)} to {_probability(power.highest or 0)} by method)"
    if power.planned:
        more = [f"{seeds} would with {_probability(chance)}" for seeds, chance in power.planned.items()]
        said += f"; {', '.join(more)}"
    return f"{said}." + (" More often than not such a difference goes unseen here." if power.mean < 0.5 else "")


# Markdown

_MARKDOWN = re.compile(r"[&<>|\\`*\[\]~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.|(?<=WWW)\.|@")
# Our own numbers keep their brackets; nothing can follow these that would make a link of them.
_NUMBERS = re.compile(
    rf"([+-]?[\d.]+ )?\[[+-]?[\d.]+, [+-]?[\d.]+\]( {SIGN}|: ({'|'.join(VERDICTS.values())})( {ODDS})?)?", re.ASCII
)
_GENERATED = "<!-- Generated by `prunebench rank`; an edit is lost the next time. -->"


def _markdown_text(text: str) -> str:
    """`text` as nothing but text: whatever Markdown, HTML, mathematics or a link could be made of is an entity."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", clean(text))


def _markdown_cell(text: str) -> str:
    return text if _NUMBERS.fullmatch(text) else _markdown_text(text)


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> list[str]:
    """The lines of a table whose cells are escaped here; columns are right-aligned but those named in `left`."""
    cells = [[_markdown_cell(cell) for cell in row] for row in [titles, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(titles))]
    pad = [str.ljust if title in left else str.rjust for title in titles]
    lines = [
        "| " + " | ".join(f(cell, width) for f, cell, width in zip(pad, row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = [
        ":" + "-" * (width - 1) if title in left else "-" * (width - 1) + ":"
        for title, width in zip(titles, widths, strict=True)
    ]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:], ""]


def _markdown_list(texts: Sequence[str]) -> list[str]:
    return [*(f"- {_markdown_text(text)}" for text in texts), ""] if texts else []


def contrasts(board: Board) -> list[dict[str, str]]:
    """What tables for people show of all methods against their controls, not yet escaped: a line a contrast."""
    return [
        {
            "Pruner": contrast.pruner,
            "Sparsity": f"{contrast.sparsity:f}",
            "Control": contrast.control,
            "Difference": points(contrast),
            "Bootstrap": resampled(contrast),
            SAID: verdict(contrast),
            "p, Holm": f"{contrast.adjusted:.3f}",
            "Common seeds": str(len(contrast.seeds)),
        }
        for contrast in board.contrasts
        if contrast.family != "places"
    ]


CONTRASTS = (
    "A difference is the robust accuracy of the pruner less that of the control, in points, over the seeds that both "
    "have; its 95 % interval is that of one comparison, while the verdict allows for all of them (Holm, 5 %; methods "
    f"against {PRIMARY} for themselves, methods against {RANDOM} and their own shuffles for themselves). The bootstrap "
    "is a second opinion: its interval comes from drawing seeds and test images anew 2,000 times, and "
    f"{ODDS} marks where only one of the two intervals holds 0."
)
SHUFFLES = (
    f"Methods against {RANDOM} and against their own shuffle. A method that does not beat its own shuffle has found "
    "layer densities and nothing more."
)


def _markdown_secondary(board: Board) -> list[str]:
    found = [contrast for contrast in board.contrasts if contrast.family == "secondary"]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    kinds = (f"Less {RANDOM}", "Less its shuffle")
    for contrast in found:
        key = (contrast.pruner, f"{contrast.sparsity:f}")
        line = lines.setdefault(key, {"Pruner": key[0], "Sparsity": key[1], **dict.fromkeys(kinds, "")})
        line[kinds[contrast.control != RANDOM]] = f"{points(contrast)}: {verdict(contrast)}"
    if not lines:
        return []
    rows = [list(line.values()) for line in lines.values()]
    return ["### Controls", "", SHUFFLES, "", *_markdown_table(["Pruner", "Sparsity", *kinds], rows, ("Pruner",))]


def references(board: Board) -> list[dict[str, str]]:
    """What tables for people show of the numbers that others published on the board's task, not yet escaped."""
    return [
        {
            "Place": reference.standing,
            "Method": reference.entry.name,
            "Sparsity": f"{reference.entry.sparsity:g}",
            "AutoAttack %": f"{reference.entry.robust:g}",
            "Clean %": f"{reference.entry.clean:g}",
            "Source": reference.source.title,
            "Other than here": "; ".join(reference.differs),
        }
        for reference in rows_for(board.protocol)
    ]


def _markdown_references(board: Board) -> list[str]:
    rows = references(board)
    if not rows:
        return []
    left = ("Place", "Method", "Source", "Other than here")
    return [
        "Numbers that others published, not measured here and not ranked:",
        "",
        *_markdown_table(list(rows[0]), [list(row.values()) for row in rows], left),
    ]


_LEFT = ("Place", "Pruner", "Reference", "Method", "Control", "Device", "Origin", "Rules", SAID)


def _markdown_rows(head: str, rows: Sequence[Row]) -> list[str]:
    """A small table of rows without a place, under the title `head`; nothing where there are none."""
    titles = ("Pruner", "Robust %", "Clean %", "Seeds")
    lines = [[cells(row)[title] for title in titles] for row in rows]
    return _markdown_table([head, *titles[1:]], lines, _LEFT) if rows else []


def _markdown_sparsity(board: Board, sparsity: Decimal) -> list[str]:
    rows = [row for row in board.rows if row.sparsity == sparsity]
    shown = [{**cells(row), **compared(board, row)} for row in rows if row.role == "method"]
    titles = ["Place", "Pruner", "Robust %", "Clean %", "Seeds"]
    titles += [title for title in (LESS, "Bootstrap", SAID) if any(line[title] for line in shown)]
    methods = _markdown_table(titles, [[line[title] for title in titles] for line in shown], _LEFT) if shown else []
    found = power_of(board, sparsity)
    return [
        f"### Sparsity {sparsity:f}" if sparsity else "### Unpruned",
        "",
        *methods,
        *_markdown_rows("Reference", [row for row in rows if row.role == "reference"]),
        *_markdown_rows("Control", [row for row in rows if row.role == "control"]),
        *([found, ""] if found else []),
    ]


def _markdown_board(board: Board) -> list[str]:
    title = _markdown_text(f"{board.protocol}, version {board.version}")
    survivors = [
        [row.pruner, f"{row.sparsity:f}", *(_number(row.survived[a]) for a in board.attacks)] for row in board.rows
    ]
    costs = [{**cells(row), "Rules": "official" if row.official else "not official"} for row in board.rows]
    told = ("Pruner", "Sparsity", "Counted", "Training, M passes", "Training, s", "Device", "Origin", "Rules")
    sparsities = sorted({row.sparsity for row in board.rows})
    said = doubts(board)
    return [
        f"## {title}",
        "",
        f"- Rules: {'official' if board.official else 'not official'}, sha256 {board.sha256[:12]}...",
        f"- Images: {board.n} for testing, of {_markdown_text(board.data)}, sha256 {board.data_sha256[:12]}...",
        f"- Records: {board.records}.",
        "",
        board.note,
        "",
        _markdown_text(summary(board, str)),
        "",
        MEANING,
        "",
        *(line for sparsity in sparsities for line in _markdown_sparsity(board, sparsity)),
        *_markdown_secondary(board),
        *([CONTRASTS, ""] if any(contrast.family != "places" for contrast in board.contrasts) else []),
        *(["### Doubts", "", *_markdown_list(said)] if said else []),
        "### After each attack",
        "",
        f"How many of the {board.n} images are still classified rightly after each attack, mean over seeds:",
        "",
        *_markdown_table(["Pruner", "Sparsity", *board.attacks], survivors, _LEFT),
        "### Cost and origin",
        "",
        *_markdown_table(told, [[line[title] for title in told] for line in costs], _LEFT),
        *_markdown_references(board),
    ]


def markdown(ranking: Ranking) -> str:
    """A page with a table a board, readable as plain text, and below them the nets that were not scored."""
    lines = [_GENERATED, "", "# Leaderboard", ""]
    for board in ranking.boards:
        lines += _markdown_board(board)
    if ranking.refused:
        titles = ("Record", "Protocol", "Pruner", "Check", "Reason")
        refused = [
            (r.record, r.protocol or "unknown", r.pruner or "unknown", r.check, r.reason) for r in ranking.refused
        ]
        lines += ["## Not scored", "", *_markdown_table(titles, refused, titles)]
    return "\n".join(lines)


# CSV and JSON: full precision

_COLUMNS = (
    "protocol",
    "version",
    "protocol_sha256",
    "data",
    "data_sha256",
    "n",
    "official",
    "role",
    "place",
    "tied",
    "pruner",
    "sparsity",
    "true_sparsity",
    "robust",
    "robust_low",
    "robust_high",
    "clean",
    "clean_low",
    "clean_high",
    "interval",
    "seeds",
    "robust_counts",
    "clean_counts",
    "train_passes",
    "train_seconds",
    "score_seconds",
    "devices",
    "disagreements",
    "flags",
    "origin",
    "records",
    "refused",
)
_KINDS = (PRIMARY, RANDOM, "shuffle")  # of controls
_COMPARED = ("gap", "low", "high", "p", "holm", "boot_low", "boot_high", "common_seeds", "verdict")  # with each kind
_CLEAR = {"+": "more", "-": "less", "=": "unclear"}  # a sign alone would be a formula


def _csv_text(text: str) -> str:
    """`text` as nothing but text: a leading apostrophe keeps a spreadsheet from taking it for a formula."""
    shown = clean(text)
    first = unicodedata.normalize("NFKC", shown[:1])  # full-width signs count as well
    return f"'{shown}" if first in ("=", "+", "-", "@") else shown


def comma_separated(ranking: Ranking) -> str:
    """A line a row (and a net that was not scored, with its reason in `refused`), all boards in one table."""
    attacks = list(dict.fromkeys(attack for board in ranking.boards for attack in board.attacks))
    buffer = io.StringIO()
    less = [f"less_{kind}_{what}" for kind in _KINDS for what in _COMPARED]
    titles = [*_COLUMNS, *less, *(f"survived_{_csv_text(attack)}" for attack in attacks)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(titles)
    for board in ranking.boards:
        for row in board.rows:
            survivors = [row.survived.get(attack, "") for attack in attacks]
            writer.writerow([*_csv_row(board, row), *_csv_compared(board, row), *survivors])
    for net in ranking.refused:
        known = {"protocol": net.protocol or "", "pruner": net.pruner or "", "records": net.record}
        values = known | {"refused": f"{net.check}: {net.reason}"}
        writer.writerow([_csv_text(values.get(title, "")) for title in titles])
    return buffer.getvalue()


def _csv_row(board: Board, row: Row) -> list[Any]:
    values = {
        "protocol": _csv_text(board.protocol),
        "version": board.version,
        "protocol_sha256": board.sha256,
        "data": _csv_text(board.data),
        "data_sha256": board.data_sha256,
        "n": board.n,
        "official": row.official,
        "role": row.role,
        "place": row.place,
        "tied": row.tied,
        "pruner": _csv_text(row.pruner),
        "sparsity": f"{row.sparsity:f}",
        "true_sparsity": row.true_sparsity,
        "robust": row.robust.mean,
        "robust_low": row.robust.low,
        "robust_high": row.robust.high,
        "clean": row.clean.mean,
        "clean_low": row.clean.low,
        "clean_high": row.clean.high,
        "interval": row.robust.interval,
        "seeds": _joined(row.seeds),
        "robust_counts": _joined(row.robust.counts),
        "clean_counts": _joined(row.clean.counts),
        "train_passes": row.train_passes,
        "train_seconds": row.train_seconds,
        "score_seconds": row.score_seconds,
        "devices": _joined([_csv_text(device) for device in row.devices]),
        "disagreements": row.disagreements,
        "flags": _joined(list(dict.fromkeys(_csv_text(doubt.name) for doubt in row.flags))),
        "origin": _csv_text(row.origin),
        "records": _joined([_csv_text(record) for record in row.records]),
        "refused": "",
    }
    return [values[column] for column in _COLUMNS]


def _csv_compared(board: Board, row: Row) -> list[Any]:
    """The contrasts of a row with each kind of control, empty where there is none."""
    found = {
        contrast.control if contrast.control in _KINDS else "shuffle": contrast
        for contrast in board.contrasts
        if contrast.family != "places" and (contrast.sparsity, contrast.pruner) == (row.sparsity, row.pruner)
    }
    cells: list[Any] = []
    for kind in _KINDS:
        if (contrast := found.get(kind)) is None:
            cells += [""] * len(_COMPARED)
            continue
        cells += [
            contrast.gap,
            contrast.low,
            contrast.high,
            contrast.p,
            contrast.adjusted,
            *(contrast.bootstrap or (None, None)),
            len(contrast.seeds),
            _CLEAR[contrast.verdict],
        ]
    return cells


def _joined(values: Sequence[object]) -> str:
    return ";".join(str(value) for value in values)


def as_json(ranking: Ranking) -> str:
    """Everything that `Ranking` holds, with notes and verdicts; numbers are numbers and unknown is null."""
    boards = [{**dataclasses.asdict(board), "note": board.note} for board in ranking.boards]
    for board, values in zip(ranking.boards, boards, strict=True):
        for contrast, held in zip(board.contrasts, values["contrasts"], strict=True):
            held |= {"verdict": contrast.verdict, "agrees": contrast.agrees}
    refused = [dataclasses.asdict(net) for net in ranking.refused]
    values = {"prunebench_board": 2, "origins": MEANING, "boards": boards, "refused": refused}
    return json.dumps(values, indent=1, allow_nan=False, default=float) + "\n"


# LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    ODDS: r"\textdagger{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "-": "-{}",
    "'": "'{}",
    '"': r"\char34{}",
    SIGN: r"\textbf{!}",
}


def _latex_text(text: str) -> str:
    """`text` as nothing but text in any engine; what is not ASCII becomes a question mark."""
    return "".join(_LATEX.get(char, char if char.isascii() else "?") for char in text)


def latex(ranking: Ranking) -> str:
    """A booktabs table a board, to be read in with `\\input`."""
    lines = ["% Generated by prunebench rank; needs \\usepackage{booktabs}.", ""]
    for board in ranking.boards:
        shown = [{**cells(row), **compared(board, row)} for row in board.rows]
        titles = [title for title in shown[0] if title not in ("Device", "Counted", "Training, s", "Bootstrap")]
        body = []
        for i, (row, texts) in enumerate(zip(board.rows, shown, strict=True)):
            above = board.rows[i - 1] if i else row
            if above.sparsity != row.sparsity:
                body.append(r"\midrule")
            elif above.role != row.role:  # controls stand apart
                body.append(r"\addlinespace")
            body.append(" & ".join(_latex_text(clean(texts[title])) for title in titles) + r" \\")
        caption = f"{clean(board.protocol)}, version {board.version}, {board.n} images."
        caption = " ".join(
            [caption, board.note, MEANING, *odds(board), *powers(board), *(clean(line) for line in doubts(board))]
        )
        lines += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text(caption)}}}",
            rf"\begin{{tabular}}{{{'ll' + 'r' * (len(titles) - 2)}}}",
            r"\toprule",
            " & ".join(_latex_text(title) for title in titles) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(lines)


_TERMINAL = ("Place", "Pruner", "Robust %", "Clean %", "Seeds", SAID)


def terminal(ranking: Ranking) -> list[Table]:
    """A table a board, and one of the nets that were not scored, that fit a terminal of 80 columns.

    The verdict is that against magnitude pruning.
    """
    tables = []
    for board in ranking.boards:
        official = "official" if board.official else "not official"
        title = f"{board.protocol} v{board.version}, {official}, {board.n} images, {board.records} records"
        said = [
            board.note,
            summary(board, clean),
            *odds(board),
            *powers(board),
            *(clean(line) for line in doubts(board)),
        ]
        note = "\n".join(said)
        table = Table(title=Text(clean(title)), caption=Text(note), caption_justify="left", box=None, pad_edge=False)
        texts = [cells(row) | compared(board, row) | {"Clean %": f"{100 * row.clean.mean:.1f}"} for row in board.rows]
        columns = [title for title in _TERMINAL if any(of[title] for of in texts)]
        for column in columns:
            left, whole = column in _LEFT, column != "Pruner"
            table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=whole)
        above = None
        for row, of in zip(board.rows, texts, strict=True):
            if above != (row.sparsity, row.role):
                if above is not None:
                    table.add_row()
                if above is None or above[0] != row.sparsity:
                    table.add_row("", Text(f"at sparsity {row.sparsity:f}", style="bold"))
            above = row.sparsity, row.role
            table.add_row(*(Text(clean(of[title])) for title in columns))
        tables.append(table)
    if ranking.refused:
        table = Table("Record", "Check", "Reason", title="Not scored", box=None, pad_edge=False)
        for net in ranking.refused:
            table.add_row(*(Text(clean(text)) for text in (net.record, net.check, net.reason)))
        tables.append(table)
    return tables


FORMATS = {
    "md": Format("README.md", markdown, _GENERATED),
    "csv": Format("board.csv", comma_separated, ",".join(_COLUMNS[:6])),
    "json": Format("board.json", as_json, '{\n "prunebench_board": '),
    "tex": Format("board.tex", latex, "% Generated by prunebench rank;"),
}
