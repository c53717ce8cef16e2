"""Records -> a folder of web pages that opens from the disk: nothing in it asks the network for anything."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

import jinja2
from markupsafe import Markup

from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_outside, replace_folder
from prunebench.bench.record import LARGEST, Record
from prunebench.leaderboard import entry, plots
from prunebench.leaderboard.check import look
from prunebench.leaderboard.provenance import MEANING
from prunebench.leaderboard.render import (
    CONTRASTS,
    LESS,
    SAID,
    SIGN,
    cells,
    clean,
    compared,
    contrasts,
    doubts,
    percent,
    powers,
    references,
)
from prunebench.leaderboard.table import Board, Ranking, Results, Row, read

MANIFEST = "site.json"  # names every file of a site, so that a new one replaces nothing else
_BOARD = {  # the columns of a board by their titles, the most telling first: a phone shows no more than those
    "Place": "Place",
    "Pruner": "Pruner",
    "Sparsity": "Sparsity",
    "Robust %": "Robust %",
    LESS: LESS,
    SAID: SAID,
    "Bootstrap": "Bootstrap",
    "Clean %": "Clean %",
    "Seeds": "Seeds",
    "M passes": "Training, M passes",
    "Seconds": "Training, s",
    "Counted": "Counted",
    "Device": "Device",
    "Origin": "Origin",
    "Rules": "Rules",
}
_APART = {title: name for title, name in _BOARD.items() if name not in ("Place", LESS, SAID, "Bootstrap")}
_OWN = ("site.css", "site.js")
_EXPORT = re.compile(r"\bexport\s*\{([^{}]*)\}\s*;?")
_DEFAULT = re.compile(r"\b([\w$]+) as default\b")


@dataclass(frozen=True)
class Cell:
    """A cell of the sortable tables: its text, what it is sorted by (None: the text), where it leads.

    `doubt`: what the flags say that are up, shown behind a sign.
    """

    text: str
    order: float | None = None
    href: str | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Sortable:
    """A table that the widget sorts and filters."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def write(records: str | Path, out: str | Path) -> tuple[Ranking, Path]:
    """Make the site of the records below `records` in the folder `out`; returns the ranking and the first page.

    The folder is written aside and renamed. Raises PrunebenchError for records that cannot be read or compared, for
    an `out` inside `records`, and instead of replacing a folder that holds anything but a site of ours.
    """
    source, target = Path(records), Path(out)
    if target.resolve().is_relative_to(source.resolve()):
        raise PrunebenchError(
            f"The site cannot go to {target}, inside the records {source}; choose another folder with --out."
        )
    _refuse_foreign(target)
    results = read(source)
    ranking = look(source, results)
    made = pages(ranking, results, source)
    replace_folder(target, lambda aside: _fill(aside, made))
    return ranking, target / "index.html"


def pages(ranking: Ranking, results: Results, source: Path) -> dict[str, bytes]:
    """Every file of the site by its path in it; `source`: where the pairs lie beside the records."""
    environment = _environment()
    addresses = {
        (board.protocol, row.pruner, str(row.sparsity)): f"entries/{_slug(board, row)}.html"
        for board in ranking.boards
        for row in board.rows
    }
    if len(set(addresses.values())) != len(addresses):
        raise PrunebenchError(
            "Two pruners have names that make the same file name; rename one of them and score it again."
        )
    sections = []
    made = _assets()
    for number, board in enumerate(ranking.boards, 1):
        hrefs = [addresses[board.protocol, row.pruner, str(row.sparsity)] for row in board.rows]
        methods = [(href, row) for href, row in zip(hrefs, board.rows, strict=True) if row.role == "method"]
        apart = [(href, row) for href, row in zip(hrefs, board.rows, strict=True) if row.role != "method"]
        named = f"{board.protocol}, version {board.version}"
        leads = [href for href, row in zip(hrefs, board.rows, strict=True) for _ in row.flags]
        lines = zip(leads, doubts(board), strict=True)
        drawn = plots.of_board(board)
        sections.append(
            {
                "board": board,
                "id": f"b{number}",
                "doubts": list(lines),
                "plots": drawn,
                "powers": powers(board),
                "methods": _rows_table(f"{named}: methods", board, methods, _BOARD),
                "apart": _rows_table(f"{named}: unpruned nets and controls, without a place", board, apart, _APART),
                "survivors": _survivors_table(board, hrefs),
                "contrasts": _plain_table(f"{board.protocol}: methods against their controls", contrasts(board)),
                "references": _plain_table(
                    f"{board.protocol}: published by others, not measured here", references(board)
                ),
            }
        )
        for href, row in zip(hrefs, board.rows, strict=True):
            made[href] = _entry(environment, board, row, f"b{number}", results, source)
    page = environment.get_template("index.html").render(root="", sections=sections, refused=ranking.refused)
    made["index.html"] = page.encode()
    return dict(sorted(made.items()))


def _entry(
    environment: jinja2.Environment, board: Board, row: Row, board_id: str, results: Results, source: Path
) -> bytes:
    paths = [Path(path) for path in row.records]
    records = [record for path in paths if isinstance(record := results[path], Record)]
    flags = [(flag, record.job.seed) for record in records for flag in record.score.flags]
    flags.sort(key=lambda pair: (not pair[0].up, pair[0].name, pair[1]))
    page = environment.get_template("entry.html").render(
        root="../",
        board=board,
        board_id=board_id,
        row=row,
        facts=cells(row),
        flags=flags,
        robust=percent(row.robust),
        clean=percent(row.clean),
        comparisons=entry.comparisons(board, row),
        counts=entry.counts(records),
        beside=entry.beside(records),
        curve=entry.curve(records),
        plot=plots.of_entry(board, row, records),
        pictures=[entry.pictures(record, source / path) for record, path in zip(records, paths, strict=True)],
        grids=[entry.costs(records), entry.layers(records), entry.provenance(records, paths)],
    )
    return page.encode()


def _rows_table(
    caption: str, board: Board, rows: Sequence[tuple[str, Row]], columns: Mapping[str, str]
) -> Sortable | None:
    """A table of these rows, each with the address of its page; None where there are none."""
    if not rows:
        return None
    lines = []
    for href, row in rows:
        shown = {**cells(row), **compared(board, row), "Rules": "official" if row.official else "not official"}
        order = {
            "Place": row.place,
            "Sparsity": float(row.sparsity),
            "Robust %": row.robust.mean,
            "Clean %": row.clean.mean,
            "Seeds": len(row.seeds),
            "Training, M passes": row.train_passes,
            "Training, s": -1.0 if row.train_seconds is None else row.train_seconds,
            "Counted": row.true_sparsity,
            LESS: _leading(shown[LESS]),
            "Bootstrap": _leading(shown["Bootstrap"]),
        }
        line = {title: Cell(shown[name], order.get(name)) for title, name in columns.items()}
        line["Pruner"] = Cell(row.pruner, href=href)
        doubt = " ".join(dict.fromkeys(doubt.sentence for doubt in row.flags))
        line["Robust %"] = Cell(percent(row.robust), row.robust.mean, f"{href}#flags", doubt or None)
        lines.append(tuple(line.values()))
    return Sortable(caption, tuple(columns), tuple(lines))


def _survivors_table(board: Board, hrefs: Sequence[str]) -> Sortable:
    weak = list(dict.fromkeys(attack for row in board.rows for attack in row.weak))
    titles = ("Pruner", "Sparsity", "clean", *(f"after {a}" for a in board.attacks), *(f"{a} alone" for a in weak))
    rows = []
    for href, row in zip(hrefs, board.rows, strict=True):
        counts = [row.clean.mean * board.n, *row.survived.values(), *(row.weak.get(attack) for attack in weak)]
        shares = [None if count is None else 100 * count / board.n for count in counts]
        percents = [Cell("" if share is None else f"{share:.1f}", -1.0 if share is None else share) for share in shares]
        rows.append((Cell(row.pruner, None, href), Cell(f"{row.sparsity:f}", float(row.sparsity)), *percents))
    caption = f"{board.protocol}, version {board.version}: images still right, %"
    return Sortable(caption, titles, tuple(rows))


_NUMBERS = ("Sparsity", "AutoAttack %", "Clean %", "Difference", "Bootstrap", "p, Holm", "Common seeds")


def _plain_table(caption: str, shown: Sequence[dict[str, str]]) -> Sortable | None:
    """A table of what render shows, sorted by number where a column is one; None when it is empty."""
    if not shown:
        return None
    rows = [
        tuple(Cell(text, _leading(text) if title in _NUMBERS else None) for title, text in row.items()) for row in shown
    ]
    return Sortable(caption, tuple(shown[0]), tuple(rows))


def _leading(text: str) -> float:
    """The number that a text begins with, or its interval does; below all others where there is none."""
    try:
        return float(text.lstrip("[").replace(",", " ").split()[0])
    except (IndexError, ValueError):
        return -200.0


def _slug(board: Board, row: Row) -> str:
    """A file name of small letters, digits, `.`, `=`, `_` and `-` that no two rows share."""
    whole = f"{board.protocol}-{row.pruner}-s{row.sparsity:f}"
    plain = whole.replace(":", "-").replace(",", "-")
    safe = re.sub(r"[^a-z0-9.=_-]+", "-", plain.lower())[:100].strip("-.")
    if safe == plain:
        return safe
    return f"{safe}-{hashlib.sha256(whole.encode(errors='backslashreplace')).hexdigest()[:12]}"


def _environment() -> jinja2.Environment:
    """Templates in which every text is cleaned and escaped, and a name that is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    environment.globals |= {"SIGN": SIGN, "CONTRASTS": CONTRASTS, "MEANING": MEANING}
    environment.filters["ours"] = Markup  # a text of our own making that may be longer than one from a record
    return environment


def _assets() -> dict[str, bytes]:
    """The scripts and styles that all pages share: the table widget, the plots, and our own."""
    made = {f"assets/{name}": files(__package__).joinpath("templates", name).read_bytes() for name in _OWN}
    tables = files("itables").joinpath("html")
    made["assets/tables.css"] = tables.joinpath("dt_bundle.css").read_bytes()
    made["assets/tables.js"] = as_script(tables.joinpath("dt_bundle.js").read_text(encoding="utf-8")).encode()
    made["assets/plotly.js"] = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return made


def as_script(module: str) -> str:
    """The JavaScript module `module` as a script that keeps its default export as `window.DataTable`.

    A browser imports no module from the disk. Raises PrunebenchError unless it exports once and imports nothing.
    """
    exports = _EXPORT.findall(module)
    default = _DEFAULT.search(exports[0]) if len(exports) == 1 else None
    if default is None:
        raise PrunebenchError(
            "The table widget of the package itables has another form than expected; install the version of itables "
            "that requirements/dev.txt names."
        )
    body = _EXPORT.sub(lambda _: f"window.DataTable={default[1]};", module)
    return f"(()=>{{{body}\n}})();\n"


def _refuse_foreign(target: Path) -> None:
    """Raise PrunebenchError unless `target` is free, empty, or a site of ours with nothing else in it."""
    if not target.exists():
        return
    if not target.is_dir():
        raise PrunebenchError(f"{target} is a file and stays as it is; name a folder for the site with --out.")
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_symlink() or path.is_file()}
    if not there and any(target.iterdir()):
        there = {"folders"}
    foreign = sorted(there - _listed(target / MANIFEST) - {MANIFEST})
    if foreign or (there and MANIFEST not in there):
        example = PurePosixPath(foreign[0]) if foreign else MANIFEST
        raise PrunebenchError(
            f"{target} is not a site of prunebench alone: it holds {clean(str(example))}; move that away or choose "
            "another folder with --out."
        )


def _listed(manifest: Path) -> frozenset[str]:
    """The files that a site says it has; none when it does not say."""
    try:
        values = json_of(read_outside(manifest, "the list of a site's files", LARGEST))
        return frozenset(values["files"]) if values["prunebench_site"] == 1 else frozenset()
    except (PrunebenchError, ValueError, KeyError, TypeError):
        return frozenset()


def _fill(folder: Path, made: dict[str, bytes]) -> None:
    listed = {"prunebench_site": 1, "files": sorted(made)}
    for name, data in (made | {MANIFEST: json.dumps(listed, indent=1).encode() + b"\n"}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
