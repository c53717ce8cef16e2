"""Ray in an environment of its own, on two simulated nodes: what is lost on the way changes nothing in the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray", reason="needs the extra 'ray': make test-extras")

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.ray import Ray
from prunebench.bench.grid.run import grid, run, scheduler_of
from prunebench.bench.names import NET
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.protocol import Threat
from prunebench.bench.record import load_record
from tests.support.held import PRUNER, HeldStore, Telling
from tests.support.nets import STORE, UNATTACKED, changed, toml
from tools.kill_and_resume import timeless

RULES = changed(UNATTACKED, test=12, shard=4)
PATIENCE = 300.0  # seconds, for a busy machine


def pruner(folder):
    """The spec of the pruner that is held, in a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held.py").write_text(PRUNER)
    return f"{folder / 'held.py'}:Held"


def jobs(spec):
    return grid(["dense", spec], [0.9], [0])


@pytest.fixture(scope="module")
def cluster():
    """The head of a cluster, which takes no steps."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@contextmanager
def nodes(cluster, count):
    """So many nodes for a job each; those that are left are taken away at the end."""
    mine = [cluster.add_node(num_cpus=1) for _ in range(count)]
    yield mine
    for node in mine:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What a process of this machine makes of the same jobs: by file, the bytes of every result."""
    folder = tmp_path_factory.mktemp("local")
    spec = pruner(folder)
    (folder / "training-held").touch()
    ends = run(RULES, jobs(spec), folder / "out", STORE, device="cpu")
    assert [end.how for end in ends] == ["done", "done"]
    return results(folder / "out")


def results(out):
    """Everything that a run measured, without its times: nets, records, outcomes, journals."""
    found = {}
    for folder in sorted((out / "jobs").iterdir()):
        if not (folder / "record.json").exists():
            continue
        found[folder.name, "net"] = (folder / NET).read_bytes()
        found[folder.name, "record"] = timeless(load_record(folder / "record.json"))
        found[folder.name, "outcomes"] = outcomes_path(folder / "record.json").read_bytes()
        for entry in (folder / "journal").iterdir():
            found[folder.name, entry.name] = json.loads(entry.read_bytes()) | {"seconds": 0, "sha256": ""}
    return found


def differing(found, wanted):
    """The files that only one of the two has, or that differ, with both contents: what a failed test shows."""
    return {key: (found.get(key), wanted.get(key)) for key in found | wanted if found.get(key) != wanted.get(key)}


def appears(path):
    """Wait for the file `path` to have text in it, and return that."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not appear")


def test_nodes_lost_while_training_and_while_scoring_change_nothing(cluster, tmp_path, local):
    """Of three nodes one dies between two stages of a training, another in the middle of a scoring."""
    spec, out, lost, stamps = pruner(tmp_path), tmp_path / "out", [], []
    store = HeldStore(STORE.root, None, out)

    with nodes(cluster, 3) as alive:

        def strike():
            try:
                for mark in (tmp_path / "training-held", out / "scoring-held"):
                    on = appears(mark)
                    stamps.append({path: path.stat().st_mtime_ns for path in done(out)})
                    (node,) = [node for node in alive if node.node_id == on]
                    cluster.remove_node(node, allow_graceful=False)
                    lost.append(on)
            finally:
                (tmp_path / "let-go").touch()
                (out / "let-go").touch()

        striker = ThreadPoolExecutor(1)
        struck = striker.submit(strike)
        told = []
        asked = [*jobs(spec), *grid([f"{spec}:mode=raises"], [0.9], [0])]
        ends = run(RULES, asked, out, store, engine=Ray(out, address=cluster.address), device="cpu", ended=told.append)
        striker.shutdown()

    struck.result()
    assert len(lost) == 2
    assert told == ends and len(ends) == 3
    fates = {end.task.job.label: end for end in ends}
    assert [fates[label].how for label in ("dense", "held.Held", "held.Held:mode=raises")] == ["done", "done", "failed"]
    assert "RuntimeError: the pruner has a fault" in fates["held.Held:mode=raises"].why
    assert differing(results(out), local) == {}
    assert all(stamps), "premise: something had been finished before each loss"
    for path, stamp in (stamps[0] | stamps[1]).items():
        assert path.stat().st_mtime_ns == stamp, f"{path} was made again"


def done(out):
    """What has been finished in a run: stages and entries of journals."""
    return [*out.rglob("done.safetensors"), *out.rglob("journal/*.json")]


def test_results_are_compared_to_the_bit(local):
    """The twin: one digit of one journal entry, and they are no longer the same."""
    key = next(key for key in local if key[1].endswith(".json"))
    other = local | {key: local[key] | {"passes": local[key]["passes"] + 1}}
    assert list(differing(other, local)) == [key] and differing(local, local) == {}
    assert list(differing({}, local)) == list(local)
    assert {kind for _, kind in local} >= {"net", "record", "outcomes"} and len(local) > 2 * (3 + 3 * 4)


def test_a_killed_driver_is_started_again(cluster, tmp_path, local):
    spec, out, rules = pruner(tmp_path), tmp_path / "out", tmp_path / "tiny.toml"
    rules.write_text(toml(RULES))
    command = [
        sys.executable,
        "-m",
        "prunebench",
        "run",
        rules,
        "--pruner",
        "dense",
        "--pruner",
        spec,
        "--out",
        out,
        "--engine",
        "ray",
        "--address",
        cluster.address,
        "--device",
        "cpu",
    ]
    with nodes(cluster, 1):
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE) as driver:
            appears(tmp_path / "training-held")
            driver.send_signal(signal.SIGKILL)
        # Its node has room for one, and that one would be held for ever: Ray has to end it with its driver.
        ends = run(RULES, jobs(spec), out, STORE, engine=Ray(out, address=cluster.address), device="cpu")
    assert {end.task.job.pruner: end.how for end in ends}["held.Held"] == "done"
    assert differing(results(out), local) == {}


def test_the_best_known_number_is_that_of_this_machine(cluster, tmp_path):
    """On two nodes: survivors attacked again, shard by shard, and tried with the dense net's adversarials."""
    rules = changed(RULES, name="survivors", test=4, shard=2, threat=Threat(norm="Linf", eps="0.05"))
    asked, found = grid(["dense", "random"], [0.9], [0]), {}
    with nodes(cluster, 2):
        engines = {"local": None, "ray": Ray(tmp_path / "ray", address=cluster.address)}
        for name, engine in engines.items():
            ends = run(rules, asked, tmp_path / name, STORE, engine=engine, device="cpu", best=True)
            assert [end.how for end in ends] == ["done", "done"]
            found[name] = results(tmp_path / name)
    assert differing(found["ray"], found["local"]) == {}

    records = [load_record(path) for path in (tmp_path / "ray").rglob("record.json")]
    assert len(records) == 2
    for record in records:
        best = record.beyond.best
        assert best is not None and best.suite == "best-1" and best.passes > 0
        assert 0 < best.robust <= record.score.robust
        assert ("transfer" in best.by) == (record.job.pruner == "random")


def test_one_machine_without_an_address(tmp_path):
    """A job whose pruner's process dies fails, and no other does: its node goes on."""
    spec, out = pruner(tmp_path), tmp_path / "out"
    asked = [*grid([f"{spec}:mode=dies"], [0.9], [0]), *grid(["random"], [0.9], [0])]
    ends = run(RULES, asked, out, STORE, engine=Ray(out, jobs=1), device="cpu")
    fates = {end.task.job.label: end for end in ends}
    assert fates["random"].how == "done" and fates["held.Held:mode=dies"].how == "failed" and len(ends) == 2
    assert "The pruner's process was killed by signal 9" in fates["held.Held:mode=dies"].why


@dataclass(frozen=True)
class Modules:
    """A step that tells which pruners its process has imported."""

    name: str = "modules"

    def __call__(self, report):
        return [name for name in sys.modules if name.startswith(("pruners.", "prunebench_file_"))]


def test_no_process_of_ray_ever_imports_a_pruner(tmp_path):
    """The one that has just trained and scored two jobs is asked."""
    out = tmp_path / "out"
    (tmp_path / "training-held").touch()
    engine = Ray(out, jobs=1)
    with engine:
        for step in [*steps(jobs(pruner(tmp_path)), out), Modules()]:
            told = engine.submit(step).result(PATIENCE)
    assert told == [] and len(list(out.rglob("record.json"))) == 2


def steps(asked, out):
    """All steps of these jobs, one after the other."""
    scheduler = scheduler_of(RULES, asked, out, STORE, device="cpu")
    while (step := scheduler.next()) is not None:
        scheduler.came(step, None)
        yield step


def test_what_no_node_can_give_is_refused(cluster, tmp_path):
    with (
        nodes(cluster, 1),
        pytest.raises(PrunebenchError, match="No node of the cluster has 1 CPUs and 1 GPUs"),
        Ray(tmp_path, address=cluster.address, gpus=1.0),
    ):
        pass


def test_progress_comes_from_the_nodes(cluster, tmp_path):
    """A step that goes on only when what it told has arrived."""
    step, told = Telling("a step", tmp_path / "heard"), []
    with nodes(cluster, 1), Ray(tmp_path, address=cluster.address, device="cpu") as engine:
        future, deadline = engine.submit(step), time.monotonic() + PATIENCE
        while not told and time.monotonic() < deadline:
            told += engine.updates()
            time.sleep(0.1)
        step.go.touch()
        assert future.result(PATIENCE) == "done"
    assert told == [("a step", "half", 1.0, 2.0)]
