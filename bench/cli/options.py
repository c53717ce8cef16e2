"""Command-line options that several verbs share, and how they are parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.protocol import as_sparsity

if TYPE_CHECKING:
    from prunebench.bench.data import Store

DataRoot = Annotated[Path, typer.Option("--data", envvar="PRUNEBENCH_DATA", help="The folder of the data sets.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads per job; results depend on this number.")]
Examples = Annotated[int | None, typer.Option(min=1, help="Score only the first N test images.")]
KeepProposals = Annotated[
    bool, typer.Option("--keep-proposals", help="Keep the adversarial images, so that a claim can be replayed.")
]
Best = Annotated[
    bool, typer.Option("--best", help="Attack the survivors again, for the best-known number beside AutoAttack's.")
]
Also = Annotated[
    list[str] | None,
    typer.Option(help="Also measure planted, distances, corruptions, other-norm; or torchattacks:NAME."),
]
ArithmeticName = Annotated[
    str,
    typer.Option(
        "--arithmetic", help="Of attacks: float32, or tf32 on a CUDA card. Verdicts are always measured in float32."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def store_of(data: Path) -> Store:
    """The data sets in the folder `data`, with their decoded copies in the user's cache."""
    from prunebench.bench.data import Store

    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Store(data, home / "prunebench" / "data")


def sparsity_of(text: str | float) -> float:
    """Parse a sparsity, and check it again as a float: 0.999... with enough nines rounds to 1."""
    value = float(as_sparsity(text))
    return float(as_sparsity(value))
