"""The verbs for authors of pruners: create one, check it, and list what is available."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import one
from prunebench.bench.cli.options import AsJson, Quiet, Threads
from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.protocol import PROTOCOLS, Protocol, as_sparsity


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and underscores.")],
    out: Annotated[Path, typer.Option(help="The parent of the new folder NAME.")] = Path(),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a pruner of your own, its test and its registration."""
    from prunebench import pruners
    from prunebench.bench.cli import scaffold

    files = scaffold.new(name, out, taken=pruners.PRUNERS)
    following = f"prunebench check {printable(scaffold.spec(files[0]))}"
    if as_json:
        show.print_json({"written": [str(file) for file in files], "next": following})
    else:
        show.out(show.written("Written", files), f"Next: {following}")


def check(
    pruner: Annotated[str, typer.Argument(metavar="PRUNER", help="A name, module:Class or file.py:Class.")],
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite on a pruner; takes seconds."""
    import torch

    from prunebench.bench.conformance import suite

    torch.set_num_threads(threads)
    report = suite.check(one(pruner, "PRUNER"))
    if as_json:
        show.print_json(report.as_json())
    else:
        show.out(str(report))
    if not report.holds:
        raise PrunebenchError("Some checks failed; the report says what each found and how to fix it.")


class Kind(StrEnum):
    """What can be listed."""

    protocols = "protocols"
    pruners = "pruners"
    models = "models"
    datasets = "datasets"


def list_(kind: Annotated[Kind | None, typer.Argument()] = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List protocols, pruners, models and data sets."""
    from prunebench import pruners
    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.models import ARCHITECTURES

    listings = {
        Kind.protocols: {p.name: _summary(p) for p in PROTOCOLS.values()},
        Kind.pruners: {name: pruners.summary(name) for name in pruners.PRUNERS},
        Kind.models: {name: _first_line(known.net.__doc__) for name, known in sorted(ARCHITECTURES.items())},
        Kind.datasets: dict.fromkeys((*DATASETS, "folder:PATH"), ""),
    }
    chosen = listings if kind is None else {kind: listings[kind]}
    if as_json:
        show.print_json({key.value: value for key, value in chosen.items()})
        return
    for key, listed in chosen.items():
        show.out(key.value.upper(), show.table("", "", rows=list(listed.items())), "")


def _summary(rules: Protocol) -> str:
    threat, training = rules.threat, rules.training
    sparsities = " ".join(f"{as_sparsity(s)}" for s in rules.sparsities)
    return (
        f"{rules.model} on {rules.data}, {threat.norm} {threat.eps}, sparsities {sparsities}, "
        f"{rules.units:g} units of {training.epochs} epochs"
    )


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
