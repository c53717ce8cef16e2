"""The verbs for single nets: score, import and inspect one, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import net_at, one, record_at, sparsity_of
from prunebench.bench.cli.options import (
    Also,
    ArithmeticName,
    AsJson,
    Best,
    DataRoot,
    Device,
    Examples,
    KeepProposals,
    Quiet,
    Threads,
    store_of,
)
from prunebench.bench.cli.watch import Watch
from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.names import JOURNAL
from prunebench.bench.protocol import load


def score(
    net: Annotated[Path, typer.Argument(metavar="NET", help="A net file or its folder, or robustbench:NAME.")],
    protocol: Annotated[str | None, typer.Option(help="Rules other than those the net was made for.")] = None,
    examples: Examples = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the record; by default the net's own.")] = None,
    parent: Annotated[
        Path | None, typer.Option(help="The dense net, whose adversarial images are tried on NET for a flag.")
    ] = None,
    also: Also = None,
    best: Best = False,
    keep_proposals: KeepProposals = False,
    arithmetic: ArithmeticName = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace the record of another net.")] = False,
    mirror: Annotated[str | None, typer.Option(help="Download robustbench:NAME from MIRROR/DATA/NORM/NAME.pt.")] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack a net with AutoAttack standard and write its record."""
    if str(net).startswith("robustbench:"):
        if out is None or protocol is None:
            raise PrunebenchError(
                f"{net} is downloaded and names no rules; give both --out FOLDER and --protocol NAME."
            )
    elif out is None and not (net := net_at(net)).exists():
        raise PrunebenchError(f"There is no file {net}; check the path.")

    import torch

    from prunebench.bench import beside, machine
    from prunebench.bench.files import sole_user
    from prunebench.bench.score.arithmetic import arithmetic_named
    from prunebench.bench.score.scoring import score as referee

    rules = None if protocol is None else load(protocol, to_train=False)
    arithmetic_named(arithmetic, machine.device_named(device))  # before anything is replaced: is it there?
    torch.set_num_threads(threads)
    folder = net.parent if out is None else out
    with sole_user(folder), Watch(quiet=quiet) as watch:
        beside.make_room(folder, net, str(net), force=force)
        if kept := len(list((folder / JOURNAL).glob("*.json"))):
            watch.note(f"{folder} has a journal of {kept} finished attacks; scoring goes on from there.")
        record = referee(
            net,
            rules,
            examples,
            out=folder,
            store=store_of(data),
            device=device,
            parent=parent,
            also=also or (),
            best=best,
            keep_proposals=keep_proposals,
            arithmetic=arithmetic,
            mirror=mirror,
            report=lambda what, done, of: watch.report(str(net), what, done, of),
        )
    if as_json:
        show.print_json(record.model_dump(mode="json", by_alias=True))
    else:
        show.out(*show.score_table(record), show.written("Written", [folder / "record.json"]))
    show.warn([flag.sentence for flag in record.score.flags if flag.up and flag.name == "constant"])


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .safetensors file, or a .pt file that holds only tensors.")
    ],
    arch: Annotated[str, typer.Option(help="The architecture; see `list models`.")],
    protocol: Annotated[str, typer.Option(help="The rules to score by; see `list protocols`.")],
    out: Annotated[Path, typer.Option(help="The folder for net.safetensors.")],
    sparsity: Annotated[
        str | None, typer.Option(help="The claimed sparsity, in [0, 1); scores need it. By default as counted.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The net's name in records, instead of 'import'.")] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="MEAN/STD, such as 0.5/0.25 or 0.49,0.48,0.45/0.2,0.2,0.2, or none.")
    ] = None,
    data: DataRoot = Path("data"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a net file from a checkpoint that was trained elsewhere.

    Nets here take pixels in [0, 1] and normalise them inside. A checkpoint without that step gets the mean and
    deviation of the protocol's data, unless --normalisation names others or none. No code in a pickle is ever run. The
    net counts as not trained under the protocol, so its records are never official.
    """
    from prunebench.bench.interop import checkpoints

    share = None if sparsity is None else sparsity_of(one(sparsity, "--sparsity"))
    made = checkpoints.ingest(
        file,
        arch,
        load(protocol, to_train=False),
        out,
        store_of(data),
        sparsity=share,
        label=label,
        normalisation=normalisation,
    )
    if as_json:
        show.print_json(made.as_json())
    else:
        show.out(show.table("theirs", "ours", "how", rows=made.matches), "", *show.net_tables(made.net, str(made.path)))
    show.warn(made.warnings)


def inspect(
    net: Annotated[Path, typer.Argument(metavar="NET", help="A net file, or its folder.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show what a net file holds: header, hash, sparsity by layer."""
    from prunebench.bench import collapse
    from prunebench.bench.checkpoint import open_net

    net = net_at(net)
    opened = open_net(net)
    said = collapse.warnings(opened)
    if as_json:
        show.print_json(show.net_facts(opened) | {"warnings": said})
    else:
        show.out(*show.net_tables(opened, str(net)))
    show.warn(said)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A record, with its outcomes beside it.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another record with the same rules and images.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Test whether two scored nets differ, by McNemar's test."""
    from prunebench.bench.claims.compare import compare as differences

    first, second = record_at(first), record_at(second)
    found = differences(first, second)
    if as_json:
        facts = [vars(one) | {"significant": one.significant, "sentence": one.sentence} for one in found]
        show.print_json(facts)
    else:
        show.out(f"A: {printable(str(first))}\nB: {printable(str(second))}", *(one.sentence for one in found))
