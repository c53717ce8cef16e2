"""The command `prunebench`."""

from __future__ import annotations

import json
import os
import sys
import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.protocol import PROTOCOLS, Job, Protocol, as_sparsity, from_values, load

if TYPE_CHECKING:
    from prunebench.bench.data import Store
    from prunebench.bench.grid.local import Engine
    from prunebench.bench.grid.task import Task
    from prunebench.leaderboard.provenance import Entry

BEGAN = time.time()
# torch takes seconds to import, so what needs it is imported by the verbs that need it.

app = typer.Typer(
    help="Benchmark adversarially robust, pruned networks: train, prune, score with AutoAttack, rank.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Protocols = Annotated[str, typer.Argument(metavar="PROTOCOL", help="A built-in protocol or a TOML file.")]
Pruners = Annotated[list[str] | None, typer.Option("--pruner", help="NAME[:option=value,...]; all by default.")]
Sparsities = Annotated[list[str] | None, typer.Option("--sparsity", help="In [0, 1); the protocol's by default.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", min=0, max=2**63 - 1, help="The protocol's by default.")]
DataRoot = Annotated[Path, typer.Option("--data", envvar="PRUNEBENCH_DATA", help="The folder where data sets lie.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads a job; results depend on the number.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs a unit, instead of the protocol's: not official.")]
Examples = Annotated[int | None, typer.Option(min=1, help="Score only the first so many test images.")]
Keep = Annotated[
    bool, typer.Option("--keep-proposals", help="Keep what fooled the net, so that a claim can be replayed.")
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Training curves as event files in each job's folder.")
]
Sandbox = Annotated[
    bool, typer.Option("--sandbox", help="No network, no test images, one writable folder for the pruner (bubblewrap).")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Engines(StrEnum):
    """What can take the steps of a grid."""

    local = "local"
    ray = "ray"


@app.command("run")
def run_(
    protocol: Protocols,
    pruner: Pruners = None,
    sparsity: Sparsities = None,
    seed: Seeds = None,
    out: Annotated[Path, typer.Option(help="Where everything goes; what is done there is kept.")] = Path("runs"),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many are trained and scored side by side, on a card too; ray: as many as fit."),
    ] = None,
    engine: Annotated[Engines, typer.Option(help="Processes of this machine, or Ray, on this one or on a cluster.")] = (
        Engines.local
    ),
    address: Annotated[
        str | None, typer.Option(help="The Ray to use: auto, on a machine of `ray start`, or HOST:PORT.")
    ] = None,
    gpus_per_job: Annotated[
        float | None, typer.Option(help="Share of a GPU that Ray gives a job; 0.25 by default where there are GPUs.")
    ] = None,
    examples: Examples = None,
    epochs: Epochs = None,
    keep_proposals: Keep = False,
    tensorboard: Tensorboard = False,
    sandbox: Sandbox = False,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Train, score and rank a whole grid; safe to kill and start again."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import executor, machine
    from prunebench.bench.cli import show
    from prunebench.bench.grid import run
    from prunebench.bench.lab import tensorboard as curves
    from prunebench.bench.player import sandbox as walls
    from prunebench.leaderboard import check as board
    from prunebench.leaderboard import render

    workers = _engine(engine, jobs, threads, device, out, address, gpus_per_job)
    if tensorboard:
        curves.require()
    if sandbox:
        walls.require()
    store = _store(data)
    store.testing(rules.data, examples or rules.test)  # before any training: is the data there, and enough of it?
    with show.Watch(quiet=quiet) as watch:
        watch.line(f"{len(grid)} jobs of {rules.name}, {workers}, in {out}")
        here = engine is Engines.local and machine.device_named(device).type == "cpu"
        if here and (why := executor.lacking()) is not None:
            watch.line(f"All nets run dense: {why}")
        results = run.run(
            rules,
            grid,
            out,
            store,
            engine=workers,
            threads=threads,
            device=device,
            examples=examples,
            keep_proposals=keep_proposals,
            tensorboard=tensorboard,
            sandbox=sandbox,
            report=watch.report,
            ended=lambda end: watch.finish(end.task.job.name, f"{end.how}: {end.why}"),
        )
    if any(end.how in ("done", "kept", "refused") for end in results):
        made = [end.task for end in results if end.how in ("done", "kept")]
        ranking, files = board.write(out / "records", entries=_trained(made, out / "records"))
        show.out(*render.terminal(ranking), show.written("Written", files))
    bad = [end for end in results if end.how in ("failed", "refused")]
    if bad:
        raise PrunebenchError(f"{len(bad)} of {len(results)} jobs did not end with a score; the reasons stand above.")


@app.command("plan")
def plan_(
    protocol: Protocols,
    pruner: Pruners = None,
    sparsity: Sparsities = None,
    seed: Seeds = None,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs side by side, as for run; as many try at once.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Also the time on so many devices like this one.")] = 4,
    clean: Annotated[float, typer.Option(help="Assumed share of images that nets classify rightly.")] = 0.85,
    robust: Annotated[float, typer.Option(help="Assumed share that withstands every attack.")] = 0.55,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of one trial; there are a dozen or two.")] = 0.5,
    examples: Examples = None,
    epochs: Epochs = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Show what a grid will take: passes, time, disk."""
    rules, grid = _grid(protocol, epochs, pruner, sparsity, seed)

    from prunebench.bench import machine
    from prunebench.bench.cli import show
    from prunebench.bench.grid.dry_run import Shares
    from prunebench.bench.grid.plan import plan

    machine.device_named(device)
    found = plan(
        rules,
        grid,
        _store(data),
        workers=jobs,
        devices=sorted({1, devices}),
        threads=threads,
        device=device,
        examples=examples,
        shares=Shares(clean, robust),
        seconds=seconds,
        began=BEGAN,
    )
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        show.out(*show.forecast_table(found))


@app.command()
def train(
    protocol: Protocols,
    pruner: Annotated[str, typer.Option(help="NAME[:option=value,...], module:Class or file.py:Class.")],
    out: Annotated[Path, typer.Option(help="The folder for the net.")],
    sparsity: Annotated[str | None, typer.Option(help="In [0, 1).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    epochs: Epochs = None,
    tensorboard: Tensorboard = False,
    sandbox: Sandbox = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another net that lies in --out.")] = False,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Train and prune one net; goes on where a killed run stopped."""
    from prunebench.bench.player import host

    host.host().start()  # it imports torch while this process does

    import torch

    from prunebench.bench.checkpoint import open_net
    from prunebench.bench.cli import show
    from prunebench.bench.files import sole_user
    from prunebench.bench.grid import run, task

    rules = _rules(protocol, epochs)
    torch.set_num_threads(threads)
    (chosen,) = host.resolve([pruner])
    job = run.job_of(chosen, None if sparsity is None else _share(sparsity), seed)
    with sole_user(out), show.Watch(quiet=quiet) as watch:
        task.make_room(out, job, rules, force=force)
        net = task.train(
            pruner,
            job,
            rules,
            out,
            out / "stages",
            _store(data),
            device=device,
            tensorboard=tensorboard,
            sandboxed=sandbox,
            report=lambda what, done, of: watch.report(job.name, what, done, of),
        )
    opened = open_net(net)
    show.out(*show.net_tables(opened, str(net)))
    show.warn(show.warnings(opened))


@app.command()
def score(
    net: Annotated[Path, typer.Argument(metavar="NET", help="A net file (net.safetensors), or robustbench:NAME.")],
    protocol: Annotated[str | None, typer.Option(help="Rules other than those the net was made for.")] = None,
    examples: Examples = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the record; by default the net's own.")] = None,
    parent: Annotated[
        Path | None, typer.Option(help="The dense net; its adversarial images are tried too, for a flag.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="One more weak attack: torchattacks:NAME, for example CW.")
    ] = None,
    keep_proposals: Keep = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the record of another net.")] = False,
    mirror: Annotated[str | None, typer.Option(help="Fetch robustbench:NAME from MIRROR/DATA/NORM/NAME.pt.")] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack a net with AutoAttack standard and write its record."""
    import torch

    from prunebench.bench import beside
    from prunebench.bench.cli import show
    from prunebench.bench.files import sole_user
    from prunebench.bench.score.scoring import score as referee

    rules = None if protocol is None else load(protocol)
    torch.set_num_threads(threads)
    folder = net.parent if out is None else out
    if out is None and not net.exists():
        way_out = "name a folder for its record (--out)" if str(net).startswith("robustbench:") else "check the path"
        raise PrunebenchError(f"There is no file {net}; {way_out}.")
    with sole_user(folder), show.Watch(quiet=quiet) as watch:
        beside.make_room(folder, net, str(net), force=force)
        record = referee(
            net,
            rules,
            examples,
            out=folder,
            store=_store(data),
            device=device,
            parent=parent,
            also=also or (),
            keep_proposals=keep_proposals,
            mirror=mirror,
            report=lambda what, done, of: watch.report(str(net), what, done, of),
        )
    if as_json:
        print(json.dumps(record.model_dump(mode="json", by_alias=True), indent=1))
    else:
        show.out(*show.score_table(record), show.written("Written", [folder / "record.json"]))
    show.warn([flag.sentence for flag in record.score.flags if flag.up and flag.name == "constant"])


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="CKPT", help="A .safetensors, or a .pt of tensors alone.")],
    arch: Annotated[str, typer.Option(help="The architecture; see `list models`.")],
    protocol: Annotated[str, typer.Option(help="The rules to score by; see `list protocols`.")],
    out: Annotated[Path, typer.Option(help="The folder for net.safetensors.")],
    sparsity: Annotated[
        str | None, typer.Option(help="What it claims, in [0, 1); scores need it. By default what is counted.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="How the net is called in records, in place of 'import'.")] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="MEAN/STD, as 0.5/0.25 or 0.49,0.48,0.45/0.2,0.2,0.2, or none.")
    ] = None,
    data: DataRoot = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Make a net file of a checkpoint that was trained elsewhere.

    Nets here take pixels in [0, 1] and normalise them inside. A checkpoint that has no such step gets the mean and the
    deviation of the protocol's data; name others, or none, if it was trained with others. Code in a pickle is never
    run. The net counts as not trained under the protocol, and no record of it is official.
    """
    from prunebench.bench.cli import show
    from prunebench.bench.interop import checkpoints

    share = None if sparsity is None else _share(sparsity)
    made = checkpoints.ingest(
        file, arch, load(protocol), out, _store(data), sparsity=share, label=label, normalisation=normalisation
    )
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
    else:
        show.out(show.table("theirs", "ours", "how", rows=made.matches), "", *show.net_tables(made.net, str(made.path)))
    show.warn(made.warnings)


@app.command()
def inspect(net: Annotated[Path, typer.Argument(metavar="NET")], as_json: AsJson = False) -> None:
    """Show what a net file holds: header, hash, sparsity by layer."""
    from prunebench.bench.checkpoint import open_net
    from prunebench.bench.cli import show

    opened = open_net(net)
    said = show.warnings(opened)
    if as_json:
        facts = {"header": opened.header.model_dump(mode="json"), "net": opened.id.model_dump(mode="json")}
        print(json.dumps(facts | {"sparsity": opened.sparsity, "warnings": said}, indent=1))
    else:
        show.out(*show.net_tables(opened, str(net)))
    show.warn(said)


@app.command()
def rank(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A folder of records.")],
    out: Annotated[Path | None, typer.Option(help="Where the tables go; by default above a folder 'records'.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Any of md,csv,json,tex.")] = "md,csv,json,tex",
    write: Annotated[bool, typer.Option("--write", help="Write the tables, the log and the ledger.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail unless all is true and up to date.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why rows changed, for the log; with --write.")] = None,
    date: Annotated[str | None, typer.Option(help="YYYY-MM-DD for log and ledger; today by default.")] = None,
    rescore: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score N official records, drawn at random, again.")
    ] = None,
    draw: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Repeat a draw; by default no one can foresee it.")
    ] = None,
    since: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Draw from what changed since this git commit; the first here."),
    ] = None,
    nets: Annotated[Path | None, typer.Option(help="A folder of nets, if they are not beside the records.")] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Compare records; write or check the leaderboard's tables."""
    from prunebench.bench.cli import show
    from prunebench.leaderboard import check as board
    from prunebench.leaderboard import render

    for name, value, other, given in (
        ("--reason", reason, "--write", write),
        ("--date", date, "--write", write),
        ("--draw", draw, "--rescore", rescore),
        ("--since", since, "--rescore", rescore),
        ("--nets", nets, "--rescore", rescore),
    ):
        if value is not None and not given:
            raise PrunebenchError(f"{name} does nothing without {other}; give both, or leave it out.")
    folder, entries = _records(records), []
    chosen = [name.strip() for name in formats.split(",") if name.strip()]
    board.formats_named(chosen)
    if check:
        ranking, files = board.check(folder, out, chosen)
    if rescore is not None:
        entries = _remeasured(
            folder, rescore, draw, since or [], nets, date, _store(data), device, threads, quiet=quiet
        )
    if write:
        ranking, files = board.write(folder, out, chosen, reason=reason, date=date, entries=entries)
    elif not check:
        ranking, files = board.look(folder), []
    last = show.written("Written" if write else "Up to date", files) if files else "Nothing was written (--write)."
    show.out(*render.terminal(ranking), last)


@app.command()
def sign(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="Records, as RECORD.json.")],
    key: Annotated[Path, typer.Option(help="Your private SSH key, or the public one of a key in an agent.")],
) -> None:
    """Sign records with an SSH key: RECORD.json.sig beside each."""
    from prunebench.bench import signature
    from prunebench.bench.cli import show

    show.out(show.written("Written", [signature.sign(record, key) for record in records]))


@app.command("site")
def site_(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A folder of records, or of a run.")],
    out: Annotated[Path, typer.Option(help="The folder for the site; replaced if it is one already.")],
) -> None:
    """Make web pages of the records; they open from the disk."""
    from prunebench.bench.cli import show
    from prunebench.leaderboard import site

    ranking, first = site.write(_records(records), out)
    rows = sum(len(board.rows) for board in ranking.boards)
    show.out(show.written(f"Written, {len(ranking.boards)} boards and {rows} entries", [first]))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A record with its outcomes beside it.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same rules and images.")],
    as_json: AsJson = False,
) -> None:
    """Say whether two scored nets differ, by McNemar's test."""
    from prunebench.bench.claims.compare import compare as differences
    from prunebench.bench.cli import show

    found = differences(first, second)
    if as_json:
        facts = [vars(one) | {"significant": one.significant, "sentence": one.sentence} for one in found]
        print(json.dumps(facts, indent=1))
    else:
        show.out(f"A: {printable(str(first))}\nB: {printable(str(second))}", *(one.sentence for one in found))


@app.command()
def claim(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The record of a score.")],
    out: Annotated[Path, typer.Option(help="The folder for the claim and its files.")],
    net: Annotated[
        Path | None, typer.Option(help="The net that was scored; by default the one beside the record.")
    ] = None,
    at_least: Annotated[
        str | None, typer.Option(help="Claim that share of the images alone, as '60 %', in place of the count.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another claim or another net in the folder.")] = False,
) -> None:
    """Make a claim that others can verify: CLAIM.toml and its files."""
    from prunebench.bench.claims.make import make
    from prunebench.bench.cli import show

    net = record.with_name("net.safetensors") if net is None else net
    path = make(record, net, out, at_least=at_least, force=force)
    show.out(show.written("Written", [path]))


class Level(StrEnum):
    """How a claim is verified."""

    replay = "replay"
    quick = "quick"
    full = "full"


@app.command()
def verify(
    place: Annotated[Path, typer.Argument(metavar="CLAIM", help="A claim, or a folder that holds some.")],
    level: Annotated[Level, typer.Option(help="Replay stored images, attack a tenth of all, or all.")] = Level.replay,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Draws the images of level quick; a new one each time by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep what level full has measured here, to go on.")] = None,
    data: DataRoot = Path("data"),
    device: Device = "auto",
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure claims again; exit code 0 when all of them stand."""
    from prunebench.bench.claims.claim import find

    claims = find(place)

    import torch

    from prunebench.bench import machine
    from prunebench.bench.claims.verdict import Verdict
    from prunebench.bench.claims.verify import verify as check
    from prunebench.bench.cli import show

    machine.device_named(device)
    torch.set_num_threads(threads)
    store, found = _store(data), dict[Path, Verdict]()
    with show.Watch(quiet=quiet) as watch:
        for number, path in enumerate(claims):
            name, folder = printable(str(path)), out and (out if len(claims) == 1 else out / f"{number}")
            try:
                found[path] = check(
                    path,
                    level.value,
                    store=store,
                    device=device,
                    seed=seed,
                    out=folder,
                    report=partial(watch.report, name),
                )
            except PrunebenchError as error:
                if len(claims) == 1:
                    raise
                found[path] = Verdict("refused", str(error))
    if as_json:
        facts = [{"claim": str(path), "level": level.value} | vars(verdict) for path, verdict in found.items()]
        print(json.dumps(facts, indent=1))
    else:
        show.out(*(f"{printable(str(path))}: {verdict.line}" for path, verdict in found.items()))
    if not all(verdict.good for verdict in found.values()):
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and underscores.")],
    out: Annotated[Path, typer.Option(help="Where the folder NAME goes.")] = Path(),
) -> None:
    """Write a pruner of your own, its test and its registration."""
    from prunebench import pruners
    from prunebench.bench.cli import scaffold, show

    files = scaffold.new(name, out, taken=pruners.PRUNERS)
    show.out(show.written("Written", files), f"Next: prunebench check {printable(scaffold.spec(files[0]))}")


@app.command("check")
def check_(
    pruner: Annotated[str, typer.Argument(metavar="PRUNER", help="A name, module:Class or file.py:Class.")],
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Run a pruner through the conformance suite: seconds."""
    import torch

    from prunebench.bench.cli import show
    from prunebench.bench.conformance import suite as conformance

    torch.set_num_threads(threads)
    report = conformance.check(pruner)
    show.out(json.dumps(report.as_json(), indent=1) if as_json else str(report))
    if not report.holds:
        raise PrunebenchError("Not every check holds; the report says what was found and how to mend it.")


class Kind(StrEnum):
    """What can be listed."""

    protocols = "protocols"
    pruners = "pruners"
    models = "models"
    datasets = "datasets"


@app.command("list")
def list_(kind: Annotated[Kind | None, typer.Argument()] = None, as_json: AsJson = False) -> None:
    """List protocols, pruners, models and data sets."""
    from prunebench import pruners
    from prunebench.bench.cli import show
    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.models import MODELS

    listings = {
        Kind.protocols: {p.name: _summary(p) for p in PROTOCOLS.values()},
        Kind.pruners: {name: pruners.summary(name) for name in pruners.PRUNERS},
        Kind.models: {name: _first_line(maker.__doc__) for name, maker in sorted(MODELS.items())},
        Kind.datasets: dict.fromkeys((*DATASETS, "folder:PATH"), ""),
    }
    chosen = listings if kind is None else {kind: listings[kind]}
    if as_json:
        print(json.dumps({key.value: value for key, value in chosen.items()}, indent=1))
        return
    for key, entries in chosen.items():
        show.out(key.value.upper(), show.table("", "", rows=list(entries.items())), "")


@app.command()
def doctor(data: DataRoot = Path("data"), as_json: AsJson = False) -> None:
    """Show what this machine can run: device, data, versions."""
    from prunebench.bench import executor, machine
    from prunebench.bench.cli import show
    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.player import sandbox as walls

    store, compiler = _store(data), executor.compiler()
    facts = {key: str(value) for key, value in machine.env(machine.device_named("auto")).items()}
    facts["ray"] = machine.package("ray") or "not installed; `run --engine ray` needs it"
    facts |= {"cores": str(os.cpu_count()), "compiler": Path(compiler).name if compiler else "none found"}
    facts |= {"sparse kernels": executor.explain(), "sandbox": walls.lacking() or "here; `run --sandbox` uses it"}
    facts |= {f"data: {name}": "here" if store.present(name) else f"not in {data}" for name in DATASETS}
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show.out(show.table("", "", rows=list(facts.items())))


def _engine(
    engine: Engines, jobs: int | None, threads: int, device: str, out: Path, address: str | None, gpus: float | None
) -> Engine:
    """What takes the steps of a grid. Raises PrunebenchError for options that do not belong to it."""
    from prunebench.bench import machine
    from prunebench.bench.grid import ray as cluster
    from prunebench.bench.grid.local import Pool

    if engine is Engines.ray:
        return cluster.Ray(out, address=address, jobs=jobs, threads=threads, device=device, gpus=gpus)
    for name, value in (("--address", address), ("--gpus-per-job", gpus)):
        if value is not None:
            raise PrunebenchError(f"{name} {value} is for Ray; give --engine ray with it, or leave it out.")
    machine.device_named(device)
    return Pool(jobs or 1)


def _rules(spec: str, epochs: int | None) -> Protocol:
    """The protocol, or one that differs in the length of its trainings and says so in its name."""
    rules = load(spec)
    if epochs is None or epochs == rules.training.epochs:
        return rules
    values = rules.model_dump(mode="json")
    changes = {"name": f"{rules.name}-epochs{epochs}", "training": values["training"] | {"epochs": epochs}}
    return from_values(values | changes, f"{spec} --epochs {epochs}")


def _grid(
    spec: str, epochs: int | None, pruner: list[str] | None, sparsity: list[str] | None, seed: list[int] | None
) -> tuple[Protocol, list[tuple[str, Job]]]:
    """The rules, and the jobs that are asked for: by default every pruner, and the protocol's sparsities and seeds."""
    from prunebench.bench.player import host

    host.host().start()  # it imports torch while this process does

    from prunebench.bench.grid import run
    from prunebench.bench.spec import registered

    rules = _rules(spec, epochs)
    wanted = [_share(value) for value in sparsity or rules.sparsities]
    return rules, run.grid(pruner or sorted(registered()), wanted, rules.seeds if seed is None else seed)


def _share(text: str | float) -> float:
    """The sparsity that `text` names, checked as it will be stored: so many nines are a float of 1."""
    value = float(as_sparsity(text))
    return float(as_sparsity(value))


def _records(folder: Path) -> Path:
    """The folder of records that `folder` is, or has when it is the folder of a run."""
    return folder / "records" if (folder / "records").is_dir() else folder


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
) -> list[Entry]:
    """Score some official records again; what the ledger is to say of those that hold.

    Raises PrunebenchError when one does not hold, after all of them were looked at.
    """
    import torch

    from prunebench.bench import machine
    from prunebench.bench.claims import rescore
    from prunebench.bench.cli import show
    from prunebench.bench.record import Record
    from prunebench.leaderboard import provenance, table

    machine.device_named(device)
    torch.set_num_threads(threads)
    day, where = provenance.day(date), rescore.Nets(nets)
    records = {path: record for path, record in table.read(folder).items() if isinstance(record, Record)}
    drawn = rescore.draw(records, folder, count, rescore.fresh() if seed is None else seed, since, store)
    entries, wrong = [], []
    with show.Watch(quiet=quiet) as watch:
        watch.line(drawn.told)
        for path in drawn.paths:
            name, record = printable(str(path)), records[path]
            try:
                net = where.of(folder / path, record)
                verdict, again = rescore.rescore(
                    folder / path, record, net, store, device=device, report=partial(watch.report, name)
                )
            except PrunebenchError as error:
                watch.finish(name, "cannot be measured again")
                wrong.append(str(error))
                continue
            watch.finish(name, printable(verdict.line))
            if verdict.word == "refuted":
                wrong.append(f"{folder / path} is not what its net does: {verdict.sentence}")
            entries.append(provenance.measured(record, again, verdict.word, day))
    if wrong:
        more = f" ({len(wrong) - 1} more of the {len(drawn.paths)} do not hold.)" if len(wrong) > 1 else ""
        raise PrunebenchError(f"{wrong[0].rstrip('.')}.{more}")
    return entries


def _trained(tasks: list[Task], records: Path) -> list[Entry]:
    """What the ledger is to say of the records of these tasks, which were trained and scored here."""
    from prunebench.bench.record import Record, load_record
    from prunebench.leaderboard import provenance

    published = [load_record(records / task.protocol.name / f"{task.job.name}.json") for task in tasks]
    return [provenance.trained(record) for record in published if isinstance(record, Record)]


def _store(data: Path) -> Store:
    from prunebench.bench.data import Store

    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Store(data, home / "prunebench" / "data")


def _summary(rules: Protocol) -> str:
    threat, training = rules.threat, rules.training
    sparsities = " ".join(f"{as_sparsity(s)}" for s in rules.sparsities)
    return (
        f"{rules.model} on {rules.data}, {threat.norm} {threat.eps}, sparsities {sparsities}, "
        f"{rules.units:g} units of {training.epochs} epochs"
    )


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 1."""
    try:
        app()
    except PrunebenchError as error:
        print(f"prunebench: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a path that the file system does not take, such as one of a thousand letters
        if error.filename is None:
            raise
        reason = PrunebenchError(f"Cannot use {error.filename} ({error.strerror}); name another path.")
        print(f"prunebench: {reason}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
