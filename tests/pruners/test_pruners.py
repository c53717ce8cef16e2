"""Each pruner does what its paper says: "right when" of the methods, on labs that write down what they were asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from prunebench.bench import pattern
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.lab import backend
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.mask import keep_largest, shuffled
from prunebench.pruners import baselines, imp
from prunebench.pruners.baselines import Dense, Magnitude, Random
from prunebench.pruners.imp import IMP
from tests.support.nets import STORE, changed, job, lab

RULES = changed(train=128, units=3.0, validate_every=100)  # 9 epochs of two steps
SIZES = {"1.0.weight": 16 * 9, "1.3.weight": 32 * 16 * 9, "1.7.weight": 512 * 64, "1.9.weight": 64 * 10}
WHOLE = sum(SIZES.values())
PRUNERS = [Dense(), Random(), Magnitude(), IMP(rounds=3, least=1), IMP(rounds=1, rewind=0)]


@pytest.fixture(autouse=True)
def blind(monkeypatch):
    """Trainings of a few steps may leave a layer empty; what a pruner does with its masks is looked at here."""
    monkeypatch.setattr(backend, "refuse_blind", lambda *_: None)


@dataclass(frozen=True)
class Asked:
    """One call of `lab.fit`: the stage, what training began with, the options, and what it left."""

    stage: str
    start: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor] | None
    options: dict[str, object]
    trained: Trained


class Watched(Lab):
    """A lab that writes down what it is asked for."""

    def fit(self, stage, start, *, masks=None, **options):
        """As Lab.fit."""
        self.asked = getattr(self, "asked", [])
        start = {name: tensor.clone() for name, tensor in start.items()}
        trained = super().fit(stage, start, masks=masks, **options)
        self.asked.append(Asked(stage, start, masks, options, trained))
        return trained


def use(pruner, tmp_path, sparsity=0.95, rules=RULES):
    """The lab that `pruner` was let work in, and what it returned."""
    room = lab(tmp_path, rules, sparsity=0.0 if isinstance(pruner, Dense) else sparsity, kind=Watched)
    return room, pruner(room.job, room)


def same(one, other, *, where=None):
    """Whether two states are equal bit for bit; `where`: masks that say which weights to look at."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name][where[name]], other[name][where[name]])
        if where is not None and name in where
        else torch.equal(one[name], other[name])
        for name in one
    )


def kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def is_mask_of(masks, state):
    return all(torch.equal(masks[name], state[name] != 0) for name in masks)


def test_the_net_of_these_tests(tmp_path):
    assert {name: math.prod(shape) for name, shape in lab(tmp_path).shapes.items()} == SIZES
    assert lab(tmp_path, sparsity=0.95).keep == WHOLE - math.ceil(0.95 * WHOLE) == 1908


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_all_spend_the_same_budget_to_the_last_pass_and_pass_the_seal(pruner, shuffle, tmp_path):
    pruner = type(pruner)(**{**vars(pruner), "shuffle": shuffle})
    room, state = use(pruner, tmp_path)
    steps = 3 * 3 * 2  # units, epochs a unit, whole batches of 64 in 128 images
    assert room.meter.spent == room.meter.granted == steps * 64 * (3 * RULES.training.steps + 3)
    prunes = not isinstance(pruner, Dense)
    header = Header(
        arch=RULES.model,
        classes=10,
        shape=(1, 8, 8),
        protocol=RULES,
        job=job(sparsity=0.0).model_copy(update={"sparsity": 0.95 if prunes else 0.0}),
        source=None,
        train_sha256=room.train_sha256,
        stages=tuple(room.meter.stages),
    )
    seal(tmp_path / "net", state, header, passes_granted=room.meter.granted)
    assert open_net(tmp_path / "net").id.nonzero == (1908 if prunes else WHOLE)


def test_dense_is_one_training(tmp_path):
    room, state = use(Dense(), tmp_path)
    (asked,) = room.asked
    assert asked.masks is None and asked.options == {"epochs": 9}
    assert same(asked.start, room.initial()) and same(state, asked.trained.weights)


# Random: ERK shares are the sums of the dimensions, 23 : 54 : 576 : 74 of 727, so of 1908 weights the layers get 60.36,
# 141.72, 1511.71 and 194.21; the two that rounding down leaves go to the largest remainders.
ERK = {"1.0.weight": 60, "1.3.weight": 142, "1.7.weight": 1512, "1.9.weight": 194}


def check_random(tmp_path):
    room, state = use(Random(), tmp_path)
    (asked,) = room.asked
    assert kept(asked.masks) == ERK
    assert is_mask_of(asked.masks, asked.start) and is_mask_of(asked.masks, state)
    fresh = room.initial()
    for name, size in SIZES.items():
        mask, density = asked.masks[name], ERK[name] / size
        torch.testing.assert_close(asked.start[name][mask] * density**0.5, fresh[name][mask])
    others = fresh.keys() - SIZES.keys()
    assert all(torch.equal(asked.start[name], fresh[name]) for name in others)


def test_random_draws_erk_masks_at_initialisation_and_rescales(tmp_path):
    check_random(tmp_path)


@pytest.mark.parametrize("broken", ["erk", "rescaled"])
def test_random_twin(broken, tmp_path, monkeypatch):
    twins = {
        "erk": lambda shapes, keep: {name: round(keep * SIZES[name] / WHOLE) for name in shapes},  # uniform densities
        "rescaled": lambda state, masks, **how: (
            state | {name: torch.where(mask, state[name], 0.0) for name, mask in masks.items()}
        ),
    }
    monkeypatch.setattr(baselines, broken, twins[broken])
    with pytest.raises(AssertionError):
        check_random(tmp_path)


def check_magnitude(tmp_path):
    room, state = use(Magnitude(dense=2 / 3, lr=0.25), tmp_path)
    dense, tuned = room.asked
    assert dense.masks is None and dense.options == {"epochs": 6} and same(dense.start, room.initial())
    assert tuned.options == {"epochs": 3, "lr": 0.25 * RULES.training.lr}
    weights, masks = dense.trained.weights, tuned.masks
    cut = torch.cat([weights[name][~masks[name]].abs() for name in SIZES])
    stay = torch.cat([weights[name][masks[name]].abs() for name in SIZES])
    assert len(stay) == 1908 and stay.min() >= cut.max()
    assert is_mask_of(masks, tuned.start) and same(tuned.start, weights, where=masks)
    assert is_mask_of(masks, state) and same(state, tuned.trained.weights)
    assert not same(state, weights, where=masks)  # it was tuned at all


def test_magnitude_keeps_the_largest_and_tunes_under_that_mask(tmp_path):
    check_magnitude(tmp_path)


@pytest.mark.parametrize("twin", ["one weight too many", "layer by layer", "the smallest"])
def test_magnitude_twin(twin, tmp_path, monkeypatch):
    def choose(scores, keep, among=None):
        if twin == "one weight too many":
            return keep_largest(scores, keep + 1)
        if twin == "the smallest":
            return keep_largest({name: -score for name, score in scores.items()}, keep)
        shares = {name: keep * SIZES[name] // WHOLE for name in SIZES}
        shares["1.7.weight"] += keep - sum(shares.values())
        return {name: keep_largest({name: scores[name]}, shares[name])[name] for name in scores}

    monkeypatch.setattr(pattern, "keep_largest", choose)
    with pytest.raises(AssertionError):
        check_magnitude(tmp_path)


def check_imp(tmp_path):
    """Three rounds: 9 epochs are 1 to the rewind point, 1 for each search, 5 for the ticket."""
    room, state = use(IMP(rounds=3, least=1, rewind=1, search=0.5), tmp_path)
    early, *searches, final = room.asked
    assert len(searches) == 3
    assert early.options == {"epochs": 2, "stop": 1} and same(early.start, room.initial())
    assert [asked.options for asked in searches] == [{"epochs": 2, "first": 1}] * 3
    assert final.options == {"epochs": 6, "first": 1}
    theta = early.trained.last
    assert not same(theta, room.initial())  # it is worth something to have rewound to it
    assert same(searches[0].start, theta) and searches[0].masks is None

    density = 1908 / WHOLE
    counts = [round(WHOLE * density ** (cut / 3)) for cut in (1, 2)] + [1908]
    masks = [asked.masks for asked in (*searches[1:], final)]
    assert [sum(kept(mask).values()) for mask in masks] == counts
    for before, after in pairwise(masks):
        assert all((before[name] | ~after[name]).all() for name in SIZES)  # nested
    for search, mask, allowed in zip(searches, masks, [None, *masks], strict=False):
        weights = search.trained.weights
        stay = torch.cat([weights[name][mask[name]].abs() for name in SIZES])
        out = {name: ~mask[name] if allowed is None else allowed[name] & ~mask[name] for name in SIZES}
        assert stay.min() >= torch.cat([weights[name][out[name]].abs() for name in SIZES]).max()
    for asked in (*searches[1:], final):  # survivors, biases, batch norm and its statistics as they were
        assert is_mask_of(asked.masks, asked.start) and same(asked.start, theta, where=asked.masks)
    assert is_mask_of(final.masks, state) and same(state, final.trained.weights)
    return room


def test_imp_cuts_to_exact_counts_and_rewinds_bit_for_bit(tmp_path):
    room = check_imp(tmp_path)
    batch_norm = [name for name in room.initial() if "running" in name or "num_batches" in name]
    early, first, *_ = room.asked
    assert len(batch_norm) == 6  # two layers of mean, variance and count
    for name in batch_norm:  # that a rewind which misses them would be seen
        assert not torch.equal(early.trained.last[name], first.trained.weights[name])


@pytest.mark.parametrize("twin", ["one weight too many", "not nested", "batch norm stays", "to initialisation"])
def test_imp_twin(twin, tmp_path, monkeypatch):
    trained = []
    real, choose, mask = Lab.fit, keep_largest, imp.masked

    def fit_(self, stage, start, **options):
        trained.append(real(self, stage, start, **options))
        return trained[-1]

    def rewind(early, masks):
        start = mask(early, masks)
        return start | {name: trained[-1].weights[name] for name in start if "running" in name}

    if twin == "one weight too many":
        monkeypatch.setattr(imp, "keep_largest", lambda s, keep, among: choose(s, keep + 1, among))
    elif twin == "not nested":
        monkeypatch.setattr(
            imp,
            "keep_largest",
            lambda s, keep, among: shuffled(choose(s, keep, among), torch.Generator()),
        )
    elif twin == "batch norm stays":
        monkeypatch.setattr(Lab, "fit", fit_)
        monkeypatch.setattr(imp, "masked", rewind)
    else:
        monkeypatch.setattr(imp, "masked", lambda early, masks: mask(lab(tmp_path, RULES).initial(), masks))
    with pytest.raises(AssertionError):
        check_imp(tmp_path)


def test_imp_with_one_round_and_no_rewind_is_the_one_shot_ticket(tmp_path):
    """The ticket computed on its own: train, sort all magnitudes, keep the first 1908, train those from scratch."""
    room, state = use(IMP(rounds=1, rewind=0), tmp_path)
    assert [asked.stage for asked in room.asked] == ["search 1", "train the ticket"]

    def training(start, masks, epochs):
        plan = TrainingPlan(RULES.training, RULES.threat, epochs)
        return fit(room.model(start), plan, room.train, room.validation, seed=room.job.seed, masks=masks).weights

    fresh = room.model().state_dict()
    found = training(fresh, None, 4)
    ranked = sorted((-abs(weight), name, i) for name in SIZES for i, weight in enumerate(found[name].view(-1).tolist()))
    masks = {name: torch.zeros(size, dtype=torch.bool) for name, size in SIZES.items()}
    for _, name, i in ranked[:1908]:
        masks[name][i] = True
    masks = {name: mask.view_as(fresh[name]) for name, mask in masks.items()}
    ticket = training(fresh | {name: fresh[name] * masks[name] for name in SIZES}, masks, 5)
    assert same(state, ticket)
    assert not same(use(IMP(rounds=1, rewind=1), tmp_path)[1], ticket)


@pytest.mark.parametrize("pruner", [Random, Magnitude, IMP])
def test_shuffle_moves_weights_inside_their_layers(pruner, tmp_path):
    options = {"rounds": 2, "least": 1} if pruner is IMP else {}
    plain, _ = use(pruner(**options), tmp_path)
    moved, state = use(pruner(**options, shuffle=True), tmp_path)
    before, after = plain.asked[-1].masks, moved.asked[-1].masks
    assert kept(before) == kept(after) and sum(kept(after).values()) == 1908
    partly = [
        name for name, size in SIZES.items() if 0 < kept(before)[name] < size
    ]  # whole and empty ones are as they were
    assert len(partly) >= 3 and not any(torch.equal(before[name], after[name]) for name in partly)
    assert is_mask_of(after, state)
    assert [asked.stage for asked in plain.asked] == [asked.stage for asked in moved.asked]
    if pruner is IMP:  # the positions are new, the values are still those of the rewind point
        assert same(moved.asked[-1].start, moved.asked[0].trained.last, where=after)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"least": 0}, {"rewind": -1}, {"search": 0.0}, {"search": 1.0}])
def test_imp_refuses_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        IMP(**options)


@pytest.mark.parametrize("options", [{"dense": 0.0}, {"dense": 1.0}, {"lr": 0.0}])
def test_magnitude_refuses_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Magnitude(**options)


def test_sparsity_and_seed_come_from_the_job(tmp_path):
    first, _ = use(Random(), tmp_path, sparsity=0.5)
    assert sum(kept(first.asked[0].masks).values()) == WHOLE // 2
    other = Watched(job("random", 0.5, seed=1), RULES, STORE, Computed(tmp_path / "stages"))
    Random()(other.job, other)
    assert kept(other.asked[0].masks) == kept(first.asked[0].masks)
    assert not same(other.asked[0].masks, first.asked[0].masks)
