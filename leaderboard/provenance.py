"""The origin of the record behind each number: trained here, measured again, signed, or as handed in."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Sha256
from prunebench.bench.files import read_outside, write_json
from prunebench.bench.record import Record, Refusal
from prunebench.bench.schema import Strict, explain
from prunebench.bench.signature import ALLOWED, signer
from prunebench.leaderboard.board import AS_HANDED_IN, Board, Ranking, Row
from prunebench.leaderboard.table import Results

LEDGER = "ledger.json"
LARGEST = 2**24  # bytes of a ledger
VERSIONS = ("prunebench", "torch", "numpy", "pyautoattack", "python", "commit")
TRAINED: Literal["trained here"] = "trained here"
MEASURED: Literal["re-measured"] = "re-measured"
SIGNED = "signed"
ORIGINS = (TRAINED, MEASURED, SIGNED, AS_HANDED_IN)  # the strongest first
MEANING = (
    "Origin: 'trained here' means that the keeper of this board trained and scored the net, 're-measured' that it was "
    "scored here again with the same outcome, 'signed by NAME' that NAME vouches for the record, and 'as handed in' "
    "that there is only its author's word. A row has the origin of its weakest record. "
    "A file does not show which images its net was trained on."
)


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


Day = Annotated[str, AfterValidator(_day)]
Fact = Annotated[str, Field(max_length=500)]


class Attestation(Strict):
    """A note that the board's keeper made or remeasured a record: which, when, with what versions, and the finding.

    `record`, `net`: sha256 of the record and of the net's file. `verdict`: a word of `bench.claims.verdict`.
    """

    record: Sha256
    net: Sha256
    how: Literal["trained here", "re-measured"]
    date: Day
    versions: dict[str, Fact | None]
    processor: Fact
    verdict: Fact

    @property
    def counts(self) -> bool:
        """Whether it supports its record."""
        return self.verdict == "holds"


class Ledger(Strict):
    """All attestations for the records of a board."""

    prunebench_ledger: Literal[1] = 1
    entries: tuple[Attestation, ...] = Field((), strict=False)


def day(text: str | None) -> str:
    """The day in `text` as YYYY-MM-DD, today by default. Raises PrunebenchError for any other form."""
    if text is None:
        return datetime.now(tz=UTC).date().isoformat()
    try:
        return _day(text)
    except ValueError:
        raise PrunebenchError(f"{text!r} is not a date; write --date as YYYY-MM-DD, such as 2026-01-31.") from None


def trained(record: Record) -> Attestation:
    """The attestation for a record whose net was trained and scored here today."""
    return _attestation(record, record, TRAINED, "holds", day(None))


def measured(record: Record, again: Record, verdict: str, day: str) -> Attestation:
    """The attestation for a remeasured record; `again`: the new record."""
    return _attestation(record, again, MEASURED, verdict, day)


def _attestation(
    record: Record, made: Record, how: Literal["trained here", "re-measured"], verdict: str, day: str
) -> Attestation:
    return Attestation(
        record=record.sha256,
        net=record.net.sha256,
        how=how,
        date=day,
        verdict=verdict,
        versions={name: None if made.env.get(name) is None else str(made.env[name]) for name in VERSIONS},
        processor=made.processor,
    )


def read_ledger(home: Path) -> Ledger:
    """The ledger in the folder `home`, empty if there is none. Raises PrunebenchError for a file that is no ledger."""
    path = home / LEDGER
    if not path.exists() and not path.is_symlink():
        return Ledger()
    way_out = "restore the file, or remove it and measure the records again"
    data = read_outside(path, "a ledger", LARGEST, way_out=way_out)
    try:
        return Ledger.model_validate(json.loads(data))
    except ValidationError as error:
        raise PrunebenchError(f"The ledger {path} breaks the rules: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise PrunebenchError(f"{path} is not valid JSON ({error}); {way_out}.") from None


def note(home: Path, results: Results, attestations: Iterable[Attestation]) -> Path | None:
    """Add `attestations` to the ledger in `home` and return its path; None when nothing changes.

    A newer measurement replaces an older one of the same record; of several trainings the first is kept.
    Those for records that are not in `results`, the board's, are dropped.
    """
    here = {result.sha256 for result in results.values()}
    old = read_ledger(home)
    known = {(attestation.record, attestation.how): attestation for attestation in old.entries}
    both = known | {(e.record, e.how): e for e in attestations if e.how == MEASURED or (e.record, e.how) not in known}
    new = Ledger(entries=tuple(both[key] for key in sorted(both) if key[0] in here))
    if new == old:
        return None
    write_json(home / LEDGER, new.model_dump(mode="json"))
    return home / LEDGER


def origins(results: Results, records: Path, home: Path) -> dict[str, str]:
    """The origin of each record: a word of ORIGINS, plus the name after "signed", by path below the folder `records`.

    `home`: the folder of the ledger and the list of signers. Raises PrunebenchError for an invalid signature.
    """
    known: dict[tuple[str, str], set[str]] = {}
    for attestation in read_ledger(home).entries:
        if attestation.counts:
            known.setdefault((attestation.record, attestation.net), set()).add(attestation.how)
    return {path.as_posix(): _origin(result, records / path, home, known) for path, result in results.items()}


def _origin(result: Record | Refusal, path: Path, home: Path, known: Mapping[tuple[str, str], set[str]]) -> str:
    name = signer(path, home / ALLOWED)  # even if the ledger has an attestation: a wrong signature is never ignored
    net = result.net.sha256 if isinstance(result, Record) else result.net
    noted = known.get((result.sha256, net), set()) if net else set()
    for how in (TRAINED, MEASURED):
        if how in noted:
            return how
    return AS_HANDED_IN if name is None else f"{SIGNED} by {name}"


def mark(ranking: Ranking, found: Mapping[str, str]) -> Ranking:
    """The ranking with the origin of every row; `found`: the origin of each record."""

    def marked(row: Row) -> Row:
        return dataclasses.replace(row, origin=of_row([found[path] for path in row.records]))

    boards = (dataclasses.replace(board, rows=tuple(map(marked, board.rows))) for board in ranking.boards)
    return dataclasses.replace(ranking, boards=tuple(boards))


def of_row(found: Sequence[str]) -> str:
    """A row's origin, given those of its records: the weakest, and if mixed, the others with their counts."""
    counts = Counter(found)
    ranked = sorted(counts, key=lambda origin: (-_strength(origin), origin))
    if len(ranked) == 1:
        return ranked[0]
    others = (f"{origin} {counts[origin]} of {len(found)}" for origin in ranked[1:])
    return ", ".join([ranked[0], *others])


def _strength(origin: str) -> int:
    """The position of an origin in ORIGINS, 0 for the strongest."""
    return ORIGINS.index(SIGNED if origin.startswith(SIGNED) else origin)


def summary(board: Board, shown: Callable[[str], str]) -> str:
    """The origins of the rows, in one line for a narrow terminal; `shown` makes a name from a record safe to show."""
    rows: dict[str, list[Row]] = {}
    for row in board.rows:
        rows.setdefault(row.origin, []).append(row)
    if len(rows) == 1:
        return f"Origin of all rows: {shown(board.rows[0].origin)}."
    most = max(rows, key=lambda origin: len(rows[origin]))
    named = [
        f"{shown(origin)}: {', '.join(f'{shown(row.pruner)} at {row.sparsity:f}' for row in some)}"
        for origin, some in rows.items()
        if origin != most
    ]
    return f"Origin of rows: {'; '.join(named)}; {shown(most)}: the other {len(rows[most])}."
