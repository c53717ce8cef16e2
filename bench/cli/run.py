"""The verbs for a whole grid: run it, or forecast its cost."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.cli import show
from prunebench.bench.cli.given import seeds_of, sparsities_of, split
from prunebench.bench.cli.options import (
    Also,
    ArithmeticName,
    AsJson,
    Best,
    DataRoot,
    Device,
    Epochs,
    Examples,
    KeepProposals,
    Protocols,
    Quiet,
    Sandbox,
    Tensorboard,
    Threads,
    pruners,
    rules_of,
    store_of,
)
from prunebench.bench.cli.watch import Watch, say
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.protocol import Protocol

if TYPE_CHECKING:
    from prunebench.bench.grid.local import Engine
    from prunebench.bench.grid.task import Task
    from prunebench.leaderboard.board import Ranking

BEGAN = time.time()

Pruners = Annotated[
    list[str] | None,
    typer.Option("--pruner", help="NAME[:option=value,...]; all pruners by default.", autocompletion=pruners),
]
Sparsities = Annotated[
    list[str] | None,
    typer.Option("--sparsity", help="Sparsities in [0, 1), as in 0.9,0.95; the protocol's by default."),
]
Seeds = Annotated[list[str] | None, typer.Option("--seed", help="Seeds, as in 0,1,2; the protocol's by default.")]


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
    as_json: AsJson = False,
) -> None:
    """Train, score and rank a whole grid; resumes after a kill."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import executor, machine
    from prunebench.bench.grid.run import progress_of, run
    from prunebench.bench.lab import tensorboard as curves
    from prunebench.bench.player import sandbox as walls
    from prunebench.bench.score.arithmetic import arithmetic_named
    from prunebench.leaderboard.render.terminal import terminal

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
    with Watch(quiet=quiet, jobs=len(grid)) as watch:
        watch.line(f"{len(grid)} job{'s' * (len(grid) != 1)} of {rules.name}, {workers}, in {out}")
        scored, trained = progress_of(rules, grid, out)
        if scored + trained:
            watch.note(f"{out} has records of {scored} of them and nets of {trained} more; the run goes on from there.")
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
            ended=lambda end: watch.finish(end.task.job.name, f"{end.how}: {end.why}", worked=end.how != "kept"),
        )
    ranking: Ranking | None = None
    files: list[Path] = []
    if any(end.how in ("done", "kept", "refused") for end in ends):
        ranking, files = _published([end.task for end in ends if end.how in ("done", "kept")], out / "records")
    if as_json:
        jobs_ended = [{"job": end.task.job.name, "how": end.how, "why": end.why} for end in ends]
        show.print_json({"jobs": jobs_ended, "written": [str(file) for file in files]})
    elif ranking is not None:
        show.out(*terminal(ranking), show.written("Written", files))
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
    arithmetic: ArithmeticName = "float32",
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show what a grid will take: passes, time, disk."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import machine
    from prunebench.bench.grid.dry_run import Rehearsal
    from prunebench.bench.grid.plan import forecast
    from prunebench.bench.score.arithmetic import arithmetic_named
    from prunebench.bench.stand_in import StandIn, stand_in

    arithmetic_named(arithmetic, machine.device_named(device))
    store = stand_in(store_of(data), rules.data)
    rehearsal = Rehearsal(rules, store, clean, robust, device, threads, examples, seconds, best, arithmetic)
    found = forecast(grid, rehearsal, workers=jobs, devices=sorted({1, devices}), began=BEGAN)
    if as_json:
        show.print_json(found.as_json())
    else:
        show.out(*show.forecast_table(found))
    if isinstance(store, StandIn) and not quiet:
        say(f"{rules.data} is not in {data}: these are the costs with noise of its shape and size in its place.")


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


def _grid(
    spec: str, epochs: int | None, pruner: list[str] | None, sparsity: list[str] | None, seed: list[str] | None
) -> tuple[Protocol, list[tuple[str, Job]]]:
    """The rules and the requested jobs: by default every pruner, and the protocol's sparsities and seeds."""
    rules = rules_of(spec, epochs)
    wanted = sparsities_of(sparsity or rules.sparsities)
    seeds = rules.seeds if seed is None else seeds_of(seed)
    named = pruners() if pruner is None else [name for text in pruner for name in split(text)]

    from prunebench.bench.player import host

    host.host().start()  # it imports torch while this process does

    from prunebench.bench.grid.run import grid

    return rules, grid(named, wanted, seeds)


def _published(made: list[Task], records: Path) -> tuple[Ranking, list[Path]]:
    """Rank the records of a run and write their board; enter `made`, trained and scored here, in the ledger."""
    from prunebench.bench.record import Record, load_record
    from prunebench.leaderboard import check, provenance

    published = [load_record(records / task.protocol.name / f"{task.job.name}.json") for task in made]
    attestations = [provenance.trained(record) for record in published if isinstance(record, Record)]
    return check.write(records, attestations=attestations)
