"""Command-line options that several verbs share, and how they are parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.protocol import PROTOCOLS, Protocol, from_values, load
from prunebench.bench.spec import registered

if TYPE_CHECKING:
    from prunebench.bench.data import Store


def protocols() -> list[str]:
    """The names of built-in protocols, for shell completion."""
    return sorted(PROTOCOLS)


def pruners() -> list[str]:
    """The names of registered pruners, for shell completion."""
    return sorted(registered())


Protocols = Annotated[
    str, typer.Argument(metavar="PROTOCOL", help="A built-in protocol or a TOML file.", autocompletion=protocols)
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs per unit, instead of the protocol's; not official.")]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write training curves as event files into each job's folder.")
]
Sandbox = Annotated[
    bool,
    typer.Option("--sandbox", help="Give the pruner no network, no test images and one writable folder (bubblewrap)."),
]
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


def rules_of(spec: str, epochs: int | None) -> Protocol:
    """The protocol, or a copy with another number of `epochs`, which its name states."""
    rules = load(spec)
    if epochs is None or epochs == rules.training.epochs:
        return rules
    values = rules.model_dump(mode="json")
    changes = {"name": f"{rules.name}-epochs{epochs}", "training": values["training"] | {"epochs": epochs}}
    return from_values(values | changes, f"{spec} --epochs {epochs}")
