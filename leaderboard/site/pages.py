"""The pages of a site: the first one, one per board, and one per row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from prunebench.bench.beside import net_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Ranking, Row
from prunebench.leaderboard.distances import raw_distances
from prunebench.leaderboard.findings.page import Finding, findings, headlines
from prunebench.leaderboard.papers import papers_of
from prunebench.leaderboard.provenance import MEANING
from prunebench.leaderboard.render.columns import SITE, texts
from prunebench.leaderboard.render.commands import command
from prunebench.leaderboard.render.data import as_json, comma_separated
from prunebench.leaderboard.render.text import (
    CONTRASTS,
    SIGN,
    clean,
    doubts,
    explained,
    first_clause,
    flags_in_short,
    flat,
    took,
    with_interval,
)
from prunebench.leaderboard.site import charts, compare, plots, row_page, small, tables
from prunebench.leaderboard.site.assets import assets
from prunebench.leaderboard.site.preview import described, preview
from prunebench.leaderboard.table import Results

Made = dict[str, bytes | Path]  # the files of a site by their path there: their content, or the file to copy


@dataclass(frozen=True)
class _Site:
    """What every page is made from: the records with the folder `source` they lie in, templates, and addresses."""

    results: Results
    source: Path
    environment: jinja2.Environment
    hrefs: Mapping[str, Mapping[small.Key, str]]  # by protocol, the pages of its rows
    far: Mapping[Path, np.ndarray | None]  # the distances of images, by record

    def render(self, template: str, **values: Any) -> bytes:
        """A page as bytes."""
        return self.environment.get_template(template).render(**values).encode()


def pages(ranking: Ranking, results: Results, source: Path, address: str = "") -> Made:
    """Every file of the site, by its path there; `source`: the folder of the records and of the files beside them.

    `address`: where the site will be found, ending in a slash, for the picture beside links to it; "" if unknown.
    Raises PrunebenchError for names that would share a file, and for files that do not belong to their record.
    """
    hrefs = {
        board.protocol: {
            (row.sparsity, row.pruner): f"entries/{_slug(f'{board.protocol}-{row.pruner}-s{row.sparsity:f}')}.html"
            for row in board.rows
        }
        for board in ranking.boards
    }
    every = [href for of_board in hrefs.values() for href in of_board.values()]
    ids = [_slug(board.protocol) for board in ranking.boards]
    if len(set(every)) != len(every) or len(set(ids)) != len(ids):
        raise PrunebenchError(
            "Two pruners have names that give the same file name; rename one pruner and score it again."
        )
    far = {path: raw_distances(source / path, r) for path, r in results.items() if isinstance(r, Record)}
    site, found = _Site(results, source, _environment(ranking, address), hrefs, far), findings(ranking, results, source)
    made: Made = {**assets(), "board.csv": comma_separated(ranking).encode(), "board.json": as_json(ranking).encode()}
    sections = []
    for board_id, board in zip(ids, ranking.boards, strict=True):
        told = headlines(found, board)
        sections.append(
            {
                "board": board,
                "id": board_id,
                "charts": charts.first(board),
                "findings": [(question, first_clause(verdict)) for question, _, verdict in told],
                "tables": small.of_board(board, hrefs[board.protocol]),
                "flags": flags_in_short(board),
            }
        )
        made[f"boards/{board_id}.html"] = _board_page(site, board, board_id, found)
        for row in board.rows:
            made |= _row_files(site, board, row, board_id)
    if ranking.boards:
        made["preview.png"] = preview(ranking.boards[0])
    made["index.html"] = site.render("index.html", root="", sections=sections, refused=ranking.refused)
    made["compare.html"] = site.render("compare.html", root="", groups=compare.groups(ranking, hrefs))
    return dict(sorted(made.items()))


def _board_page(site: _Site, board: Board, board_id: str, found: Sequence[Finding]) -> bytes:
    hrefs = [f"../{site.hrefs[board.protocol][row.sparsity, row.pruner]}" for row in board.rows]
    leads = [href for href, row in zip(hrefs, board.rows, strict=True) for _ in row.flags]
    drawn, missing = charts.of_board(board, site.results, site.source)
    pooled = [_pooled([site.far[Path(path)] for path in row.records]) for row in board.rows]
    return site.render(
        "board.html",
        root="../",
        board=board,
        board_id=board_id,
        charts=drawn,
        missing=missing,
        plots=plots.of_board(board, pooled),
        findings=[(of.question, each.verdict) for of in found for each in of.answers if each.board == board],
        doubts=list(zip(leads, doubts(board), strict=True)),
        flags=flags_in_short(board),
        rows=tables.of_rows("Rows", board, list(zip(hrefs, board.rows, strict=True)), SITE),
        survivors=tables.of_attacks(board, hrefs),
        contrasts=tables.of_contrasts(board),
        references=tables.of_references(board),
    )


def _row_files(site: _Site, board: Board, row: Row, board_id: str) -> Made:
    """The page of a row, its records, and their nets where they are kept."""
    href = site.hrefs[board.protocol][row.sparsity, row.pruner]
    name = href.removeprefix("entries/").removesuffix(".html")
    paths = [Path(path) for path in row.records]
    records = [record for path in paths if isinstance(record := site.results[path], Record)]
    flags = [(flag, record.job.seed) for record in records for flag in record.score.flags]
    flags.sort(key=lambda pair: (not pair[0].up, pair[0].name, pair[1]))
    files: Made = {}
    downloads = []
    for record, path in zip(records, paths, strict=True):
        kept = {f"records/{name}-seed{record.job.seed}.json": site.source / path}
        if net_path(site.source / path).is_file():
            kept[f"records/{name}-seed{record.job.seed}.net.safetensors"] = net_path(site.source / path)
        files |= kept
        downloads.append((record.job.seed, list(kept)))
    far = [site.far[path] for path in paths]
    files[href] = site.render(
        "row.html",
        root="../",
        board=board,
        board_id=board_id,
        row=row,
        row_id=name,
        facts=texts(board, row),
        flags=flags,
        robust=with_interval(row.robust),
        clean=with_interval(row.clean),
        papers=papers_of(row.pruner),
        command=command(board, [row]),
        commits=sorted({str(record.env["commit"]) for record in records if record.env.get("commit")}),
        downloads=downloads,
        comparisons=row_page.comparisons(board, row),
        counts=row_page.counts(records),
        beside=row_page.beside(records),
        curve=row_page.curve(records),
        plot=plots.of_row(board, row, records, far),
        pictures=[row_page.pictures(record, site.source / path) for record, path in zip(records, paths, strict=True)],
        grids=[row_page.costs(records), row_page.layers(records), row_page.provenance(records, paths)],
    )
    return files


def _pooled(seeds: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The distances of all seeds together; None unless every seed has some."""
    known = [distances for distances in seeds if distances is not None]
    return np.concatenate(known) if known and len(known) == len(seeds) else None


def _slug(whole: str) -> str:
    """A file name or an anchor unique to a name, of lowercase letters, digits, `.`, `=`, `_` and `-`."""
    plain = whole.replace(":", "-").replace(",", "-")
    safe = re.sub(r"[^a-z0-9.=_-]+", "-", plain.lower())[:100].strip("-.")
    if safe == plain:
        return safe
    return f"{safe}-{hashlib.sha256(whole.encode(errors='backslashreplace')).hexdigest()[:12]}".lstrip("-")


def _environment(ranking: Ranking, address: str) -> jinja2.Environment:
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
    environment.globals |= {
        "SIGN": SIGN,
        "CONTRASTS": CONTRASTS,
        "explained": explained,
        "took": took,
        "MEANING": MEANING,
        "version": version("prunebench"),
        "address": address,
        "pictured": described(ranking.boards[0]) if ranking.boards else None,
    }
    environment.filters["ours"] = Markup  # generated text, which may be longer than text from a record
    environment.filters["whole"] = lambda text: escape(flat(text))  # generated text that names rows
    return environment
