"""The verb that trains one net."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import one, sparsity_of
from prunebench.bench.cli.options import (
    AsJson,
    DataRoot,
    Device,
    Epochs,
    Protocols,
    Quiet,
    Sandbox,
    Tensorboard,
    Threads,
    pruners,
    rules_of,
    store_of,
)
from prunebench.bench.cli.watch import Watch
from prunebench.bench.errors import printable

if TYPE_CHECKING:
    from prunebench.bench.checkpoint import Net


def train(
    protocol: Protocols,
    pruner: Annotated[
        str, typer.Option(help="NAME[:option=value,...], module:Class or file.py:Class.", autocompletion=pruners)
    ],
    out: Annotated[Path, typer.Option(help="The folder for the net.")],
    sparsity: Annotated[str | None, typer.Option(help="The sparsity, in [0, 1).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    epochs: Epochs = None,
    tensorboard: Tensorboard = False,
    sandbox: Sandbox = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another net in --out.")] = False,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train and prune one net; resumes after a kill."""
    from prunebench.bench.player import host

    rules, pruner = rules_of(protocol, epochs), one(pruner, "--pruner")
    share = None if sparsity is None else sparsity_of(one(sparsity, "--sparsity"))
    host.host().start()  # it imports torch while this process does

    import torch

    from prunebench.bench import collapse
    from prunebench.bench.checkpoint import open_net
    from prunebench.bench.files import sole_user
    from prunebench.bench.grid import task
    from prunebench.bench.grid.run import job_of
    from prunebench.bench.lab.stages import progress_in

    torch.set_num_threads(threads)
    (described,) = host.describe([pruner])
    job = job_of(described, share, seed)
    with sole_user(out), Watch(quiet=quiet) as watch:
        task.make_room(out, job, rules, described.source, force=force)
        finished, begun = progress_in(out / "stages")
        if finished + begun:
            watch.note(f"{out} holds {finished} finished and {begun} begun stages; training goes on from there.")
        net = task.train(
            pruner,
            job,
            rules,
            out,
            out / "stages",
            store_of(data),
            device=device,
            tensorboard=tensorboard,
            sandboxed=sandbox,
            report=lambda what, done, of: watch.report(job.name, what, done, of),
        )
    opened, following = open_net(net), f"prunebench score {shlex.quote(str(net))}"
    said = collapse.warnings(opened)
    if as_json:
        facts = show.net_facts(opened) | {"warnings": said, "validation": _validated(opened), "next": following}
        show.print_json(facts)
    else:
        tables = show.net_tables(opened, str(net))
        show.out(*tables, "", _told(_validated(opened)), f"Next: {printable(following)}")
    show.warn([sentence for sentence in said if f"{job.name}: {sentence}" not in watch.log.said or quiet])


def _validated(net: Net) -> dict[str, Any] | None:
    """Where the last training of the net ended on validation images, as its process reported; None if it did not."""
    trained = [(stage.name, stage.curve[-1]) for stage in net.header.stages if stage.curve]
    if not trained:
        return None
    stage, last = trained[-1]
    return {"stage": stage, "epoch": last.epoch, "clean": last.clean, "robust": last.robust}


def _told(found: dict[str, Any] | None) -> str:
    if found is None:
        return "The training reported no validation accuracy."
    return (
        f"On validation images: {found['clean']:.1%} clean, {found['robust']:.1%} under the training's attack (stage "
        f"{found['stage']!r}, epoch {found['epoch']}); the score is lower, because AutoAttack is stronger."
    )
