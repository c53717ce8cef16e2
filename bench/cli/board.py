"""The leaderboard verbs: rank records, sign them, and render them as web pages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import record_at, records_in
from prunebench.bench.cli.options import AsJson, DataRoot, Device, Quiet, Threads, store_of
from prunebench.bench.cli.watch import Watch
from prunebench.bench.errors import PrunebenchError, printable

if TYPE_CHECKING:
    from prunebench.bench.data import Store
    from prunebench.leaderboard.provenance import Attestation


def rank(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A folder of records.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for the tables; by default the parent of a folder 'records'.")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Any of md,csv,json,tex,svg.")] = "md,csv,json,tex,svg",
    write: Annotated[
        bool, typer.Option("--write", help="Write the tables; with --reason the log, with --rescore the ledger.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail unless records, tables and log are valid and up to date.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="With --write: why rows changed, for the log.")] = None,
    date: Annotated[str | None, typer.Option(help="The date in log and ledger, YYYY-MM-DD; today by default.")] = None,
    rescore: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score N official records again, drawn at random.")
    ] = None,
    draw: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="The seed of the draw, to repeat it; by default random.")
    ] = None,
    since: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF", help="Draw from records changed since this git commit; the first given that exists."
        ),
    ] = None,
    nets: Annotated[
        Path | None, typer.Option(help="The folder of the nets, if they are not beside the records.")
    ] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare records; write or check the leaderboard's tables."""
    from prunebench.leaderboard import check as board
    from prunebench.leaderboard.render.data import as_json as data_of
    from prunebench.leaderboard.render.terminal import terminal

    for name, value, other, given in (
        ("--reason", reason, "--write", write),
        ("--date", date, "--write", write),
        ("--draw", draw, "--rescore", rescore),
        ("--since", since, "--rescore", rescore),
        ("--nets", nets, "--rescore", rescore),
    ):
        if value is not None and not given:
            raise PrunebenchError(f"{name} has no effect without {other}; give both, or leave {name} out.")
    if check and write:
        raise PrunebenchError("--check compares with the tables that --write replaces; give one of them.")
    folder, attestations = records_in(records), []
    chosen = [name.strip() for name in formats.split(",") if name.strip()]
    board.formats_named(chosen)
    if check:
        ranking, files = board.check(folder, out, chosen)
    if rescore is not None:
        attestations = _remeasured(
            folder, rescore, draw, since or [], nets, date, store_of(data), device, threads, quiet=quiet
        )
    if write:
        ranking, files = board.write(folder, out, chosen, reason=reason, date=date, attestations=attestations)
    elif not check:
        ranking, files = board.look(folder), []
    if as_json:
        show.print_json(json.loads(data_of(ranking)) | {"files": [str(file) for file in files]})
        return
    last = show.written("Written" if write else "Up to date", files) if files else "Nothing was written (--write)."
    show.out(*terminal(ranking), last)


def sign(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="Records, as RECORD.json.")],
    key: Annotated[Path, typer.Option(help="Your private SSH key, or the public half of a key in an SSH agent.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Sign records with an SSH key: RECORD.json.sig beside each."""
    from prunebench.bench import signature

    show.wrote([signature.sign(record_at(record), key) for record in records], as_json=as_json)


def site(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A folder of records, or a run folder.")],
    out: Annotated[Path, typer.Option(help="The folder for the site; an older site there is replaced.")],
    address: Annotated[
        str | None, typer.Option(help="Where the site will be found, for the picture beside links to it.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make web pages from the records; no server is needed."""
    from prunebench.leaderboard.site import folder

    ranking, first = folder.write(records_in(records), out, address)
    rows, boards = sum(len(board.rows) for board in ranking.boards), len(ranking.boards)
    what = f"{boards} board{'s' * (boards != 1)} and {rows} row{'s' * (rows != 1)}"
    show.wrote([first], as_json=as_json, word=f"Written, {what}", boards=boards, rows=rows)


def _remeasured(
    folder: Path,
    count: int,
    seed: int | None,
    since: list[str],
    nets: Path | None,
    date: str | None,
    store: Store,
    device: str,
    threads: int,
    *,
    quiet: bool,
) -> list[Attestation]:
    """Score some official records again; return the attestations of those that are confirmed.

    Raises PrunebenchError if any record is not confirmed, after all have been checked.
    """
    import torch

    from prunebench.bench import machine
    from prunebench.bench.claims import rescore
    from prunebench.bench.claims.nets import Nets
    from prunebench.bench.record import Record
    from prunebench.leaderboard import provenance, table

    machine.device_named(device)
    torch.set_num_threads(threads)
    day, where = provenance.day(date), Nets(*([] if nets is None else [nets]), folder)
    records = {path: record for path, record in table.read(folder).items() if isinstance(record, Record)}
    drawn = rescore.draw(records, folder, count, rescore.fresh() if seed is None else seed, since, store)
    attestations, wrong = [], []
    with Watch(quiet=quiet) as watch:
        watch.line(drawn.told)
        for path in drawn.paths:
            name, record = printable(str(path)), records[path]
            try:
                net = where.of(folder / path, record)
                verdict, again = rescore.rescore(
                    folder / path,
                    record,
                    net,
                    store,
                    parent=where.parent_of(folder / path, record),
                    device=device,
                    report=partial(watch.report, name),
                )
            except PrunebenchError as error:
                watch.finish(name, "cannot be measured again")
                wrong.append(str(error))
                continue
            watch.finish(name, printable(verdict.line))
            if verdict.word == "refuted":
                wrong.append(f"{folder / path} does not match its net: {verdict.sentence}")
            attestations.append(provenance.measured(record, again, verdict.word, day))
    if wrong:
        more = f" ({len(wrong) - 1} more of the {len(drawn.paths)} records do not match.)" if len(wrong) > 1 else ""
        raise PrunebenchError(f"{wrong[0].rstrip('.')}.{more}")
    return attestations
