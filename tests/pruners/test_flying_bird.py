"""Flying Bird is right: exact counts after each update, the smallest dropped, the largest gradients grown, all paid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import exchange, resume
from prunebench.bench.lab.exchange import Breathing, Exchange, exchanged
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import draw, erk, uniform
from prunebench.pruners.baselines import Random
from prunebench.pruners.flying_bird import FlyingBird
from tests.lab.test_lab import PASSES
from tests.lab.test_resume import Cut
from tests.lab.test_train import TRAIN, VALIDATION, content, net, plan, some_masks, trained
from tests.pruners.test_pruners import ERK, RULES, SIZES, is_mask_of, kept, same, use
from tests.support.nets import changed

# 9 epochs of two steps: an update after every second of the first 12.
BIRD = FlyingBird(drop=0.5, delta=1 / 9, rest=1 / 3)
UPDATES = 6


def check_exchanged(function=exchanged):
    """Of 8 weights 4 are kept. Half are dropped: .1 and -.2. The free places want 3, 9, 5 and 1: 9 and 5 are grown.

    The dropped weights want 99, but they were not free.
    """
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    weight = torch.tensor([[0.1, -4.0, 3.0, -0.2], [0.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([[99.0, 0.0, 0.0, 99.0], [3.0, 9.0, 5.0, 1.0]])
    assert function(weight, wanted, mask, 0.5, 4).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]
    assert function(weight, wanted, mask, 0.49, 4).int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]  # 1.96 are 1
    assert function(weight, wanted, mask, 0.0, 4).equal(mask)
    assert function(weight, wanted, mask, 0.5, 5).int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]
    assert function(weight, wanted, mask, 0.5, 1).int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert function(weight, wanted, mask, 0.5, 8).all()
    assert function(weight, wanted, ~mask | mask, 0.5, 8).all()  # no free place, so nothing is dropped
    few = torch.tensor([[99.0, 0.0, 0.0, 99.0], [0.0, 9.0, 0.0, 0.0]])  # one place wants a weight, so one is dropped
    assert function(weight, few, mask, 0.5, 4).int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    assert function(weight, 0 * wanted, mask, 0.5, 4).equal(mask)
    assert function(weight, 0 * wanted, mask, 0.5, 5).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert function(weight, wanted, mask, 0.9, 7).int().tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_an_exchange_on_paper():
    check_exchanged()


@pytest.mark.parametrize(
    "twin", ["the largest dropped", "the least wanted grown", "for dead units", "one too many", "rounded up"]
)
def test_exchange_twin(twin):
    def broken(weight, wanted, mask, share, keep):
        if twin == "the largest dropped":
            weight = 1 / (1 + weight.abs())
        elif twin == "the least wanted grown":
            wanted = 1 / (1 + wanted)
        elif twin == "for dead units":
            wanted = wanted + 1e-9
        elif twin == "one too many":
            keep = min(keep + 1, mask.numel())
        else:
            share = math.ceil(share * int(mask.sum())) / int(mask.sum())
        return exchanged(weight, wanted, mask, share, keep)

    with pytest.raises(AssertionError):
        check_exchanged(broken)


def watch(monkeypatch):
    """What `remask` was given: step, weights, gradients, masks before and after, and the entering weights after it."""
    seen, real = [], Trainer.remask

    def remask(self, masks):
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name].detach().clone() for name in masks}
        gradients = {name: parameters[name].grad.clone() for name in masks}
        before = dict(self.masks)
        real(self, masks)
        entered = {name: parameters[name][masks[name] & ~before[name]].detach().clone() for name in masks}
        seen.append((self.steps, weights, gradients, before, dict(self.masks), entered))

    monkeypatch.setattr(Trainer, "remask", remask)
    return seen


def check_bird(tmp_path, monkeypatch):
    """Every update, recomputed from the weights and gradients that it saw."""
    seen = watch(monkeypatch)
    room, state = use(BIRD, tmp_path)
    (asked,) = room.asked
    assert kept(asked.masks) == ERK and [step for step, *_ in seen] == [2, 4, 6, 8, 10, 12]
    moved = 0
    for number, (_, weights, gradients, before, after, entered) in enumerate(seen):
        share = 0.25 * (1 + math.cos(math.pi * number / UPDATES))
        assert kept(after) == ERK
        for name, count in ERK.items():
            free = int((gradients[name][~before[name]] != 0).sum())
            drop = min(math.floor(share * count), free)
            out, new = before[name] & ~after[name], after[name] & ~before[name]
            assert int(out.sum()) == int(new.sum()) == drop
            stays, wants = weights[name][before[name] & after[name]].abs(), gradients[name][new].abs()
            assert not entered[name].any()
            if drop:
                assert weights[name][out].abs().max() <= stays.min()
                assert wants.min() >= gradients[name][~before[name] & ~new].abs().max()
            moved += drop
    assert moved > 1908  # more than one full mask has been exchanged
    assert is_mask_of(seen[-1][4], state)  # and then it rested
    return asked, state


def test_counts_are_exact_the_smallest_dropped_and_the_most_wanted_grown(tmp_path, monkeypatch):
    check_bird(tmp_path, monkeypatch)


@pytest.mark.parametrize("twin", ["random growth", "among all", "one weight too many", "no decay"])
def test_bird_twin(twin, tmp_path, monkeypatch):
    def broken(weight, wanted, mask, share, keep):
        if twin == "random growth":
            wanted = torch.rand(weight.shape, generator=torch.Generator())
        elif twin == "among all":
            stayed = exchanged(weight, wanted, mask, share, keep) & mask
            return stayed | exchanged(weight, torch.where(stayed, -1.0, wanted), stayed, 0.0, keep)
        return exchanged(weight, wanted, mask, 0.5 if twin == "no decay" else share, keep + (twin[:3] == "one"))

    monkeypatch.setattr(exchange, "exchanged", broken)
    with pytest.raises(AssertionError):
        check_bird(tmp_path, monkeypatch)


def test_without_drops_it_is_random_bit_for_bit(tmp_path, monkeypatch):
    seen = watch(monkeypatch)
    room, state = use(replace(BIRD, drop=0.0), tmp_path)
    other, expected = use(Random(), tmp_path)
    assert len(seen) == UPDATES and same(state, expected)
    assert same(room.asked[0].start, other.asked[0].start)
    assert not same(use(BIRD, tmp_path)[1], expected)  # the twin


BREATHING = Breathing(0.5, 1, 6, keep=4000, room=0.5, parts=(TRAIN.take(slice(0, 9)), VALIDATION), passes=1)


@pytest.mark.parametrize("scheme", [Exchange(0.5, 1, 6), Exchange(0.5, 3, 2, seed=4), BREATHING], ids=str)
@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_resumed_it_ends_in_the_same_bytes(scheme, after, tmp_path):
    how, partial, masks = replace(plan(), scheme=scheme), tmp_path / "partial", some_masks()

    def report(what, done, of):
        if done == after:
            raise Cut

    with pytest.raises(Cut):
        trained(how, masks=masks, partial=partial, report=report)
    seen = []
    resumed = trained(how, masks=masks, partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == list(range(after + 1, 5)) and content(resumed) == content(trained(how, masks=masks))


def test_a_resume_without_its_count_and_gap_is_found(tmp_path, monkeypatch):
    partial, masks, real = tmp_path / "partial", some_masks(), resume.load_stage
    how = replace(plan(), scheme=BREATHING)

    def report(what, done, of):
        if done == 2:
            raise Cut

    with pytest.raises(Cut):
        trained(how, masks=masks, partial=partial, report=report)

    def forgetful(path):
        if (found := real(path)) is None:
            return None
        fresh = {"held/count": torch.tensor(1), "held/gap": torch.tensor(9.0)}
        return {name: fresh.get(name, tensor) for name, tensor in found[0].items()}, found[1]

    monkeypatch.setattr(resume, "load_stage", forgetful)
    assert content(trained(how, masks=masks, partial=partial)) != content(trained(how, masks=masks))


# The count starts at 1908; the room closes from .4 to .3, .2, .1 and 0. .1 > 0: 1717.2. .2 > .1: 1545.3. The gap has
# not grown: 1699.5. .3 > .2: 1530, but the room allows no less than 1717.2. The last one is the count asked for.
GAPS, BREATHS = [0.1, 0.2, 0.2, 0.3, 0.1], [1717, 1545, 1700, 1717, 1908]


def scripted(monkeypatch):
    """Validations of `plus` that give GAPS; returns the numbers of images that they saw."""
    gaps, seen, real = iter(GAPS), [], Trainer.validate

    def validate(self, part, seed):
        if seed != self.steps:  # the training's own
            return real(self, part, seed)
        seen.append(len(part))
        return {"clean": 1.0, "robust": 0.5 + next(gaps) if len(part) == 128 else 0.5}

    monkeypatch.setattr(Trainer, "validate", validate)
    return seen


def check_plus(tmp_path, monkeypatch):
    """18 epochs pay for 11 and 5 measurements (2112 passes, 1.4 epochs each); every third of 22 steps, up to 16."""
    masks, images = watch(monkeypatch), scripted(monkeypatch)
    _, state = use(replace(BIRD, plus=True, delta=1 / 8, rest=0.25), tmp_path, rules=changed(RULES, units=6.0))
    counts = [kept(after) for *_, after, _ in masks]
    assert [sum(count.values()) for count in counts] == BREATHS
    shapes = {name: mask.shape for name, mask in masks[0][3].items()}
    assert counts == [erk(shapes, breath) for breath in BREATHS] and counts[-1] == ERK
    assert is_mask_of(masks[-1][4], state) and images == [128, 64] * 5


def test_plus_breathes_with_the_gap_and_ends_at_the_asked_count(tmp_path, monkeypatch):
    check_plus(tmp_path, monkeypatch)


@pytest.mark.parametrize("twin", ["the other way", "the last gap forgotten", "room to the end", "one density for all"])
def test_plus_twin(twin, tmp_path, monkeypatch):
    real = Breathing.counts

    def broken(self, run):
        if twin == "the other way":
            self = replace(self, parts=self.parts[::-1])
        elif twin == "the last gap forgotten":
            run.held["gap"] = torch.zeros_like(run.held["gap"])
        elif twin == "room to the end":
            self = replace(self, updates=10**9)
        counts = real(self, run)
        if twin == "one density for all":
            return uniform({name: mask.shape for name, mask in run.masks.items()}, sum(counts.values()))
        return counts

    monkeypatch.setattr(Breathing, "counts", broken)
    with pytest.raises(AssertionError):
        check_plus(tmp_path, monkeypatch)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_budget_is_used_and_the_measurements_are_paid(plus, shuffle, tmp_path, monkeypatch):
    """A measurement sees 128 + 64 images at 3 steps of PGD and two forwards: 2112 passes; an epoch costs 1536."""
    seen = watch(monkeypatch)
    room, state = use(replace(BIRD, plus=plus, shuffle=shuffle), tmp_path, rules=changed(RULES, units=6.0))
    epoch, each = 128 * PASSES["pgd"], (128 + 64) * (3 * 3 + 2)
    assert (epoch, each, len(seen) >= 4) == (1536, 2112, True)
    assert room.meter.spent == room.asked[0].options["epochs"] * epoch + plus * len(seen) * each
    assert 0 <= room.meter.granted - room.meter.spent < (epoch if plus else 1)
    masks = seen[-1][4]
    assert kept(masks) == ERK and not any(state[name][~masks[name]].any() for name in SIZES)


def test_shuffle_grows_elsewhere(tmp_path, monkeypatch):
    seen = watch(monkeypatch)
    use(BIRD, tmp_path)
    use(replace(BIRD, shuffle=True), tmp_path)
    first, other = seen[0], seen[UPDATES]
    assert same(first[3], other[3]) and same(first[1], other[1])  # the same until then
    for name in SIZES:
        dropped = [before[name] & ~after[name] for _, _, _, before, after, _ in (first, other)]
        grown = [after[name] & ~before[name] for _, _, _, before, after, _ in (first, other)]
        assert torch.equal(*dropped) and not torch.equal(*grown) and int(grown[0].sum()) == int(grown[1].sum())
    assert kept(seen[-1][4]) == kept(seen[UPDATES - 1][4]) == ERK


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop": 1.0}, "drop = 1.0"),
        ({"drop": -0.1}, "drop = -0.1"),
        ({"room": 1.0}, "room = 1.0"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"delta": 0.2, "rest": 0.25}, "4 . delta . rest"),
        ({"rest": -0.1}, "rest = -0.1"),
        ({"delta": math.nan}, "delta = nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FlyingBird(**options)


def test_a_training_too_short_for_four_updates_is_refused_before_it_starts(tmp_path):
    with pytest.raises(PrunebenchError, match=r"4 steps of training .* have 3 updates .* needs 4; raise the epochs"):
        use(FlyingBird(), tmp_path, rules=changed(RULES, units=1.0, epochs=2))


@pytest.mark.parametrize(("rest", "updates"), [(0.0, 9), (0.25, 7), (0.05, 9)])
def test_what_grows_last_is_trained_for_a_step(rest, updates):
    """Of 100 steps with an update every 10, one after the last step would leave its grown weights at zero."""
    scheme = FlyingBird(delta=0.1, rest=rest)._scheme(None, 100)  # a lab is asked for shuffles and for `plus` alone
    assert (scheme.every, scheme.updates) == (10, updates) and scheme.every * scheme.updates < 100


def test_a_layer_without_weights_is_refused_before_it_starts(tmp_path):
    """Of 38,160 weights 8 stay: .25, .6, 6.3 and .8, of which the first rounds to none."""
    with pytest.raises(PrunebenchError, match=r"No weights would be left in 1\.0\.weight"):
        use(FlyingBird(), tmp_path, sparsity=0.9998)


def test_the_least_count_that_plus_may_reach_leaves_no_layer_empty(tmp_path):
    """ERK gives the first layer 23 of 727 shares: of 400 weights 12.7, of a fiftieth .25, which rounds to none."""
    use(FlyingBird(room=0.98), tmp_path, sparsity=1 - 400 / 38_160)
    with pytest.raises(PrunebenchError, match=r"No weights would be left in 1\.0\.weight"):
        use(FlyingBird(plus=True, room=0.98), tmp_path, sparsity=1 - 400 / 38_160)


def test_weights_that_became_nan_are_reported(tmp_path):
    weights = {"1.0.weight": torch.full((16, 1, 3, 3), torch.nan)}
    masks = draw({"1.0.weight": (16, 1, 3, 3)}, {"1.0.weight": 50}, torch.Generator())
    it = Trainer(net(), replace(plan(), scheme=Exchange(0.5, 1, 9)), masks, torch.device("cpu"))
    it.model.load_state_dict(it.model.state_dict() | weights)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator())
    with pytest.raises(PrunebenchError, match=r"1\.0\.weight are NaN"):
        it.step(images, torch.zeros(4, dtype=torch.long), 0.0, torch.Generator())
