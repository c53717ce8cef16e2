"""The pages of a site: one for all rows, and one per row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup, escape

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Ranking, Row
from prunebench.leaderboard.distances import raw_distances
from prunebench.leaderboard.findings.page import findings, headlines
from prunebench.leaderboard.provenance import MEANING
from prunebench.leaderboard.render.columns import SITE_METHODS, SITE_OTHERS, texts
from prunebench.leaderboard.render.text import CONTRASTS, SIGN, clean, doubts, explained, flat, percent, powers
from prunebench.leaderboard.site import charts, plots, row_page, tables
from prunebench.leaderboard.site.assets import assets
from prunebench.leaderboard.table import Results

Distances = Mapping[Path, np.ndarray | None]  # by record


def pages(ranking: Ranking, results: Results, source: Path) -> dict[str, bytes]:
    """Every file of the site, by its path there; `source`: the folder of the records and their image pairs."""
    environment = _environment()
    addresses = {
        (board.protocol, row.pruner, str(row.sparsity)): f"entries/{_slug(board, row)}.html"
        for board in ranking.boards
        for row in board.rows
    }
    if len(set(addresses.values())) != len(addresses):
        raise PrunebenchError(
            "Two pruners have names that give the same file name; rename one pruner and score it again."
        )
    far = {path: raw_distances(source / path, r) for path, r in results.items() if isinstance(r, Record)}
    found, sections = findings(ranking, results, source), []
    made = assets()
    for number, board in enumerate(ranking.boards, 1):
        board_id = f"b{number}"
        hrefs = [addresses[board.protocol, row.pruner, str(row.sparsity)] for row in board.rows]
        sections.append(_section(board, board_id, hrefs, far))
        sections[-1] |= {"charts": charts.of_board(board, results, source), "findings": headlines(found, board)}
        for href, row in zip(hrefs, board.rows, strict=True):
            made[href] = _row_page(environment, board, row, board_id, results, source, far)
    page = environment.get_template("index.html").render(root="", sections=sections, refused=ranking.refused)
    made["index.html"] = page.encode()
    return dict(sorted(made.items()))


def _section(board: Board, board_id: str, hrefs: Sequence[str], far: Distances) -> dict[str, object]:
    """The first page's content for a board whose rows have the pages `hrefs`."""
    named = f"{board.protocol}, version {board.version}"
    rows = list(zip(hrefs, board.rows, strict=True))
    methods = [(href, row) for href, row in rows if row.role == "method"]
    apart = [(href, row) for href, row in rows if row.role != "method"]
    leads = [href for href, row in rows for _ in row.flags]
    return {
        "board": board,
        "id": board_id,
        "doubts": list(zip(leads, doubts(board), strict=True)),
        "plots": plots.of_board(board, [_pooled([far[Path(path)] for path in row.records]) for row in board.rows]),
        "powers": powers(board),
        "methods": tables.of_rows(f"{named}: methods", board, methods, SITE_METHODS),
        "apart": tables.of_rows(f"{named}: unpruned nets and controls, without a place", board, apart, SITE_OTHERS),
        "survivors": tables.of_attacks(board, hrefs),
        "contrasts": tables.of_contrasts(board),
        "references": tables.of_references(board),
    }


def _row_page(
    environment: jinja2.Environment,
    board: Board,
    row: Row,
    board_id: str,
    results: Results,
    source: Path,
    far: Distances,
) -> bytes:
    paths = [Path(path) for path in row.records]
    records = [record for path in paths if isinstance(record := results[path], Record)]
    flags = [(flag, record.job.seed) for record in records for flag in record.score.flags]
    flags.sort(key=lambda pair: (not pair[0].up, pair[0].name, pair[1]))
    page = environment.get_template("row.html").render(
        root="../",
        board=board,
        board_id=board_id,
        row=row,
        facts=texts(board, row),
        flags=flags,
        robust=percent(row.robust),
        clean=percent(row.clean),
        comparisons=row_page.comparisons(board, row),
        counts=row_page.counts(records),
        beside=row_page.beside(records),
        curve=row_page.curve(records),
        plot=plots.of_row(board, row, records, [far[path] for path in paths]),
        pictures=[row_page.pictures(record, source / path) for record, path in zip(records, paths, strict=True)],
        grids=[row_page.costs(records), row_page.layers(records), row_page.provenance(records, paths)],
    )
    return page.encode()


def _pooled(seeds: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The distances of all seeds together; None unless every seed has some."""
    known = [distances for distances in seeds if distances is not None]
    return np.concatenate(known) if known and len(known) == len(seeds) else None


def _slug(board: Board, row: Row) -> str:
    """A file name unique to the row, of lowercase letters, digits, `.`, `=`, `_` and `-`."""
    whole = f"{board.protocol}-{row.pruner}-s{row.sparsity:f}"
    plain = whole.replace(":", "-").replace(",", "-")
    safe = re.sub(r"[^a-z0-9.=_-]+", "-", plain.lower())[:100].strip("-.")
    if safe == plain:
        return safe
    return f"{safe}-{hashlib.sha256(whole.encode(errors='backslashreplace')).hexdigest()[:12]}"


def _environment() -> jinja2.Environment:
    """Templates that clean and escape every text, and raise an error for an undefined name."""
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
    environment.globals |= {"SIGN": SIGN, "CONTRASTS": CONTRASTS, "explained": explained, "MEANING": MEANING}
    environment.filters["ours"] = Markup  # generated text, which may be longer than text from a record
    environment.filters["whole"] = lambda text: escape(flat(text))  # generated text that names rows
    return environment
