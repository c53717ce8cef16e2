"""What a grid will take: the stages are those that a run computes, paces, prices and spans are done on paper."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
import torch

from prunebench.bench.attacks.best import BEST
from prunebench.bench.attacks.square import price_of
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.data import Split, Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid import dry_run, timing
from prunebench.bench.grid.dry_run import RECORD_BYTES, Dry, Line, Rehearsal, pruned, validation_passes
from prunebench.bench.grid.plan import Forecast, forecast, makespan
from prunebench.bench.grid.run import grid
from prunebench.bench.grid.task import train
from prunebench.bench.lab import dry
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.models import build
from prunebench.bench.protocol import Threat
from prunebench.bench.score.arithmetic import Arithmetic
from prunebench.bench.score.curve import radii
from prunebench.bench.score.progress import expected
from prunebench.bench.score.referee import Referee
from prunebench.bench.stand_in import stand_in
from prunebench.pruners import resolve
from tests.support.nets import STORE, changed

RULES = changed(units=4.0, train=64, epochs=3, steps=1, test=32, shard=32)
SPECS = ["dense", "magnitude", "imp", "hydra", "awt", "iwi"]
CPU = torch.device("cpu")
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square", "fgsm", "pgd-20", "pgd-50")


@pytest.fixture
def flat(monkeypatch):
    """A device on which a training starts in three seconds and a sample pass takes a microsecond."""
    monkeypatch.setattr(dry_run, "training_pace", lambda *_: (3.0, 1e-6))
    monkeypatch.setattr(dry_run, "attack_paces", lambda *_, **__: dict.fromkeys(ATTACKS, 1e-6) | {"square": 2e-6})


def rehearsal(rules=RULES, clean=0.8, robust=0.5, **options):
    return Rehearsal(rules, STORE, clean, robust, device="cpu", seconds=0.01, **options)


def gone_through(specs, rules=RULES):
    return rehearsal(rules)(grid(specs, [0.9], [0]))[1]


def test_the_stages_are_those_of_a_run(flat, tmp_path):
    """Names and passes of every stage, and which of them another job has computed already."""
    jobs, new, costs = grid(SPECS, [0.9], [0]), [], Dry(seconds=0.01)
    lab = Lab(jobs[0][1], RULES, STORE, costs, device=CPU, resolve=lambda name: resolve(name).pruner)
    for spec, job in jobs:
        before, there = len(costs.stages), set(tmp_path.rglob("done.safetensors"))
        real = Lab(job, RULES, STORE, Computed(tmp_path), device=CPU, resolve=lambda name: resolve(name).pruner)
        resolve(spec).pruner(job, real)
        charged = [[(s.name, s.passes) for s in meter.stages] for meter in (pruned(lab, spec, job)[1], real.meter)]
        assert charged[0] == charged[1]
        assert len(costs.stages) - before == len(set(tmp_path.rglob("done.safetensors")) - there)
        new.append(len(charged[0]) - (len(costs.stages) - before))
    assert new[SPECS.index("magnitude")] == 0 and new[SPECS.index("hydra")] == 1  # the dense half is magnitude's


def test_without_moving_the_weights_different_trainings_would_seem_one(flat, monkeypatch):
    """What follows a long and a short dense training starts from other weights; the twin returns the same ones."""
    original, starts = Lab._key, []

    def key(self, facts):
        starts.append(facts[:3])
        return original(self, facts)

    monkeypatch.setattr(Lab, "_key", key)
    specs = ["magnitude:dense=0.5", "magnitude:dense=0.25"]
    gone_through(specs)
    assert len(starts) == 4 and starts[0] == starts[2] and starts[1] != starts[3]
    starts.clear()
    monkeypatch.setattr(dry, "moved", lambda state, key: state)
    gone_through(specs)
    assert starts[1] == starts[3]


def test_a_line_on_paper(flat, tmp_path):
    """One training: 3 s, its passes and those of its validations; then the passes of the attacks."""
    (line,) = gone_through(["random"])
    passes = 4 * 3 * 64 * (3 + 3)
    assert (line.pruner, line.sparsity, line.jobs, line.train_passes) == ("random", 0.9, 1, passes)
    assert line.train_seconds == pytest.approx(3 + (passes + 4 * 64 * 5) / 1e6)  # after epochs 3, 6, 9 and 12
    price = expected(RULES, STORE.testing("digits", 32), clean=0.8, robust=0.5)
    assert line.score_passes == round(sum(price.values()))
    assert line.score_seconds == pytest.approx((sum(price.values()) + price["square"]) / 1e6)
    ((spec, job),) = grid(["random"], [0.9], [0])
    net = train(spec, job, RULES, tmp_path / "job", tmp_path / "stages", STORE, device="cpu")
    kept = [net, *tmp_path.rglob("done.safetensors")]
    assert line.bytes - RECORD_BYTES == pytest.approx(sum(path.stat().st_size for path in kept), rel=0.1)


def test_the_passes_of_validations_on_paper():
    """PGD with ten steps and two forwards of 64 images: 32 passes each, whatever the objective."""
    recipe = changed(steps=10, validate_every=5).training

    def times(start, stop, **changes):
        trained = TrainingPlan(recipe.model_copy(update=changes), RULES.threat, 80, start, stop)
        return validation_passes(trained, 64) / (64 * 32)

    assert (times(0, 80), times(0, 12), times(9, 12), times(10, 12)) == (16, 3, 2, 1)
    assert times(0, 4, objective="fgsm-rs") == 4  # after every epoch


@pytest.mark.parametrize(("seconds", "images"), [(0.0, 16), (4 * 33 * 6.0, 33), (4 * 150 * 6.0, 128), (1e9, 400)])
def test_the_pace_of_a_training_on_paper(seconds, images, monkeypatch):
    """An image's six passes take six seconds; the first epoch 50 more, and 900 in a process that never trained."""
    split, seen = Split(torch.zeros(400, 1, 8, 8, dtype=torch.uint8), torch.zeros(400, dtype=torch.int64)), []

    def timed(model, plan, part, validation, **_):
        assert len(validation) == 1 and plan.epochs == 4 == plan.recipe.validate_every
        epoch = 6.0 * plan.seen(len(part))
        seen.append(len(part))
        return Trained({}, {}, [], [epoch + (50 if seen[1:] else 900), epoch, epoch, epoch + 7])

    monkeypatch.setattr(timing, "fit", timed)
    asked = TrainingPlan(RULES.training, RULES.threat, 80)
    start, each = timing.training_pace(asked, lambda: None, None, split, seconds)
    assert seen == [16, images] and (start, each) == (50, 1)


def test_one_step_training_that_overfits_is_timed_all_the_same(monkeypatch):
    """Outside the lab, which refuses it, a training may collapse."""
    rates = (rate for _ in count() for rate in (1.0, 0.1))
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"clean": 1.0, "robust": next(rates)})
    split = STORE.training("digits", validation=16, train=16)[0]
    asked = TrainingPlan(changed(RULES, objective="fgsm-rs", steps=7).training, RULES.threat, 80)
    net = lambda: build("digits-cnn", info=STORE.info("digits"))  # noqa: E731
    assert timing.training_pace(asked, net, None, split, 0.0)[1] > 0


def test_the_pace_of_an_attack_on_paper(monkeypatch):
    """A sample pass takes a second, by the clock that is shown; each attack is stopped after 500 s."""
    original, now, seen = Referee.attacked, [0.0], set()

    def attacked(self, images, **how):
        result = original(self, images, **how)
        gradient = images.requires_grad and torch.is_grad_enabled()
        now[0] += len(images) * (3 if gradient else 1)
        seen.update({len(images)} if gradient else set())
        return result

    monkeypatch.setattr(Referee, "attacked", attacked)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    net, test = build("digits-cnn", info=STORE.info("digits")), STORE.testing("digits", 40)
    found = timing.attack_paces(net, RULES, test, 0.75, CPU, 500.0)
    assert found == dict.fromkeys(ATTACKS, pytest.approx(1.0))
    assert seen == {24, 9 * 24} and now[0] < 20_000  # 3/4 of a shard of 32 images, to their end 264,000


@pytest.mark.parametrize(("exact", "loosely"), [(False, True), (True, False)])
def test_attacks_are_timed_in_the_arithmetic_that_they_would_have(exact, loosely):
    """Weak ones are exact whatever is asked for."""
    active, seen = [], set()

    @contextmanager
    def loose():
        active.append(1)
        yield
        active.pop()

    def endless(model, images, labels, threat, *, generator):
        while True:
            seen.add(bool(active))
            model(images)

    net, images = build("digits-cnn", info=STORE.info("digits")), torch.rand(16, 1, 8, 8)
    referee = Referee(net, RULES, 16, CPU, Arithmetic("tf32", loose, repairs=True))
    assert timing.attack_pace(referee, Listed(endless, 1, exact=exact), images, 0.0) > 0
    assert seen == {loosely}


def test_the_passes_of_a_scoring_on_paper():
    """An image of one pixel knows two squares in Linf. In L2 every move that changes a pixel is asked about."""
    dots = Split(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64))
    l2 = price_of("L2", (1, 1, 1), 5000)
    for threat, search in ((Threat(norm="Linf", eps="0.2"), 3 + 2), (Threat(norm="L2", eps="0.2"), l2)):
        assert expected(changed(threat=threat), dots, clean=0.8, robust=0.5) == {
            "apgd-ce": 80 * 304,
            "apgd-t": 50 * 2728,
            "fab-t": 50 * 3600,
            "square": 50 * search,
            "fgsm": 80 * 4,
            "pgd-20": len(radii(threat, 1)) * 80 * 61,
            "pgd-50": 80 * 151,
        }


def test_survivors_are_planned_to_be_attacked_again_by_the_short_attacks_alone():
    dots = Split(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64))
    plain, more = (expected(RULES, dots, clean=0.8, robust=0.5, best=best) for best in (False, True))
    assert more.keys() - plain.keys() == BEST.short.keys() and plain.items() <= more.items()
    assert more["md"] == 50 * (2 * 51 * 3 + 1)  # two starts of 50 steps, a look at the end of each, and one before all


def test_densities_a_fifth_apart_count_as_the_same_down_to_none():
    assert dry_run._alike(1.0) == dry_run._alike(0.95) == 0 and dry_run._alike(0.5) == -4
    assert dry_run._alike(0.0) == dry_run._alike(1e-9) < dry_run._alike(1e-4)  # a pruner may leave nothing


def test_spans_on_paper():
    one = Line("imp", 0.9, 1, 0, 0, train_seconds=10.0, score_seconds=40.0, bytes=0)
    assert [makespan([one], workers, 8) for workers in (1, 2, 8, 80)] == [50, 10 + 20, 10 + 5, 10 + 5]
    assert makespan([one], 8, shards=1) == 50  # the twin: in one piece, more workers are of no use
    quick = replace(one, score_seconds=2.0)
    assert [makespan([quick] * 3, workers, 1) for workers in (1, 2, 3)] == [36, 10 + 10 + 2, 12]


def test_a_job_that_would_fail_is_named(flat):
    with pytest.raises(PrunebenchError, match=r"seed0 would fail: Stage 'fine-tune' would have 0 of the 2 epochs"):
        gone_through(["magnitude:dense=0.9"], rules=changed(RULES, units=1.0, epochs=2))


def test_a_fault_of_a_pruner_is_a_sentence(flat, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    def __call__(self, job, lab):\n"
        "        raise RuntimeError('a fault')\n"
    )
    with pytest.raises(PrunebenchError, match=r"seed0 would fail: mine.py, line 5: RuntimeError: a fault$"):
        gone_through([f"{tmp_path / 'mine.py'}:Mine"])


def test_a_forecast_without_the_data(flat, tmp_path):
    """Passes on paper: 4 units of 3 epochs, each of 59,936 of MNIST's images in whole batches of 64."""
    rules = changed(RULES, data="mnist", model="mnist-cnn", train=None)
    far = Rehearsal(rules, stand_in(Store(tmp_path), "mnist"), 0.8, 0.5, device="cpu", seconds=0.01)
    (line,) = far(grid(["random"], [0.9], [0]))[1]
    assert line.train_passes == 4 * 3 * (59_936 // 64 * 64) * (3 + 3) and not list(tmp_path.iterdir())
    with pytest.raises(PrunebenchError, match="Data set mnist is not in"):  # the twin
        replace(far, store=Store(tmp_path))(grid(["random"], [0.9], [0]))


@pytest.mark.parametrize(("clean", "robust"), [(0.5, 0.6), (1.1, 0.5), (0.5, -0.1)])
def test_shares_that_cannot_be(clean, robust):
    with pytest.raises(PrunebenchError, match="0 <= robust <= clean <= 1"):
        rehearsal(clean=clean, robust=robust)


def test_the_whole_in_a_process_of_its_own():
    """Two seeds cost the same; two devices take half of the work each, after the same start of the command."""
    jobs = grid(["dense"], [0.9], [0, 1])
    tried = rehearsal(changed(RULES, epochs=1), examples=16)
    found = forecast(jobs, tried, devices=(1, 2), began=time.time() - 1000)
    assert [(line.pruner, line.jobs, line.train_passes) for line in found.lines] == [("dense", 2, 2 * 4 * 64 * 6)]
    seconds = found.total.train_seconds + found.total.score_seconds
    assert found.spans[1] - found.spans[2] == pytest.approx(seconds / 2)
    assert found.spans[1] > 1000 + seconds
    twice = Forecast(found.lines * 2, found.spans, 1, tried).as_json()
    assert twice["total"] == {column: 2 * value for column, value in found.as_json()["total"].items()}
    assert twice["total"]["jobs"] == 4
    assert twice["assumed"] == {"clean": 0.8, "robust": 0.5} and set(twice["seconds"]) == {"1", "2"}
