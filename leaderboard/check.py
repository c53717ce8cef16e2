"""Shows, writes and checks the published files of a folder of records."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.files import write_bytes
from prunebench.bench.outcomes import recount
from prunebench.bench.record import Record
from prunebench.leaderboard import log, provenance
from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.provenance import Attestation
from prunebench.leaderboard.render.formats import FORMATS, Format
from prunebench.leaderboard.table import Results, rank, read


def default_out(records: Path) -> Path:
    """Where the tables of `records` go: the parent of a folder named "records", otherwise its sibling NAME-board.

    So `leaderboard/records` has its board in `leaderboard`, and `runs` does not touch the README.md beside it. The
    ledger and the list of signers are always there, wherever the tables go.
    """
    folder = records.resolve()
    return folder.parent if folder.name == "records" else folder.parent / f"{folder.name}-board"


def formats_named(names: Sequence[str]) -> list[Format]:
    """The formats with these names, without repeats. Raises PrunebenchError for an unknown name or an empty list."""
    if not names:
        raise PrunebenchError(f"No format is named; name one or more of {', '.join(FORMATS)}.")
    for name in names:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    return [FORMATS[name] for name in dict.fromkeys(names)]


def look(records: str | Path, results: Results | None = None) -> Ranking:
    """Rank the records below `records`, with the origin of every row, and write nothing.

    `results`: what was already read there, so that it is not read twice. Raises PrunebenchError for records that
    cannot be read or compared, and for an invalid ledger or signature.
    """
    folder = Path(records)
    results = read(folder) if results is None else results
    return provenance.mark(rank(results, folder), provenance.origins(results, folder, default_out(folder)))


def write(
    records: str | Path,
    out: str | Path | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    *,
    reason: str | None = None,
    date: str | None = None,
    attestations: Iterable[Attestation] = (),
) -> tuple[Ranking, list[Path]]:
    """Rank the records below `records` and write the tables to `out`; returns the ranking and the files.

    `attestations` are added to the ledger. Changed rows are logged with the `reason` and the `date` (YYYY-MM-DD, today
    by default); the first reason given starts the log. Raises PrunebenchError, and writes nothing, for an unknown
    format, for records that cannot be read or compared, for an `out` inside `records`, for changed rows without a
    reason where there is a log, and for a file in the way that Prunebench did not generate.
    """
    folder, target, chosen = _places(records, out, formats)
    day = provenance.day(date)
    results = read(folder)
    ranking = look(folder, results)
    paths = {target / chosen_format.file: chosen_format for chosen_format in chosen}
    for path, form in paths.items():
        if path.exists() and not _bytes(path).startswith(form.begins.encode()):
            raise PrunebenchError(
                f"{path} was not written by prunebench rank and is not overwritten; move it away or choose another "
                "folder with --out."
            )
    texts = {path: form.render(ranking) for path, form in paths.items()}  # all of them before the first file is written
    logged = log.append(target / log.LOG, ranking, reason, day)
    noted = provenance.note(default_out(folder), results, attestations)
    if noted is not None:
        ranking = look(folder, results)
        texts = {path: form.render(ranking) for path, form in paths.items()}
    for path, text in texts.items():
        write_bytes(path, text.encode())
    return ranking, [*paths, *([target / log.LOG] if logged else []), *([noted] if noted else [])]


def check(
    records: str | Path, out: str | Path | None = None, formats: Sequence[str] = tuple(FORMATS)
) -> tuple[Ranking, list[Path]]:
    """Verify what is published: each record's hash, counts and signature, the tables in `out`, and the log.

    Returns what `write` would. Raises PrunebenchError at the first record that is not what was scored, for a table that
    is missing or differs by a byte from what `write` would make, and for a changed row without a line in the log.
    """
    folder, target, chosen = _places(records, out, formats)
    results = read(folder)
    for path, result in results.items():
        if isinstance(result, Record):
            recount(folder / path, result)
    ranking = look(folder, results)
    paths = [target / form.file for form in chosen]
    stale = []
    for path, form in zip(paths, chosen, strict=True):
        if not path.is_file():
            stale.append(f"{path} is missing")
        elif _bytes(path) != form.render(ranking).encode():
            stale.append(f"{path} differs")
    logged = log.read(target / log.LOG)
    changed = {} if logged is None else log.differing(logged, log.state(ranking))
    if changed:
        stale.append(f"{log.told(changed)} and {target / log.LOG} does not say why")
    if stale:
        command = f"prunebench rank {shlex.quote(str(records))} --write"
        if out is not None:
            command += f" --out {shlex.quote(str(out))}"
        if set(formats) != set(FORMATS):
            command += f" --format {','.join(formats)}"
        if changed:
            command += " --reason 'WHY'"
        raise PrunebenchError(f"The board is out of date ({'; '.join(stale)}); run {command}.")
    return ranking, paths


def _places(records: str | Path, out: str | Path | None, formats: Sequence[str]) -> tuple[Path, Path, list[Format]]:
    folder = Path(records)
    target = default_out(folder) if out is None else Path(out)
    if target.resolve().is_relative_to(folder.resolve()):
        raise PrunebenchError(
            f"The tables cannot go to {target}, inside the records {folder}, where they would be read as records; "
            "choose another folder with --out."
        )
    return folder, target, formats_named(formats)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PrunebenchError(f"Cannot read {path} ({error.strerror}); move it away or choose --out.") from error
