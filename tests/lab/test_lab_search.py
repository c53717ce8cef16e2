"""What a lab lends to a search: loops that resume, scores that are trained alone, prices on paper, another pruner."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import prunebench.bench.lab.backend
import prunebench.bench.lab.lab
import prunebench.bench.lab.schemes
from prunebench.bench.attacks.base import within
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.data import as_float
from prunebench.bench.errors import BudgetExceeded, PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import keep_largest_by_layer, masked, scaled_scores, uniform
from tests.lab.test_lab import PASSES, counting
from tests.support.nets import STORE, changed, lab

RULES = changed(train=128, units=3.0, validate_every=100)  # nine epochs of two batches of 64
GRANTED = 9 * 128 * 12


class Killed(BaseException):
    """The end of a process, as far as the code under test can tell."""


# The loop. Its answer on paper: x -> 2 x + index from x = 1 is 2, 5, 12, 27, 58.

START = {"x": torch.tensor([1.0]), "mask": torch.tensor([True, False]), "count": torch.tensor(0)}


def stepping(calls, *, kill=None):
    """A pure step that notes its calls; with `kill`, the process ends in the middle of that one."""

    def step(state, index):
        calls.append(index)
        if index == kill:
            raise Killed
        return {"x": 2 * state["x"] + index, "mask": ~state["mask"], "count": state["count"] + 1}

    return step


def loop(room, step, *, start=START, steps=5, passes=7, facts=None, stage="search"):
    return room.loop(stage, start, step, steps=steps, passes=passes, facts=facts)


def is_answer(state):
    assert torch.equal(state["x"], torch.tensor([58.0])) and torch.equal(state["count"], torch.tensor(5))
    assert torch.equal(state["mask"], torch.tensor([False, True]))


def test_a_loop_is_its_steps_one_after_the_other(tmp_path):
    room, calls = lab(tmp_path, RULES), []
    is_answer(loop(room, stepping(calls)))
    assert calls == [0, 1, 2, 3, 4]
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [("search", 7)]
    assert START["x"] == 1  # left as it was
    assert torch.equal(loop(room, stepping(calls), steps=0)["x"], START["x"])


def test_a_loop_is_computed_once_and_charged_to_each(tmp_path):
    calls, rooms = [], [lab(tmp_path, RULES) for _ in range(2)]
    for room, name in zip(rooms, "ab", strict=True):
        is_answer(loop(room, stepping(calls), stage=name))
        assert [(stage.name, stage.passes) for stage in room.meter.stages] == [(name, 7)]
    assert len(calls) == 5
    assert rooms[0].meter.stages[0].seconds == rooms[1].meter.stages[0].seconds


def check_resumes(tmp_path, monkeypatch, step=stepping):
    """Killed in the fourth step, then run again: it goes on there and ends in the same bytes."""
    monkeypatch.setattr(prunebench.bench.lab.backend, "SAVE_EVERY", -1.0)  # after every step
    calls = []
    with pytest.raises(Killed):
        loop(lab(tmp_path, RULES), step(calls, kill=3))
    assert calls == [0, 1, 2, 3]
    is_answer(loop(lab(tmp_path, RULES), step(calls)))
    assert calls == [0, 1, 2, 3, 3, 4]


def test_a_killed_loop_goes_on(tmp_path, monkeypatch):
    check_resumes(tmp_path, monkeypatch)


def test_twin_a_step_that_remembers(tmp_path, monkeypatch):
    def impure(calls, kill=None):
        taken = [0]

        def step(state, index):
            calls.append(index)
            if index == kill:
                raise Killed
            taken[0] += 1  # starts at zero again in the next process
            return {"x": 2 * state["x"] + taken[0] - 1, "mask": ~state["mask"], "count": state["count"] + 1}

        return step

    is_answer(loop(lab(tmp_path / "whole", RULES), impure([])))  # right as long as nobody kills it
    with pytest.raises(AssertionError):
        check_resumes(tmp_path, monkeypatch, impure)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_loop_whose_partial_file_is_spoilt_begins_again(spoil, tmp_path, monkeypatch):
    monkeypatch.setattr(prunebench.bench.lab.backend, "SAVE_EVERY", -1.0)
    calls = []
    with pytest.raises(Killed):
        loop(lab(tmp_path, RULES), stepping(calls, kill=3))
    (partial,) = tmp_path.rglob("partial.safetensors")
    partial.write_bytes(spoil(partial.read_bytes()))
    is_answer(loop(lab(tmp_path, RULES), stepping(calls)))
    assert calls == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_a_loop_tells_how_far_it_is_and_saves_now_and_then(tmp_path):
    told, calls = [], []
    loop(lab(tmp_path, RULES, report=lambda *what: told.append(what)), stepping(calls))
    assert told == [(f"search: step {k}/5", k, 5) for k in range(1, 6)]
    with pytest.raises(Killed):
        loop(lab(tmp_path, RULES), stepping(calls, kill=3), facts="other")
    assert not list(tmp_path.rglob("partial.safetensors"))  # five seconds have not gone by


def written(folder, text):
    """A module of its own with a step that notes its calls."""
    path = folder / "search.py"
    path.write_text(f"calls = []\n\ndef step(state, index):\n    calls.append(index)\n    return {text}\n")
    spec = importlib.util.spec_from_file_location("search", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loop_is_computed_anew_when_anything_it_depends_on_is_another(tmp_path):
    calls = []
    room = lab(tmp_path, RULES)
    loop(room, stepping(calls), facts=[1])
    for options in ({"facts": [2]}, {"start": START | {"x": torch.tensor([1.5])}, "facts": [1]}, {"steps": 6}):
        before = len(calls)
        loop(room, stepping(calls), **{"facts": [1], **options})
        assert len(calls) > before, options
    before = len(calls)
    loop(room, stepping(calls), facts=[1])
    assert len(calls) == before  # but the first is still there
    others = [
        changed(RULES, threat=RULES.threat.model_copy(update={"eps": "0.1"})),
        changed(RULES, steps=2),
        changed(RULES, step_size="0.05"),
        changed(RULES, batch=32),
        changed(RULES, train=64),
    ]
    for rules in others:  # what lab.attack and lab.sample give
        loop(lab(tmp_path, rules), stepping(calls), facts=[1])
        assert len(calls) == before + 5
        before = len(calls)
    loop(
        Lab(Job(pruner="any", sparsity=0.9, seed=1), RULES, STORE, Computed(tmp_path / "stages")),
        stepping(calls),
        facts=[1],
    )
    assert len(calls) == before + 5


def test_a_loop_whose_code_is_mended_is_computed_anew(tmp_path):
    first = written(tmp_path, "state | {'x': state['x'] + 1}")
    assert loop(lab(tmp_path, RULES), first.step)["x"] == 6 and len(first.calls) == 5
    same = written(tmp_path, "state | {'x': state['x'] + 1}")
    assert loop(lab(tmp_path, RULES), same.step)["x"] == 6 and not same.calls
    mended = written(tmp_path, "state | {'x': state['x'] + 2}")
    assert loop(lab(tmp_path, RULES), mended.step)["x"] == 11 and len(mended.calls) == 5


def test_a_loop_that_costs_too_much_takes_no_step(tmp_path):
    room, calls = lab(tmp_path, RULES), []
    with pytest.raises(BudgetExceeded, match=f"'search' costs {GRANTED + 1} sample passes, but only"):
        loop(room, stepping(calls), passes=GRANTED + 1)
    assert not calls and not room.meter.stages
    loop(room, stepping(calls), passes=GRANTED)
    with pytest.raises(BudgetExceeded, match="costs 1 sample passes, but only 0"):
        loop(room, stepping(calls), passes=1)  # nor is it for nothing when it is in the store
    assert len(calls) == 5


# Prices


def test_what_the_budget_buys(tmp_path):
    """Nine epochs of 128 images at 12 passes: 6.75 of TRADES (16 passes), 18 of FGSM (6)."""
    room = lab(tmp_path, RULES)
    assert PASSES == {"pgd": 12, "trades": 16, "fgsm-rs": 6} and room.meter.granted == GRANTED
    thirds = {name: room.divided(name, {"a": 1 / 3}, [1], "b") for name in PASSES}
    assert thirds == {"pgd": [3, 6], "trades": [2, 4], "fgsm-rs": [6, 12]}  # of 9, 6 and 18 epochs
    assert room.left == room.epochs == 9
    room.meter.charge("a pass", 1)
    assert room.left == 8
    room.meter.charge("up to an epoch", 128 * 12 - 1)
    assert room.left == 8
    room.meter.charge("all but a pass", 8 * 128 * 12 - 1)
    assert room.left == 0


def test_samples_are_training_images_with_their_labels(tmp_path):
    room = lab(tmp_path, RULES)
    images, labels = room.sample("a", 500)  # more than there are: with replacement
    assert images.shape == (500, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() >= 0 and images.max() == 1
    pixels, numbers = as_float(room.train.images), room.train.labels
    known = {(one.numpy().tobytes(), int(label)) for one, label in zip(pixels, numbers, strict=True)}
    seen = {(one.numpy().tobytes(), int(label)) for one, label in zip(images, labels, strict=True)}
    assert seen <= known and len(seen) > 100
    again = lab(tmp_path, RULES).sample("a", 500)
    assert torch.equal(again[0], images) and torch.equal(again[1], labels)
    assert not torch.equal(room.sample("b", 500)[1], labels)
    other = Lab(Job(pruner="any", sparsity=0.9, seed=1), RULES, STORE, Computed(tmp_path / "stages"))
    assert not torch.equal(other.sample("a", 500)[1], labels)


def test_the_attack_is_the_trainings_and_costs_what_it_says(tmp_path):
    room, seen = lab(tmp_path, RULES), []
    net = room.model().eval()
    images, labels = room.sample("a", 20)

    def watched(at):
        seen.append(at)
        return net(at)

    adversarial = room.attack(watched, images, labels, name="a")
    assert len(seen) == 3 and room.attack_passes == 3 * (1 + 2)  # steps, each a forward and a backward
    assert torch.equal(adversarial, within(adversarial, images, RULES.threat)) and not adversarial.requires_grad
    with torch.no_grad():
        assert F.cross_entropy(net(adversarial), labels) > F.cross_entropy(net(images), labels)
    assert torch.equal(adversarial, lab(tmp_path, RULES).attack(net, images, labels, name="a"))
    assert not torch.equal(adversarial, room.attack(net, images, labels, name="b"))
    assert room.meter.spent == 0  # it is for the loop that uses it to charge


def test_the_attack_is_pgd_by_the_protocol(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        prunebench.bench.lab.lab,
        "pgd",
        lambda *arguments, **options: asked.append(options) or pgd(*arguments, **options),
    )
    room = lab(tmp_path, RULES)
    images, labels = room.sample("a", 2)
    room.attack(room.model().eval(), images, labels, name="a")
    assert asked[0]["steps"] == 3 and asked[0]["step_size"] == 0.075


# Batch norm


def statistics(room, images):
    """Mean and variance of the first convolution's output over the batch and the picture, each channel."""
    out = room.model().get_submodule("1.0")(room.model().get_submodule("0")(images)).detach()
    flat = out.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, unbiased=True)


def check_calibrated(room):
    """Two batches: the plain average of what each has, in the first layer; all else as it was."""
    start = room.initial()
    state = room.calibrated("c", start, batches=2)
    batches = [statistics(room, room.sample(f"c {number}", 64)[0]) for number in range(2)]
    for name, values in zip(("1.1.running_mean", "1.1.running_var"), zip(*batches, strict=True), strict=True):
        torch.testing.assert_close(state[name], torch.stack(values).mean(0), rtol=1e-5, atol=1e-6)
    assert state["1.1.num_batches_tracked"] == state["1.4.num_batches_tracked"] == 2
    still = [name for name in start if "running" not in name and "tracked" not in name]
    assert state.keys() == start.keys() and all(torch.equal(state[name], start[name]) for name in still)
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [("c", 2 * 64)]


def test_calibration_averages_the_statistics_of_the_batches(tmp_path):
    check_calibrated(lab(tmp_path, RULES))
    small = lab(tmp_path, changed(RULES, train=40, batch=64))  # a batch is no more than there is
    small.calibrated("c", small.initial(), batches=3)
    assert small.meter.spent == 3 * 40


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_calibration_twin_a_running_average(momentum, tmp_path, monkeypatch):
    """With a momentum the statistics would hold what they began with, or the last batch alone."""
    monkeypatch.setattr(
        torch.nn.BatchNorm2d, "momentum", property(lambda self: momentum, lambda self, value: None), raising=False
    )
    with pytest.raises(AssertionError):
        check_calibrated(lab(tmp_path, RULES))


def test_calibration_is_within_the_budget_and_in_training_mode_for_nobody_else(tmp_path):
    room = lab(tmp_path, RULES)
    start = room.initial()
    with pytest.raises(BudgetExceeded, match="'c' costs"):
        room.calibrated("c", start, batches=GRANTED // 64 + 1)
    room.calibrated("c", start, batches=1)
    assert start["1.1.num_batches_tracked"] == 0


# Scores that are trained alone


def scores_of(room, start):
    return scaled_scores({name: start[name] for name in room.shapes})


def check_scores_alone(room):
    """Only scores and batch norm's statistics move; a score whose weight is zero has no gradient and stays."""
    start = room.initial()
    for name in room.shapes:
        start[name].view(-1)[::7] = 0.0
    scores = {name: score + 0.01 for name, score in scores_of(room, start).items()}
    found, state = room.fit_scores("search", start, scores, uniform(room.shapes, room.keep), epochs=2)
    statistics = {name for name in start if "running" in name or "tracked" in name}
    assert state.keys() == start.keys() and len(statistics) == 6
    for name in start:
        assert torch.equal(state[name], start[name]) is (name not in statistics), name
    for name in room.shapes:
        still, moved = start[name] == 0, start[name] != 0
        assert torch.equal(found[name][still], scores[name][still])  # no weight decay
        assert not torch.equal(found[name][moved], scores[name][moved])
        assert bool((found[name] != scores[name]).sum() > uniform(room.shapes, room.keep)[name])  # pruned ones, too
    return found, state


def test_scores_are_trained_alone_and_without_weight_decay(tmp_path):
    found, state = check_scores_alone(lab(tmp_path, RULES))
    lab(tmp_path, RULES).model(state)  # a plain state dict
    assert found.keys() == lab(tmp_path, RULES).shapes.keys()


@pytest.mark.parametrize("twin", ["weight decay", "weights are trained", "affine part is trained"])
def test_scores_alone_twin(twin, tmp_path, monkeypatch):
    plan, attach = Lab._plan, prunebench.bench.lab.schemes.attach_scores

    def attached(model, scores, keeps, **how):
        attach(model, scores, keeps, **how)
        for name, parameter in model.named_parameters():
            if name.endswith("original" if twin == "weights are trained" else "1.1.weight"):
                parameter.requires_grad_(True)

    if twin == "weight decay":
        monkeypatch.setattr(
            Lab, "_plan", lambda self, stage, changes, *span: plan(self, stage, changes | {"weight_decay": 0.01}, *span)
        )
    else:
        monkeypatch.setattr(prunebench.bench.lab.schemes, "attach_scores", attached)
    with pytest.raises(AssertionError):
        check_scores_alone(lab(tmp_path, RULES))


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_a_training_of_scores_costs_as_much_as_one_of_weights(objective, tmp_path):
    room = lab(tmp_path, RULES)
    start = room.initial()
    keeps = uniform(room.shapes, room.keep)
    room.fit_scores("search", start, scores_of(room, start), keeps, epochs=2, objective=objective)
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [("search", 2 * 128 * PASSES[objective])]
    with pytest.raises(BudgetExceeded, match="'more' costs"):
        room.fit_scores("more", start, scores_of(room, start), keeps, epochs=99, objective=objective)


def test_a_training_of_scores_is_computed_once_for_the_same_scores_weights_and_counts(tmp_path, monkeypatch):
    plans, room = counting(monkeypatch), lab(tmp_path, changed(RULES, units=99.0))
    start = room.initial()
    scores, keeps = scores_of(room, start), uniform(room.shapes, room.keep)
    bent = start | {"1.9.bias": start["1.9.bias"] + 1e-6}
    asked = [
        (start, scores, keeps),
        (bent, scores, keeps),
        (start, {name: -score for name, score in scores.items()}, keeps),
        (start, scores, uniform(room.shapes, room.keep - 1)),
    ]
    for _ in range(2):
        for weights, with_scores, counts in asked:
            room.fit_scores("search", weights, with_scores, counts, epochs=1)
    assert len(plans) == len(asked)
    room.fit("search", start, epochs=1, lr=RULES.training.lr)
    assert len(plans) == len(asked) + 1  # the training of the weights is another


def test_a_killed_training_of_scores_goes_on(tmp_path):
    def work(folder, report=None):
        room = lab(tmp_path / folder, RULES, report=report)
        start = room.initial()
        return room.fit_scores("search", start, scores_of(room, start), uniform(room.shapes, room.keep), epochs=3)

    def report(what, done, of):
        told.append(done)
        if len(told) == 2:
            raise Killed

    told = []
    with pytest.raises(Killed):
        work("cut", report)
    cut, whole = work("cut", report), work("whole")
    assert told == [1, 2, 3]
    for one, other in zip(cut, whole, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_net_that_trains_scores_is_seen_through_the_mask(tmp_path, monkeypatch):
    """At the first step the net is the one under the mask: the same logits, to the bit."""
    room, nets, real = lab(tmp_path, RULES), [], prunebench.bench.lab.backend.fit
    start = room.initial()
    scores, keeps = scores_of(room, start), uniform(room.shapes, room.keep)
    images = room.sample("a", 5)[0]

    def fit(model, plan, *arguments, **options):
        scored = copy.deepcopy(model)
        plan.scheme.attach(scored)
        nets.append(scored.eval()(images).detach())
        return real(model, plan, *arguments, **options)

    monkeypatch.setattr(prunebench.bench.lab.backend, "fit", fit)
    room.fit_scores("search", start, scores, keeps, epochs=1)
    masks = keep_largest_by_layer({name: start[name].abs() for name in keeps}, keeps)
    assert torch.equal(nets[0], room.model(masked(start, masks)).eval()(images))


# Another pruner inside the budget


@dataclass(frozen=True)
class Within:
    """Trains as many epochs as it is told in a lab that it remembers."""

    epochs: int
    rooms: list

    def __call__(self, job, room):
        self.rooms.append((job, room))
        return room.fit("inside", room.initial(), epochs=self.epochs).weights


def runner(tmp_path, epochs):
    """A lab whose registry has one pruner, and the labs that this one was called in."""
    rooms = []
    return lab(tmp_path, RULES, resolve=lambda name: Within(epochs, rooms)), rooms


def test_another_pruner_runs_inside_the_budget(tmp_path):
    room, rooms = runner(tmp_path, 2)
    state = room.run("it", name="ticket", sparsity=0.5, epochs=2)
    ((job, inner),) = rooms
    assert job.sparsity == inner.job.sparsity == 0.5 and job.seed == room.job.seed
    assert inner.keep == inner.prunable // 2 and room.keep == room.prunable // 10
    assert inner.epochs == 2 and inner.meter.granted == 2 * 128 * 12
    assert inner.left == 0
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [("ticket: inside", 2 * 128 * 12)]
    own = room.fit("own", room.initial(), epochs=2).weights
    assert all(torch.equal(own[name], state[name]) for name in state)  # the same stage: computed once
    assert room.epochs == 9 and room.left == 5


def test_another_pruner_cannot_overspend(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    room, rooms = runner(tmp_path, 3)
    with pytest.raises(BudgetExceeded, match="'inside' costs"):
        room.run("it", name="ticket", sparsity=0.5, epochs=2)  # the pruner wants more than it was lent
    assert len(rooms) == 1 and not room.meter.stages
    room.meter.charge("before", 7 * 128 * 12)
    with pytest.raises(BudgetExceeded, match="'ticket' costs"):
        room.run("it", name="ticket", sparsity=0.5, epochs=3)  # more is lent than is left
    assert len(rooms) == 1 and not plans and room.meter.spent == 7 * 128 * 12


def test_a_lab_without_a_registry_says_so(tmp_path):
    with pytest.raises(PrunebenchError, match="no registry of pruners, so it cannot run 'imp'"):
        lab(tmp_path, RULES).run("imp", name="ticket", sparsity=0.5, epochs=2)
