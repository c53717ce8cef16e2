"""The verbs that train: a whole grid, its forecast, or one net."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.cli import show
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
    sparsity_of,
    store_of,
)
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.protocol import Protocol, from_values, load

if TYPE_CHECKING:
    from prunebench.bench.grid.local import Engine
    from prunebench.bench.grid.task import Task

BEGAN = time.time()

Protocols = Annotated[str, typer.Argument(metavar="PROTOCOL", help="A built-in protocol or a TOML file.")]
Pruners = Annotated[list[str] | None, typer.Option("--pruner", help="NAME[:option=value,...]; all pruners by default.")]
Sparsities = Annotated[
    list[str] | None, typer.Option("--sparsity", help="Sparsities in [0, 1); the protocol's by default.")
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", min=0, max=2**63 - 1, help="Seeds; the protocol's by default.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs per unit, instead of the protocol's; not official.")]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write training curves as event files into each job's folder.")
]
Sandbox = Annotated[
    bool,
    typer.Option("--sandbox", help="Give the pruner no network, no test images and one writable folder (bubblewrap)."),
]


class Engines(StrEnum):
    """What can run the steps of a grid."""

    local = "local"
    ray = "ray"


Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Jobs to train and score side by side, also on one GPU. Ray runs as many as fit."),
]
EngineKind = Annotated[Engines, typer.Option(help="Processes on this machine, or Ray on one or more machines.")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster: auto on one of its machines, or HOST:PORT.")]
GpusPerJob = Annotated[float | None, typer.Option(help="GPUs per job under Ray; 0.25 by default if there are GPUs.")]


def run(
    protocol: Protocols,
    pruner: Pruners = None,
    sparsity: Sparsities = None,
    seed: Seeds = None,
    out: Annotated[Path, typer.Option(help="The folder for all results; a run resumes from it.")] = Path("runs"),
    jobs: Jobs = None,
    engine: EngineKind = Engines.local,
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    examples: Examples = None,
    epochs: Epochs = None,
    best: Best = False,
    also: Also = None,
    keep_proposals: KeepProposals = False,
    arithmetic: ArithmeticName = "float32",
    tensorboard: Tensorboard = False,
    sandbox: Sandbox = False,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Train, score and rank a whole grid; resumes after a kill."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import executor, machine
    from prunebench.bench.grid.run import run
    from prunebench.bench.lab import tensorboard as curves
    from prunebench.bench.player import sandbox as walls
    from prunebench.bench.score.arithmetic import arithmetic_named

    workers = _engine(engine, jobs, threads, device, out, address, gpus_per_job)
    if tensorboard:
        curves.require()
    if sandbox:
        walls.require()
    store = store_of(data)
    store.testing(rules.data, examples or rules.test)  # before any training: is there enough data?
    cpu = False
    if engine is Engines.local:
        where = machine.device_named(device)
        arithmetic_named(arithmetic, where)  # before any training: does this machine have it?
        cpu = where.type == "cpu"
    with show.Watch(quiet=quiet) as watch:
        watch.line(f"{len(grid)} jobs of {rules.name}, {workers}, in {out}")
        if cpu and (why := executor.lacking()) is not None:
            watch.line(f"All nets run dense: {why}")
        ends = run(
            rules,
            grid,
            out,
            store,
            engine=workers,
            threads=threads,
            device=device,
            examples=examples,
            best=best,
            also=also or (),
            keep_proposals=keep_proposals,
            arithmetic=arithmetic,
            tensorboard=tensorboard,
            sandbox=sandbox,
            report=watch.report,
            ended=lambda end: watch.finish(end.task.job.name, f"{end.how}: {end.why}"),
        )
    if any(end.how in ("done", "kept", "refused") for end in ends):
        _publish([end.task for end in ends if end.how in ("done", "kept")], out / "records")
    bad = sum(end.how in ("failed", "refused") for end in ends)
    if bad:
        raise PrunebenchError(f"{bad} of {len(ends)} jobs did not end with a score; the reasons are above.")


def plan(
    protocol: Protocols,
    pruner: Pruners = None,
    sparsity: Sparsities = None,
    seed: Seeds = None,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs side by side, as for run; trials run side by side too.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Also estimate the time on N devices like this one.")] = 4,
    clean: Annotated[float, typer.Option(help="Assumed share of images that nets classify correctly.")] = 0.85,
    robust: Annotated[float, typer.Option(help="Assumed share of images that survive every attack.")] = 0.55,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Seconds per timing trial; there are one or two dozen.")
    ] = 0.5,
    examples: Examples = None,
    epochs: Epochs = None,
    best: Best = False,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Show what a grid will take: passes, time, disk."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import machine
    from prunebench.bench.grid.dry_run import Rehearsal
    from prunebench.bench.grid.plan import forecast

    machine.device_named(device)
    rehearsal = Rehearsal(rules, store_of(data), clean, robust, device, threads, examples, seconds, best)
    found = forecast(grid, rehearsal, workers=jobs, devices=sorted({1, devices}), began=BEGAN)
    if as_json:
        show.as_json(found.as_json())
    else:
        show.out(*show.forecast_table(found))


def train(
    protocol: Protocols,
    pruner: Annotated[str, typer.Option(help="NAME[:option=value,...], module:Class or file.py:Class.")],
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
) -> None:
    """Train and prune one net; resumes after a kill."""
    from prunebench.bench.player import host

    host.host().start()  # it imports torch while this process does

    import torch

    from prunebench.bench import collapse
    from prunebench.bench.checkpoint import open_net
    from prunebench.bench.files import sole_user
    from prunebench.bench.grid import task
    from prunebench.bench.grid.run import job_of

    rules = rules_of(protocol, epochs)
    torch.set_num_threads(threads)
    (described,) = host.describe([pruner])
    job = job_of(described, None if sparsity is None else sparsity_of(sparsity), seed)
    with sole_user(out), show.Watch(quiet=quiet) as watch:
        task.make_room(out, job, rules, force=force)
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
    opened = open_net(net)
    show.out(*show.net_tables(opened, str(net)))
    show.warn(collapse.warnings(opened))


def _engine(
    engine: Engines, jobs: int | None, threads: int, device: str, out: Path, address: str | None, gpus: float | None
) -> Engine:
    """The engine that runs the steps of a grid. Raises PrunebenchError for options of another engine."""
    from prunebench.bench import machine
    from prunebench.bench.grid import ray as cluster
    from prunebench.bench.grid.local import Pool

    if engine is Engines.ray:
        return cluster.Ray(out, address=address, jobs=jobs, threads=threads, device=device, gpus=gpus)
    for name, value in (("--address", address), ("--gpus-per-job", gpus)):
        if value is not None:
            raise PrunebenchError(f"{name} {value} needs Ray; add --engine ray, or leave {name} out.")
    machine.device_named(device)
    return Pool(jobs or 1)


def rules_of(spec: str, epochs: int | None) -> Protocol:
    """The protocol, or a copy with another number of `epochs`, which its name states."""
    rules = load(spec)
    if epochs is None or epochs == rules.training.epochs:
        return rules
    values = rules.model_dump(mode="json")
    changes = {"name": f"{rules.name}-epochs{epochs}", "training": values["training"] | {"epochs": epochs}}
    return from_values(values | changes, f"{spec} --epochs {epochs}")


def _grid(
    spec: str, epochs: int | None, pruner: list[str] | None, sparsity: list[str] | None, seed: list[int] | None
) -> tuple[Protocol, list[tuple[str, Job]]]:
    """The rules and the requested jobs: by default every pruner, and the protocol's sparsities and seeds."""
    from prunebench.bench.player import host

    host.host().start()  # it imports torch while this process does

    from prunebench.bench.grid.run import grid
    from prunebench.bench.spec import registered

    rules = rules_of(spec, epochs)
    wanted = [sparsity_of(value) for value in sparsity or rules.sparsities]
    return rules, grid(pruner or sorted(registered()), wanted, rules.seeds if seed is None else seed)


def _publish(made: list[Task], records: Path) -> None:
    """Rank the records of a run and write their board; enter `made`, trained and scored here, in the ledger."""
    from prunebench.bench.record import Record, load_record
    from prunebench.leaderboard import check, provenance
    from prunebench.leaderboard.render.terminal import terminal

    published = [load_record(records / task.protocol.name / f"{task.job.name}.json") for task in made]
    attestations = [provenance.trained(record) for record in published if isinstance(record, Record)]
    ranking, files = check.write(records, attestations=attestations)
    show.out(*terminal(ranking), show.written("Written", files))
