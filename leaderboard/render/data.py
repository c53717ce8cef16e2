"""Boards -> CSV and JSON, in full precision."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import unicodedata
from collections.abc import Callable
from typing import Any

from prunebench.leaderboard.board import Board, Ranking, Row
from prunebench.leaderboard.provenance import MEANING
from prunebench.leaderboard.render.columns import COLUMNS
from prunebench.leaderboard.render.text import clean
from prunebench.leaderboard.roles import PRIMARY, RANDOM

BOARD: dict[str, Callable[[Board], object]] = {
    "protocol": lambda board: board.protocol,
    "version": lambda board: board.version,
    "protocol_sha256": lambda board: board.sha256,
    "data": lambda board: board.data,
    "data_sha256": lambda board: board.data_sha256,
    "n": lambda board: board.n,
}
_ROW = {name: value for column in COLUMNS for name, value in column.values.items()}
_KINDS = (PRIMARY, RANDOM, "shuffle")  # of controls
_SHOWN = ("primary", "secondary")  # the families of these contrasts
_COMPARED = ("gap", "low", "high", "p", "holm", "boot_low", "boot_high", "common_seeds", "verdict")  # with each kind
_FURTHER = ("further", "further_low", "further_high")  # with magnitude pruning, if any distances are known
_CLEAR = {"+": "more", "-": "less", "=": "unclear"}  # a spreadsheet reads a sign alone as a formula


def comma_separated(ranking: Ranking) -> str:
    """All boards in one table: a line per row and per net that was not scored, with its reason in `refused`."""
    attacks = list(dict.fromkeys(attack for board in ranking.boards for attack in board.attacks))
    less = [f"less_{kind}_{what}" for kind in _KINDS for what in _COMPARED]
    far = any(contrast.further is not None for board in ranking.boards for contrast in board.contrasts)
    more = [f"less_{PRIMARY}_{what}" for what in _FURTHER] if far else []
    titles = [*BOARD, *_ROW, "refused", *less, *(f"survived_{_text(attack)}" for attack in attacks), *more]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(titles)
    for board in ranking.boards:
        about = [_cell(value(board)) for value in BOARD.values()]
        for row in board.rows:
            facts = [_cell(value(row)) for value in _ROW.values()]
            survivors = [row.survived.get(attack, "") for attack in attacks]
            further = _further(board, row) if far else ()
            writer.writerow([*about, *facts, "", *_compared(board, row), *survivors, *further])
    for net in ranking.refused:
        known = {"protocol": net.protocol or "", "pruner": net.pruner or "", "records": net.record}
        values = known | {"refused": f"{net.check}: {net.reason}"}
        writer.writerow([_text(values.get(title, "")) for title in titles])
    return buffer.getvalue()


def _compared(board: Board, row: Row) -> list[Any]:
    """The contrasts of a row with each of `_KINDS`, empty values for a missing one; the JSON has other families too."""
    found = {
        contrast.control if contrast.control in _KINDS else "shuffle": contrast
        for contrast in board.contrasts
        if contrast.family in _SHOWN and (contrast.sparsity, contrast.pruner) == (row.sparsity, row.pruner)
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


def _further(board: Board, row: Row) -> tuple[float | str, ...]:
    """The difference of median distances to magnitude pruning and its interval; empty values where unknown."""
    asked = ("primary", row.sparsity, row.pruner)
    found = (c.further for c in board.contrasts if (c.family, c.sparsity, c.pruner) == asked)
    return next(found, None) or ("",) * len(_FURTHER)


def _cell(value: object) -> object:
    """A value as written to the CSV; several values are joined by semicolons."""
    if isinstance(value, tuple):
        return ";".join(str(_cell(each)) for each in value)
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """`text` as plain text: a leading apostrophe keeps a spreadsheet from reading it as a formula."""
    shown = clean(text)
    first = unicodedata.normalize("NFKC", shown[:1])  # full-width signs count as well
    return f"'{shown}" if first in ("=", "+", "-", "@") else shown


def as_json(ranking: Ranking) -> str:
    """Everything in `Ranking`, with notes and verdicts; numbers stay numbers, unknown values are null."""
    boards = [{**dataclasses.asdict(board), "asked": board.asked, "note": board.note} for board in ranking.boards]
    for board, values in zip(ranking.boards, boards, strict=True):
        values["rules"] = None if board.rules is None else board.rules.model_dump(mode="json")
        for contrast, held in zip(board.contrasts, values["contrasts"], strict=True):
            held |= {"verdict": contrast.verdict, "agrees": contrast.agrees}
            if contrast.further is None:
                del held["further"]
    refused = [dataclasses.asdict(net) for net in ranking.refused]
    values = {"prunebench_board": 3, "origins": MEANING, "boards": boards, "refused": refused}
    return json.dumps(values, indent=1, allow_nan=False, default=float) + "\n"
