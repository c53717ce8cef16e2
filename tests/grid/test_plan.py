"""What a grid will take: the stages are those that a run computes, the sums and the schedule are done on paper."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import prunebench.bench.lab.trainer
from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.dry_run import Rehearsed, Shares, Work, rehearse
from prunebench.bench.grid.plan import RECORD_BYTES, Forecast, _lines, _mean, _under, makespan, plan
from prunebench.bench.grid.run import grid, job_id, order_of
from prunebench.bench.grid.task import train
from prunebench.bench.grid.timing import Epochs, Pace, _alike
from prunebench.bench.lab import backend
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Plan
from prunebench.bench.lab.stages import Stages
from prunebench.bench.models import build
from prunebench.bench.player import process
from prunebench.bench.player.handover import Play
from prunebench.bench.protocol import Job, Threat
from prunebench.bench.score.curve import radii
from prunebench.bench.score.progress import expected
from prunebench.bench.score.referee import Referee
from prunebench.pruners import parse
from tests.support.nets import STORE, TINY, changed

SHARES = Shares(clean=0.8, robust=0.5)
RULES = changed(units=4.0, train=128, epochs=3, steps=1, test=32, shard=32)
SPECS = ["dense", "magnitude", "imp", "hydra", "awt", "iwi"]


@pytest.fixture
def flat(monkeypatch):
    """A device on which an epoch takes a second, a validation two, a start three, and a sample pass a microsecond."""
    monkeypatch.setattr(Pace, "epochs", lambda *_: Epochs(start=3.0, epoch=1.0, validation=2.0))
    monkeypatch.setattr(
        Pace, "attacks", lambda *_: dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square", "pgd"), 1e-6)
    )


def gone_through(specs, sparsities=(0.9,), rules=RULES, shares=SHARES, examples=None):
    jobs = [(parse(spec).pruner, job) for spec, job in grid(specs, sparsities, [0])]
    return rehearse(
        jobs,
        rules,
        STORE,
        device="cpu",
        threads=1,
        examples=examples,
        shares=shares,
        seconds=0.01,
        resolve=lambda spec: parse(spec).pruner,
    )[0]


def really_trained(spec, job, rules, folder, monkeypatch):
    """The stages of a real training, and whether each that the store was asked for had to be computed."""
    labs, fresh = [], []

    class Told(Stages):
        def remember(self, key, compute):
            fresh.append(not (self.folder / key / "done.safetensors").exists())
            return super().remember(key, compute)

    def kept(*args, **options):
        labs.append(Lab(*args, **options))
        return labs[0]

    monkeypatch.setattr(backend, "Stages", Told)
    monkeypatch.setattr(process, "Lab", kept)
    asked = Play(spec, job, rules, STORE, folder / job.name, folder / "stages", "cpu", 1, tensorboard=False)
    process.play(asked, lambda *news: None)
    return labs[0].meter.stages, fresh


def test_the_stages_are_those_of_a_run(flat, tmp_path, monkeypatch):
    """Names and passes of every stage, and which of them another job has computed already."""
    kept, shared = set(), 0
    rules = changed(RULES, train=64)
    for (spec, job), one in zip(grid(SPECS, [0.9], [0]), gone_through(SPECS, rules=rules), strict=True):
        stages, fresh = really_trained(spec, job, rules, tmp_path, monkeypatch)
        works = [work for work in one.works if work.passes]
        assert [work.stage for work in works] == [stage.name.removeprefix("ticket: ") for stage in stages]
        assert [work.passes for work in works] == [stage.passes for stage in stages]
        keys = [work.key for work in works if work.key is not None]
        assert [key not in kept for key in keys] == fresh
        shared += fresh.count(False)
        kept |= set(keys)
    assert shared >= 1  # HYDRA's dense half is that of magnitude


def test_without_moving_the_weights_different_trainings_would_seem_one(flat, monkeypatch):
    """What follows a long and a short dense training starts from other weights; the twin gives both back alike."""
    original, starts = Lab._key, []

    def key(self, facts):
        starts.append(facts[:3])
        return original(self, facts)

    monkeypatch.setattr(Lab, "_key", key)
    specs = ["magnitude:dense=0.5", "magnitude:dense=0.25"]
    gone_through(specs)
    assert len(starts) == 4 and starts[0] == starts[2] and starts[1] != starts[3]
    starts.clear()
    monkeypatch.setattr("prunebench.bench.grid.dry_run._moved", lambda state, key: state)
    gone_through(specs)
    assert starts[1] == starts[3]


def test_seconds_of_a_training_on_paper():
    rules = changed(validate_every=5).training
    pace = Epochs(start=3.0, epoch=1.0, validation=2.0)

    def seconds(start, stop, **changes):
        return pace.seconds(Plan(rules.model_copy(update=changes), TINY.threat, 80, start, stop))

    assert seconds(0, 80) == 3 + 80 + 16 * 2  # after epochs 5, 10, ..., 80
    assert seconds(0, 12) == 3 + 12 + 3 * 2  # 5, 10 and the last
    assert seconds(9, 12) == 3 + 3 + 2 * 2  # 10 and the last
    assert seconds(10, 12) == 3 + 2 + 2  # the last
    assert seconds(0, 4, objective="fgsm-rs") == 3 + 4 + 4 * 2  # one-step training validates in every epoch


def test_a_trial_times_the_training_that_runs(monkeypatch):
    """A step that takes twenty times longer, an epoch that does."""
    split = STORE.training("digits", validation=16, train=128)
    asked = Plan(RULES.training, RULES.threat, 8)

    def epoch(slow):
        original = prunebench.bench.lab.trainer.Trainer.step
        calls = []

        def step(self, *args):
            calls.append(len(args[0]))
            time.sleep(slow)
            return original(self, *args)

        monkeypatch.setattr(prunebench.bench.lab.trainer.Trainer, "step", step)
        pace = Pace(RULES, *split, torch.device("cpu"), seconds=1e9)
        found = pace.epochs(asked, lambda: build("digits-cnn", info=STORE.info("digits")), None, 1.0)
        monkeypatch.setattr(prunebench.bench.lab.trainer.Trainer, "step", original)
        assert calls == [*[16] * (2 + 3), *[64] * 10]  # two warm-ups, then five epochs of two batches
        return found.epoch

    assert epoch(0.3) >= 2 * 0.3
    assert epoch(0.0) < 2 * 0.3


def test_a_short_trial_stands_for_the_whole_epoch():
    """With no time, 16 images are tried and their epoch is laid over the 128 of the protocol."""
    ticks = iter(range(10**6))
    split = STORE.training("digits", validation=16, train=128)
    pace = Pace(RULES, *split, torch.device("cpu"), seconds=0.0)
    seen = []

    def counted(model, plan, train, validation, *, report, log, **_):
        for number in range(plan.epochs):
            seen.append(len(train))
            next(ticks)
            log({"epoch": number + 1}, 7.0 if number < plan.epochs - 1 else 9.0)
            report("", 1, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunebench.bench.grid.timing.fit", counted)
        patch.setattr("prunebench.bench.grid.timing.time.perf_counter", lambda: 0.0)
        found = pace.epochs(Plan(RULES.training, RULES.threat, 8), lambda: None, None, 1.0)
    assert set(seen) == {16}
    save = (0.0 - (3 * 7 + 9)) / 4  # the clock stood still
    assert found == Epochs(start=0.0 - 7 - save, epoch=7 * 128 / 16 + save, validation=2.0 * 16 / 16)


def test_what_a_process_does_once_is_told_apart(monkeypatch):
    """An epoch takes a second, and the first that this process trains 100 more."""
    now, calls = [0.0], []

    def slow_at_first(model, plan, train, validation, *, report, log, **_):
        now[0] += 0.0 if calls else 100.0
        calls.append(plan.epochs)
        for number in range(plan.epochs):
            now[0] += 1.0
            log({"epoch": number + 1}, 1.0)
            report("", 1, 1)

    monkeypatch.setattr("prunebench.bench.grid.timing.fit", slow_at_first)
    monkeypatch.setattr("prunebench.bench.grid.timing.time.perf_counter", lambda: now[0])
    pace = Pace(RULES, *STORE.training("digits", validation=16, train=128), torch.device("cpu"), seconds=0.0)
    first = pace.epochs(Plan(RULES.training, RULES.threat, 8), lambda: None, None, 1.0)
    assert (pace.once, first.start) == (100.0, 0.0)
    pace.epochs(Plan(RULES.training, RULES.threat, 8), lambda: None, None, 0.1)
    assert pace.once == 100.0 and calls == [2, 3, 5] * 2


def test_densities_a_fifth_apart_count_as_the_same_down_to_none():
    assert _alike(1.0) == _alike(0.95) == 0 and _alike(0.5) == -4
    assert _alike(0.0) == _alike(1e-9) < _alike(1e-4)  # a pruner may leave nothing


def test_attacks_are_tried_through_the_referee_on_what_they_reach(monkeypatch):
    """Every forward of the trial is one of `Referee.attacked`, on the images that the attack is expected to reach."""
    seen = []
    original = Referee.attacked

    def attacked(self, images):
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Referee, "attacked", attacked)
    split = STORE.training("digits", validation=16, train=128)
    pace = Pace(RULES, *split, torch.device("cpu"), seconds=0.05)
    reached = {"apgd-ce": 0.75, "apgd-t": 0.5, "fab-t": 0.5, "square": 0.5, "pgd": 0.75}
    net = build("digits-cnn", info=STORE.info("digits"))
    found = pace.attacks(lambda: net, 1.0, STORE.testing("digits", 40), reached)
    assert found.keys() == reached.keys() and all(0 < each < 1e-2 for each in found.values())
    assert {24, 16} <= set(seen)  # of a shard of 32 images
    calls = len(seen)
    assert pace.attacks(lambda: net, 0.99, STORE.testing("digits", 40), reached) is found and len(seen) == calls
    assert pace.attacks(lambda: net, 0.5, STORE.testing("digits", 40), reached) is not found


def test_a_slow_referee_is_seen(monkeypatch):
    """A hundredth of a second more for each forward, so much more for the passes of one."""
    split = STORE.training("digits", validation=16, train=128)
    reached = dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square", "pgd"), 1.0)
    original = Referee.attacked

    def slowed(self, images):
        time.sleep(0.01)
        return original(self, images)

    monkeypatch.setattr(Referee, "attacked", slowed)
    pace = Pace(RULES, *split, torch.device("cpu"), seconds=0.05)
    net = build("digits-cnn", info=STORE.info("digits"))
    found = pace.attacks(lambda: net, 1.0, STORE.testing("digits", 32), reached)
    assert found["square"] >= 0.01 / 32  # a query is one pass of each image


def test_the_passes_of_a_scoring_on_paper():
    """An image of one pixel knows two squares; L2's published search asks about every one."""
    dots = Split(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64))
    for threat, search in ((Threat(norm="Linf", eps="0.2"), 3 + 2), (Threat(norm="L2", eps="0.2"), 5000)):
        assert expected(threat, dots, clean=0.8, robust=0.5) == {
            "apgd-ce": 80 * 304,
            "apgd-t": 50 * 2728,
            "fab-t": 50 * 3600,
            "square": 50 * search,
            "fgsm": 80 * 4,
            "pgd-20": len(radii(threat, 1)) * 80 * 61,
            "pgd-50": 80 * 151,
        }


def job(name="dense", sparsity=0.0, seed=0):
    return Job(pruner=name, sparsity=sparsity, seed=seed)


def one(name, *works, score=10.0, seed=0, sparsity=0.9):
    return Rehearsed(
        job(name, 0.0 if name == "dense" else sparsity, seed), tuple(works), Work(None, "score", 7, score), 5
    )


def work(key, seconds):
    return Work(key, key or "own", 100, seconds, 3)


def span(jobs, workers, shards=1):
    """Seconds of `jobs` in the order of a run, each net attacked in so many shards."""
    rules = changed(RULES, test=shards, shard=1)
    order = order_of(rules, [(one.job.pruner, one.job) for one in jobs], Path(), STORE)
    assert order.shards == shards
    return makespan(order, {one.job.name: one for one in jobs}, workers)


def test_the_schedule_on_paper():
    dense, imp = one("dense", work("a", 4.0)), one("imp", work("b", 6.0))
    assert span([dense, imp], 1) == 4 + 10 + 6 + 10
    assert span([dense, imp], 2) == 6 + 10
    assert span([dense, imp], 9) == 6 + 10


def test_the_shards_of_a_net_are_attacked_side_by_side():
    """10 s of training, then 400 s of scoring in 40 shards: 10 s a round."""
    net = one("imp", work("a", 10.0), score=400.0)
    assert [span([net], workers, shards=40) for workers in (1, 4, 7, 40, 80)] == [410, 110, 70, 20, 20]
    assert span([net], 40, shards=1) == 410  # the twin: in one piece, more workers are of no use


def test_a_stage_is_computed_once_and_waited_for():
    first, second = one("magnitude", work("a", 4.0), work("b", 1.0)), one("hydra", work("a", 4.0), work("c", 2.0))
    assert span([first, second], 1) == 4 + 1 + 10 + 2 + 10
    assert span([first, second], 2) == 4 + 2 + 10  # both wait for the dense half
    apart = one("hydra", work("d", 4.0), work("c", 2.0))
    assert span([first, apart], 1) == 4 + 1 + 10 + 4 + 2 + 10


def test_a_net_is_attacked_before_its_parent_is_there():
    """One worker trains imp (1 s) and attacks it while the other trains the dense net (20 s); the record waits."""
    imp, dense = one("imp", work("b", 1.0), score=2.0), one("dense", work("a", 20.0), score=3.0)
    assert span([imp, dense], 2) == 20 + 3
    slow = one("imp", work("b", 1.0), score=30.0)
    assert span([slow, dense], 2) == 1 + 30  # not 20 + 30
    assert span([imp, dense], 1) == 1 + 2 + 20 + 3


def test_lines_sum_the_seeds_and_count_what_is_shared_once():
    first, second = one("magnitude", work("a", 4.0), work("b", 1.0)), one("hydra", work("a", 4.0), work("c", 2.0))
    everything = [_under(each, seed) for seed in (0, 1) for each in (first, second)]
    assert [each.job.seed for each in everything] == [0, 0, 1, 1]
    magnitude, hydra = _lines(everything)
    assert (magnitude.jobs, magnitude.train_passes, magnitude.score_passes) == (2, 400, 14)
    assert (magnitude.train_seconds, hydra.train_seconds, hydra.score_seconds) == (10.0, 4.0, 20.0)
    assert (magnitude.bytes, hydra.bytes) == (2 * (5 + RECORD_BYTES + 6), 2 * (5 + RECORD_BYTES + 3))
    total = Forecast((magnitude, hydra), {1: 1.0}, 1, SHARES).total
    assert (total.jobs, total.train_seconds, total.bytes) == (4, 14.0, magnitude.bytes + hydra.bytes)


def test_two_processes_that_disagree_are_averaged():
    found = _mean((one("imp", work("a", 2.0), score=1.0), one("imp", work("a", 4.0), score=2.0)))
    assert (found.works[0].seconds, found.score.seconds) == (3.0, 1.5)


def test_the_net_is_as_large_as_its_file(flat, tmp_path):
    (spec, asked), (found,) = grid(["random"], [0.9], [0])[0], gone_through(["random"])
    net = train(spec, asked, RULES, tmp_path / job_id(RULES, spec, asked), tmp_path / "stages", STORE, device="cpu")
    assert found.bytes == pytest.approx(net.stat().st_size, rel=0.2)
    stages = sum(path.stat().st_size for path in (tmp_path / "stages").rglob("done.safetensors"))
    assert sum(work.bytes for work in found.works) == pytest.approx(stages, rel=0.05)


def test_a_job_that_would_fail_is_named(flat):
    with pytest.raises(PrunebenchError, match=r"seed0 would fail: Stage 'fine-tune' would train .* which is nothing"):
        gone_through(["magnitude:dense=0.9"], rules=changed(RULES, units=1.0, epochs=2))


def test_a_fault_of_a_pruner_is_a_sentence(flat, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    def __call__(self, job, lab):\n"
        "        raise RuntimeError('a fault')\n"
    )
    with pytest.raises(
        PrunebenchError, match=r"seed0 fails where no net .* RuntimeError: a fault \(.*mine.py, line 5\)"
    ):
        gone_through([f"{tmp_path / 'mine.py'}:Mine"])


@pytest.mark.parametrize(("clean", "robust"), [(0.5, 0.6), (1.1, 0.5), (0.5, -0.1)])
def test_shares_that_cannot_be(clean, robust):
    with pytest.raises(PrunebenchError, match="0 <= robust <= clean <= 1"):
        Shares(clean, robust)


def test_the_whole_in_a_process_of_its_own():
    rules = changed(RULES, train=64, epochs=1)
    jobs = grid(["dense"], [0.9], [0, 1])
    options = {"device": "cpu", "shares": SHARES, "seconds": 0.01, "examples": 16}
    found = plan(rules, jobs, STORE, devices=(1, 2), **options)
    (line,) = found.lines
    assert (line.pruner, line.jobs, line.train_passes) == ("dense", 2, 2 * 4 * 64 * (3 + 3))
    seconds = line.train_seconds + line.score_seconds
    assert found.spans[1] - found.spans[2] == pytest.approx(seconds / 2)  # two jobs alike, one after the other
    assert found.spans[1] > seconds  # the process had to begin
    assert found.as_json()["assumed"] == {"clean": 0.8, "robust": 0.5}
    assert plan(rules, jobs[:1], STORE, began=time.time() - 1000, **options).spans[1] > 1000  # so did the command
