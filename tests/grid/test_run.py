"""A grid of jobs: what it consists of, what is kept, what a failing pruner stops, and who may work in a folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import prunebench.bench.grid.run
from prunebench.bench.beside import beside, net_path
from prunebench.bench.checkpoint import open_net
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, sole_user
from prunebench.bench.grid.run import Scheduler, grid, job_id, job_of, run
from prunebench.bench.grid.task import Ended, Step, Task, train
from prunebench.bench.names import NET
from prunebench.bench.outcomes import outcomes_path, pairs_path, proposals_path, recount
from prunebench.bench.record import Record, Refusal, load_record
from prunebench.bench.score.scoring import score
from prunebench.bench.spec import source_of
from prunebench.pruners import resolve
from tests.support.held import HalvedStore
from tests.support.here import Here
from tests.support.nets import STORE, UNATTACKED, changed, job, toml
from tests.support.pruner_texts import FAULTS_AND_CUT
from tools.kill_and_resume import timeless

RULES = changed(UNATTACKED, test=16, shard=16)

PRUNER = (
    '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    """A pruner in a file of its own."""

    mode: str = "works"

    def __call__(self, job, lab):
        fail(self.mode)
        state = lab.fit("train", lab.initial(), epochs=1).weights
        return cut(state, lab.shapes, {"works": lab.keep, "keeps too many": lab.keep + 1}[self.mode])
'''
    + FAULTS_AND_CUT
)


@pytest.fixture
def mine(tmp_path):
    """The spec of a pruner in a file."""
    file = tmp_path / "mine.py"
    file.write_text(PRUNER)
    return f"{file}:Mine"


def jobs(*specs, sparsities=(0.9,), seeds=(0,)):
    return grid(specs, sparsities, seeds)


def ends(results):
    return [(end.task.job.label, end.how) for end in results]


def test_a_grid_is_every_pruner_at_every_sparsity_under_every_seed():
    found = [(spec, asked.sparsity, asked.seed) for spec, asked in grid(["random", "imp"], [0.9, 0.5], [3, 0])]
    assert found == [(p, s, k) for k in (3, 0) for p in ("random", "imp") for s in (0.9, 0.5)]


def test_what_does_not_prune_is_in_the_grid_at_sparsity_0_alone():
    found = [(asked.pruner, asked.sparsity) for _, asked in grid(["dense", "random"], [0.5, 0.9], [0])]
    assert found == [("dense", 0.0), ("random", 0.5), ("random", 0.9)]


def test_no_job_stands_in_a_grid_twice():
    assert len(grid(["imp", "imp:rounds=4", "imp"], [0.9], [0])) == 1  # four rounds are the default
    assert len(grid(["imp", "imp:rounds=3"], [0.9], [0])) == 2
    assert len(grid(["dense"], [0.9, 0.95], [0])) == 1


def test_sparsities_that_a_pruner_cannot_be_asked_for():
    with pytest.raises(PrunebenchError, match=r"does not prune, so sparsity 0\.5 is impossible"):
        job_of(resolve("dense"), 0.5, 0)
    with pytest.raises(PrunebenchError, match="needs a sparsity"):
        job_of(resolve("imp"), None, 0)
    for sparsity in (1.0, -0.1, float("nan")):
        with pytest.raises(PrunebenchError, match=r"not in \[0, 1\)"):
            job_of(resolve("imp"), sparsity, 0)


def test_a_grid_is_trained_scored_and_published(here, tmp_path):
    told = []
    results = run(RULES, jobs("dense", "random"), tmp_path, STORE, device="cpu", ended=told.append)
    assert ends(results) == [("dense", "done"), ("random", "done")] and told == results
    for end in results:
        path = tmp_path / "records" / "tiny" / f"{end.task.job.name}.json"
        record = load_record(path)
        recount(path, record)
        assert open_net(net_path(path)).id == record.net and net_path(path).samefile(end.task.folder / NET)
        assert record.job == end.task.job and record.score.n == 16
        assert end.why == f"{record.score.robust} of 16 robust, {record.score.clean} clean"
        assert end.task.folder == tmp_path / "jobs" / job_id(RULES, source_of(end.task.spec), end.task.job)
    assert record.net.nonzero == 3816


def test_the_dense_net_is_tried_on_the_others_of_its_seed(here, tmp_path):
    (alone,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert "parent" not in load_record(alone.task.folder / "record.json").notes
    dense, pruned = run(RULES, jobs("dense", "random"), tmp_path, STORE, device="cpu")
    assert (dense.how, pruned.how) == ("done", "done")  # scored again: the dense net was not there before
    notes = [load_record(end.task.folder / "record.json").notes for end in (dense, pruned)]
    assert notes[1]["parent"] == open_net(dense.task.folder / NET).id.sha256 and "parent" not in notes[0]
    assert ends(run(RULES, jobs("dense", "random"), tmp_path, STORE, device="cpu")) == [
        ("dense", "kept"),
        ("random", "kept"),
    ]


def test_a_net_is_scored_after_its_parent_though_it_was_trained_first(tmp_path):
    results = run(RULES, jobs("random", "dense"), tmp_path, STORE, device="cpu")
    found = {end.task.job.pruner: load_record(end.task.folder / "record.json") for end in results}
    assert [end.how for end in results] == ["done", "done"] and "parent" in found["random"].notes


def test_a_record_of_attacks_in_another_arithmetic_is_not_kept(here, tmp_path):
    def ended(**options):
        (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu", **options)
        return end

    assert ended().how == "done"
    refused = ended(arithmetic="tf32")
    assert refused.how == "failed" and "Attacks in tf32 need a CUDA card" in refused.why
    assert ended().how == "kept"  # the twin: the arithmetic alone made the difference
    with pytest.raises(PrunebenchError, match="Unknown arithmetic 'tf23'"):
        ended(arithmetic="tf23")


def test_what_fooled_the_nets_is_kept_when_it_is_asked_for(here, tmp_path):
    (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    path = tmp_path / "records" / "tiny" / "random-s0.9-seed0.json"
    assert load_record(path).proposals is None and not proposals_path(path).exists()
    (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu", keep_proposals=True)
    assert end.how == "done" and load_record(path).proposals == sha256_of(proposals_path(path).read_bytes())
    assert load_record(path).pairs == sha256_of(pairs_path(path).read_bytes())
    (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu", keep_proposals=True)
    assert end.how == "kept"


def tasks(*names, parent=None):
    """Tasks in the folders of these names, the parent among them."""
    folders = {name: Path(name) for name in names}
    return [
        Task(
            "dense",
            job(),
            RULES,
            folder,
            Path(),
            STORE,
            "cpu",
            1,
            None,
            False,
            False,
            folders[parent] if parent not in (None, name) else None,
            tensorboard=False,
        )
        for name, folder in folders.items()
    ]


def taken(scheduler):
    """All that `scheduler` has to give at once: (folder, what, shard)."""
    steps = []
    while (step := scheduler.next()) is not None:
        steps.append(step)
    return steps


def named(steps):
    return [(step.task.folder.name, step.what, step.shard) for step in steps]


def test_records_come_before_attacks_and_attacks_before_trainings():
    first, second = tasks("first", "second")
    scheduler = Scheduler([first, second], shards=2)
    train = scheduler.next()
    assert named([train]) == [("first", "train", 0)]
    assert scheduler.came(train, None) is None
    attacks = [scheduler.next(), scheduler.next()]
    assert named(attacks) == [("first", "attack", 0), ("first", "attack", 1)]
    scheduler.came(attacks[1], None)
    assert named([scheduler.next()]) == [("second", "train", 0)]  # a shard is still at work, so there is no record yet
    scheduler.came(attacks[0], None)
    record = scheduler.next()
    assert named([record]) == [("first", "record", 0)]
    end = Ended(first, "done", "")
    assert scheduler.came(record, end) is end


def test_a_net_is_attacked_without_its_parent_and_recorded_after_it():
    child, dense = tasks("child", "dense", parent="dense")
    scheduler = Scheduler([child, dense], shards=1)
    train_child, train_dense = taken(scheduler)
    scheduler.came(train_child, None)
    (attack,) = taken(scheduler)
    assert named([attack]) == [("child", "attack", 0)]
    scheduler.came(attack, None)
    assert taken(scheduler) == []  # all waits for the dense net
    scheduler.came(train_dense, Ended(dense, "failed", "no net"))
    assert named(taken(scheduler)) == [("child", "record", 0)]


def test_a_job_ends_once_and_takes_its_other_shards_with_it():
    lost, other = tasks("lost", "other")
    scheduler = Scheduler([lost, other], shards=3)
    for step in taken(scheduler):
        scheduler.came(step, None)
    first, second = scheduler.next(), scheduler.next()
    end = Ended(lost, "failed", "once")
    assert scheduler.came(first, end) is end
    assert scheduler.came(second, Ended(lost, "failed", "twice")) is None
    assert named(taken(scheduler)) == [("other", "attack", shard) for shard in range(3)]


def test_a_lost_worker_ends_its_job_and_no_other(here, tmp_path, monkeypatch):
    """An engine that loses the first attack: its sentence is reported, once, and the other job is done."""

    class Losing(Here):
        def submit(self, step):
            if "attack" not in step.name or "random" not in step.name:
                return super().submit(step)
            future = Future()
            future.set_exception(OSError("the node is gone"))
            return future

    told = []
    results = run(RULES, jobs("random", "dense"), tmp_path, STORE, device="cpu", engine=Losing(), ended=told.append)
    assert told == results
    assert {end.task.job.pruner: end.how for end in results} == {"random": "failed", "dense": "done"}
    assert next(end.why for end in results if end.how == "failed") == "the node is gone"


def test_a_record_is_written_from_what_the_shards_left(tmp_path, here, monkeypatch):
    """Whole, in one, against three shards one by one; the record of the second attacks nothing and is the same."""
    rules = changed(RULES, test=12, shard=4)
    (whole,) = run(rules, jobs("random"), tmp_path / "shards", STORE, device="cpu")
    net, alone = whole.task.folder / NET, tmp_path / "alone"
    record = score(net, rules, out=alone, store=STORE, device="cpu")
    assert timeless(load_record(whole.task.folder / "record.json")) == timeless(record)
    for folder in (alone, whole.task.folder):
        assert len(list((folder / "journal").iterdir())) == 3 * (4 + 3 + 4)  # eps / 4, / 2, * 3 / 4, 1 / 2

    def attacked(*found):
        raise AssertionError("attacked again")

    monkeypatch.setattr("prunebench.bench.score.line.Finding", attacked)
    (whole.task.folder / "record.json").unlink()
    assert Step(whole.task, "record")(lambda *told: None).how == "done"
    (alone / "journal" / "shard-00004-00008-fab-t.json").unlink()
    with pytest.raises(AssertionError, match="attacked again"):  # the twin: one entry less, and it would have to
        score(net, rules, out=alone, store=STORE, device="cpu")


def test_the_progress_of_shards_is_that_of_their_net(tmp_path):
    """Two of four shards are done, one is at work and half done: 2.5 of 4, under the name of the job."""
    (task,) = tasks("net")
    scheduler, told = Scheduler([task], shards=4), []
    scheduler.came(scheduler.next(), None)
    attacks = taken(scheduler)
    for step in attacks[:2]:
        scheduler.came(step, None)
    running = {step.name: step for step in attacks[2:]}
    updates = [(attacks[2].name, "fab-t", 5.0, 10.0), (attacks[0].name, "late", 1.0, 1.0)]
    prunebench.bench.grid.run._pass_on(updates, running, scheduler, {}, lambda *line: told.append(line))
    assert told == [("dense-s0-seed0", "attacks, 2 of 4 shards done", 2.5, 4)]


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path.parent.name != "records"}


def test_what_is_done_is_kept(here, tmp_path, mine):
    first = run(RULES, jobs("random", mine), tmp_path, STORE, device="cpu")
    folders = [end.task.folder for end in first]
    before = [stamps(folder) for folder in folders]
    second = run(RULES, jobs("random", mine), tmp_path, STORE, device="cpu")
    assert [end.how for end in second] == ["kept", "kept"]
    assert [stamps(folder) for folder in folders] == before


@pytest.mark.parametrize("lost", [NET, "record.json", "record.outcomes.npz"])
def test_what_was_lost_or_spoilt_is_made_again(lost, here, tmp_path):
    (first,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    net, record = (first.task.folder / NET).read_bytes(), load_record(first.task.folder / "record.json")
    (first.task.folder / lost).write_bytes(b"spoilt")
    (second,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert second.how == "done"
    assert (first.task.folder / NET).read_bytes() == net
    again = load_record(first.task.folder / "record.json")
    assert timeless(again) == timeless(record)
    recount(first.task.folder / "record.json", again)


def test_more_images_are_scored_when_more_are_asked_for(here, tmp_path):
    (first,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu", examples=4)
    net = (first.task.folder / NET).stat().st_mtime_ns
    (second,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert (first.how, second.how) == ("done", "done") and first.task.folder == second.task.folder
    assert load_record(first.task.folder / "record.json").score.n == 16
    assert (first.task.folder / NET).stat().st_mtime_ns == net


def test_a_pruner_whose_source_changed_is_not_skipped(here, tmp_path, mine):
    out = tmp_path / "out"
    (first,) = run(RULES, jobs(mine), out, STORE, device="cpu", examples=2)
    source = tmp_path / "mine.py"
    source.write_text(source.read_text() + "# mended\n")
    (second,) = run(RULES, jobs(mine), out, STORE, device="cpu", examples=2)
    assert (first.how, second.how) == ("done", "done") and first.task.folder != second.task.folder
    records = [load_record(end.task.folder / "record.json") for end in (first, second)]
    assert records[0].notes["source"] != records[1].notes["source"]
    assert load_record(next((out / "records").rglob("mine*.json"))) == records[1]
    (third,) = run(RULES, jobs(mine), out, STORE, device="cpu", examples=2)
    assert third.how == "kept"  # the twin: the source alone made the difference


def test_train_makes_a_net_again_when_its_pruner_changed(tmp_path, mine):
    asked = job(mine)
    net = train(mine, asked, RULES, tmp_path / "out", tmp_path / "stages", STORE, device="cpu")
    stamp = net.stat().st_mtime_ns
    train(mine, asked, RULES, tmp_path / "out", tmp_path / "stages", STORE, device="cpu")
    assert net.stat().st_mtime_ns == stamp
    (tmp_path / "mine.py").write_text(PRUNER + "# mended\n")
    train(mine, asked, RULES, tmp_path / "out", tmp_path / "stages", STORE, device="cpu")
    assert net.stat().st_mtime_ns != stamp


def test_a_pruner_with_a_fault_is_reported_once_and_stops_nobody(here, tmp_path, mine):
    told = []
    specs = jobs(f"{mine}:mode=raises", f"{mine}:mode=keeps too many", "random")
    results = run(RULES, specs, tmp_path / "out", STORE, device="cpu", ended=told.append)
    assert [end.how for end in results] == ["failed", "failed", "done"] and told == results
    raised, greedy, _ = results
    log = raised.task.folder / "error.txt"
    line = PRUNER[: PRUNER.index("raise RuntimeError")].count("\n") + 1
    assert raised.why == f"mine.py, line {line}: RuntimeError: the pruner has a fault; details are in {log}"
    assert 'raise RuntimeError("the pruner has a fault")' in (raised.task.folder / "error.txt").read_text()
    assert "keeps 3817 of 38160 weights; sparsity 0.9 allows at most 3816" in greedy.why
    assert [path.stem for path in (tmp_path / "out" / "records").rglob("*.json")] == ["random-s0.9-seed0"]


def test_a_net_that_is_refused_leaves_a_refusal_among_the_records(here, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "prunebench.bench.score.referee.Referee.logits",
        lambda self, images: images.new_full((len(images), 10), torch.inf),
    )
    (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert end.how == "refused"
    path = tmp_path / "records" / "tiny" / "random-s0.9-seed0.json"
    left = load_record(path)
    assert not any(there.exists() for there in beside(path))
    assert isinstance(left, Refusal) and left.refused == "non-finite"
    monkeypatch.undo()
    (end,) = run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert end.how == "done"
    assert isinstance(load_record(tmp_path / "records" / "tiny" / "random-s0.9-seed0.json"), Record)


def test_two_runs_in_one_folder_the_second_refuses(here, tmp_path):
    with sole_user(tmp_path), pytest.raises(PrunebenchError, match="Another prunebench command is using"):
        run(RULES, jobs("random"), tmp_path, STORE, device="cpu")
    assert not (tmp_path / "records").exists()
    assert run(RULES, jobs("random"), tmp_path, STORE, device="cpu")[0].how == "done"


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "prunebench", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_side_by_side_ends_in_the_same_bytes_and_a_fault_in_exit_code_1(tmp_path, mine, here):
    """Two processes against this one; the command ends with 1 for the job that failed."""
    specs = ["magnitude", "random", f"{mine}:mode=raises"]
    alone = run(RULES, jobs(*specs), tmp_path / "alone", STORE, device="cpu")
    rules = tmp_path / "tiny.toml"
    rules.write_text(toml(RULES))
    pruners = [part for spec in specs for part in ("--pruner", spec)]
    both = command("run", rules, *pruners, "--out", tmp_path / "both", "--jobs", 2, "--device", "cpu")
    assert both.returncode == 1
    assert both.stderr.count("the pruner has a fault") == 1
    assert "1 of 3 jobs did not end with a score" in both.stderr and "Traceback" not in both.stderr
    assert [end.how for end in alone] == ["done", "done", "failed"]
    for end in alone[:2]:
        other = tmp_path / "both" / "jobs" / end.task.folder.name
        assert (other / NET).read_bytes() == (end.task.folder / NET).read_bytes()
        records = [load_record(folder / "record.json") for folder in (end.task.folder, other)]
        assert timeless(records[0]) == timeless(records[1])
        raw = [outcomes_path(folder / "record.json").read_bytes() for folder in (end.task.folder, other)]
        assert raw[0] == raw[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_job_and_no_other(tmp_path, mine):
    specs = jobs(f"{mine}:mode=dies", "random")
    results = run(RULES, specs, tmp_path / "out", STORE, device="cpu")
    assert ends(results) == [("mine.Mine:mode=dies", "failed"), ("random", "done")]
    assert results[0].why.startswith("The pruner's process was killed by signal 9, perhaps because memory ran out")


def test_nobody_works_on_after_run_has_ended_with_an_error(tmp_path):
    """A full disk while publishing, say: the lock is let go, so no worker may be left to write."""

    def fail(end: Ended):
        raise PrunebenchError("Could not write")

    with pytest.raises(PrunebenchError, match="Could not write") as caught:
        run(RULES, jobs("random", seeds=range(6)), tmp_path, STORE, device="cpu", ended=fail)
    assert caught.tb is not None  # whoever shows the error holds on to all that was at work
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_workers_die_with_the_run_that_started_them(tmp_path):
    """SIGKILL to `run` while it trains: nobody is left that holds or writes the folder."""
    rules = tmp_path / "tiny.toml"
    rules.write_text(toml(changed(RULES, epochs=5000, train=None)))
    out = tmp_path / "out"
    arguments = [
        sys.executable,
        "-m",
        "prunebench.bench.cli.main",
        "run",
        rules,
        "--pruner",
        "random",
        "--out",
        out,
        "--jobs",
        "1",
    ]
    with subprocess.Popen(list(map(str, arguments)), stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 300
            while not list(out.rglob("partial.safetensors")) and time.monotonic() < deadline:
                time.sleep(0.1)
            (partial,) = out.rglob("partial.safetensors")
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            deadline = time.monotonic() + 10
            while alive(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not alive(process.pid)
            last = partial.stat().st_mtime_ns
            time.sleep(0.5)
            assert partial.stat().st_mtime_ns == last
        finally:
            for pid in alive(process.pid):
                os.kill(pid, signal.SIGKILL)
    with sole_user(partial.parent):
        pass


def alive(session):
    """The processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(entry.name))
    return found


def test_progress_comes_from_the_workers_to_this_process(tmp_path):
    told, threads = [], set()

    def report(*progress):
        told.append(progress)
        threads.add(threading.current_thread())

    run(RULES, jobs("random"), tmp_path, STORE, device="cpu", report=report)
    assert told and {name for name, *_ in told} == {"random-s0.9-seed0"} and threads == {threading.main_thread()}


def test_a_net_of_other_images_is_not_kept(tmp_path):
    """The same job over another training split, as when the images of a folder were changed."""
    task = ("dense", job(), RULES, tmp_path / "net", tmp_path / "stages")
    first = train(*task, STORE, device="cpu").read_bytes()
    assert train(*task, STORE, device="cpu").read_bytes() == first
    assert train(*task, HalvedStore(STORE.root), device="cpu").read_bytes() != first


def test_a_finished_run_can_be_measured_further(here, tmp_path):
    grid_of_one = [("dense", job())]

    def ends(*also):
        (end,) = run(RULES, grid_of_one, tmp_path, STORE, also=also)
        record = load_record(end.task.folder / "record.json")
        assert isinstance(record, Record)
        return end.how, record.beyond.distances is not None

    assert [ends(), ends("distances"), ends("distances"), ends()] == [
        ("done", False),
        ("done", True),
        ("kept", True),
        ("kept", True),
    ]


def test_an_unknown_measurement_is_refused_before_any_training(tmp_path):
    with pytest.raises(PrunebenchError, match="distnaces"):
        run(RULES, [("dense", job())], tmp_path, STORE, also=["distnaces"])
    assert not list(tmp_path.iterdir())
