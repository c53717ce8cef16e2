"""The claim verbs: make a claim, and verify claims."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import claim_at, net_at, net_of, record_at
from prunebench.bench.cli.options import AsJson, DataRoot, Device, Quiet, Threads, store_of
from prunebench.bench.cli.watch import Watch
from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.names import PROPOSALS


def claim(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The record of a score.")],
    out: Annotated[Path, typer.Option(help="The folder for the claim and its files.")],
    net: Annotated[
        Path | None, typer.Option(help="The net that was scored; by default the one beside the record.")
    ] = None,
    at_least: Annotated[
        str | None, typer.Option(help="Claim only this share of the images, such as '60 %', instead of the count.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Claim the best-known number, of a net scored with --best.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another claim or another net in the folder.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a claim that others can verify: CLAIM.toml and its files."""
    from prunebench.bench.claims.make import make

    record = record_at(record)
    if at_least is not None and at_least.endswith("%"):
        at_least = f"{at_least.removesuffix('%').rstrip()} %"
    path = make(record, net_of(record) if net is None else net_at(net), out, at_least=at_least, best=best, force=force)
    show.wrote([path], as_json=as_json)
    if not (out / PROPOSALS).exists():
        show.warn(["The claim cannot be replayed, only verified at level quick or full; score with --keep-proposals."])


class Level(StrEnum):
    """How a claim is verified."""

    replay = "replay"
    quick = "quick"
    full = "full"


def verify(
    place: Annotated[Path, typer.Argument(metavar="CLAIM", help="A claim, or a folder of claims.")],
    level: Annotated[
        Level, typer.Option(help="Replay stored images, attack a tenth (at least 200), or attack all.")
    ] = Level.replay,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="The seed that draws the images of level quick; by default random."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder where level full saves its progress, to resume it.")
    ] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure claims again; exit code 0 when all of them hold.

    A claim of the best-known number also faces its suite: the short attacks at level quick, all at level full.
    """
    from prunebench.bench.claims.claim import find

    claims = find(claim_at(place))

    import torch

    from prunebench.bench import machine
    from prunebench.bench.claims import verify as measure
    from prunebench.bench.claims.verdict import Verdict

    machine.device_named(device)
    torch.set_num_threads(threads)
    store, found = store_of(data), dict[Path, Verdict]()
    with Watch(quiet=quiet) as watch:
        for number, path in enumerate(claims):
            name, folder = printable(str(path)), out and (out if len(claims) == 1 else out / f"{number}")
            report = partial(watch.report, name)
            try:
                found[path] = measure.verify(
                    path, level.value, store=store, device=device, seed=seed, out=folder, report=report
                )
            except PrunebenchError as error:
                if len(claims) == 1:
                    raise
                found[path] = Verdict("refused", str(error))
    if as_json:
        show.print_json([{"claim": str(path), "level": level.value} | vars(verdict) for path, verdict in found.items()])
    else:
        show.out(*(f"{printable(str(path))}: {verdict.line}" for path, verdict in found.items()))
    if not all(verdict.good for verdict in found.values()):
        raise typer.Exit(1)
