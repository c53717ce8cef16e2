"""HARP is right: frozen it is HYDRA, learned densities end in exact counts, and scores decide inside the layers."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import backend, densities
from prunebench.bench.lab.densities import Densities
from prunebench.bench.mask import keep_largest_by_layer
from prunebench.pruners import harp
from prunebench.pruners.harp import HARP
from prunebench.pruners.hydra import HYDRA
from tests.lab.test_lab import PASSES
from tests.pruners.test_hydra import COUNTS
from tests.pruners.test_pruners import RULES, SIZES, Watched, is_mask_of, kept, same
from tests.support.nets import changed, job, lab

THIRDS = {"dense": 1 / 3, "search": 1 / 3, "search_lr": 0.5, "lr": 0.25}  # nine epochs: three for each stage


def use(pruner, tmp_path, rules=RULES, **options):
    room = lab(tmp_path, rules, kind=Watched, **options)
    return room, pruner(room.job, room)


FROZEN = [
    {"layers": "uniform"},
    {"layers": "erk", "loss": "trades"},
    {"layers": "global", "rho": 0.1, "shuffle": True},
]


@pytest.mark.parametrize("options", FROZEN, ids=[options["layers"] for options in FROZEN])
def test_with_frozen_densities_it_is_hydra_bit_for_bit(options, tmp_path):
    room, state = use(HARP(**THIRDS, **options, rate=0.0), tmp_path)
    other, hydra = use(HYDRA(**THIRDS, **options), tmp_path)
    assert same(state, hydra)
    stages = [[(stage.name, stage.passes) for stage in each.meter.stages] for each in (room, other)]
    assert stages[0] == stages[1] and [name for name, _ in stages[0]] == ["dense", "search", "fine-tune"]
    assert same(room.asked[-1].start, other.asked[-1].start)


def test_with_densities_that_learn_it_is_not_hydra(tmp_path):
    """The twin of the above; and a penalty alone moves nothing, since the search starts at the target."""
    _, state = use(HARP(**THIRDS), tmp_path)
    _, hydra = use(HYDRA(**THIRDS), tmp_path)
    assert not same(state, hydra)


def check_harp(tmp_path):
    """The three stages, each against what it was given and what it left."""
    room, state = use(HARP(**THIRDS, gamma=0.5), tmp_path)
    dense, search, tuned = room.asked
    rate, trained, last = RULES.training.lr, dense.trained.weights, search.trained.last
    assert [asked.stage for asked in room.asked] == ["dense", "search", "fine-tune"]
    assert dense.options == {"epochs": 3, "objective": None} and same(dense.start, room.initial())

    # the search starts from the dense net at the target, and moves the weights not at all
    scheme = search.options["scheme"]
    assert same(search.start, trained) and search.masks is None and scheme.keeps == COUNTS
    assert (search.options["lr"], search.options["weight_decay"], scheme.gamma) == (0.5 * rate, 0.0, 0.5)
    assert scheme.lowest == pytest.approx(0.1 * 3816 / 38160)
    for name in SIZES:
        prefix = name.removesuffix(".weight") + ".parametrizations.weight."
        assert torch.equal(last[prefix + "original"], trained[name])

    # the learned densities have moved, and the counts are theirs, scaled to the exact total
    logits = {name: last[name.removesuffix(".weight") + ".parametrizations.weight.0.logit"] for name in SIZES}
    learned = {name: (0.01 + 0.99 * torch.sigmoid(logits[name]).item()) * SIZES[name] for name in SIZES}
    counts, masks = kept(tuned.masks), tuned.masks
    assert sum(counts.values()) == room.keep == 3816 and counts != COUNTS
    scale = 3816 / sum(learned.values())
    assert abs(scale - 1) > 1e-4  # the search ends beside the target, so that the correction is seen
    assert {name: abs(counts[name] - scale * learned[name]) < 1 for name in SIZES} == dict.fromkeys(SIZES, True)

    # inside each layer the largest scores are kept
    for name in SIZES:
        sizes = last[name.removesuffix(".weight") + ".parametrizations.weight.0.scores"].abs()
        assert sizes[masks[name]].min() >= sizes[~masks[name]].max()

    # fine-tuning from the frozen weights and the statistics of the pruned net
    assert tuned.options == {"epochs": 3, "lr": 0.25 * rate, "objective": None}
    after = {name: last.get(name, trained[name]) for name in trained}
    assert is_mask_of(masks, tuned.start) and same(tuned.start, after, where=masks)
    assert is_mask_of(masks, state) and same(state, tuned.trained.weights)
    assert torch.equal(tuned.start["1.1.running_mean"], last["1.1.running_mean"])
    assert not torch.equal(tuned.start["1.1.running_mean"], trained["1.1.running_mean"])


def test_harp_is_three_stages_that_end_in_exact_counts(tmp_path):
    check_harp(tmp_path)


def uncorrected(found, sizes, keep):
    return {name: max(1, round(count)) for name, count in found.items()}


def off_the_largest(found, keep):
    others = {name: round(count) for name, count in found.items() if name != "1.7.weight"}
    return others | {"1.7.weight": keep - sum(others.values())}


TWINS = {
    "no correction": (harp, "corrected", uncorrected),
    "all taken from the largest layer": (harp, "corrected", lambda found, sizes, keep: off_the_largest(found, keep)),
    "the counts of the start": (harp, "corrected", lambda found, sizes, keep: COUNTS),
    "scores by sign": (
        harp,
        "keep_largest_by_layer",
        lambda scores, keeps: keep_largest_by_layer({name: -score for name, score in scores.items()}, keeps),
    ),
    "no gradient for the densities": (Densities, "after_gradient", lambda self, run, again: still(run)),
    "weights move": (Densities, "attach", None),
}


def still(run):
    for layer in densities._layers(run.model):
        layer.logit.grad = None


@pytest.mark.parametrize("twin", TWINS)
def test_harp_twin(twin, tmp_path, monkeypatch):
    place, name, wrong = TWINS[twin]
    real = Densities.attach

    def thawed(self, net):
        real(self, net)
        net.requires_grad_(True)

    monkeypatch.setattr(place, name, wrong or thawed)
    with pytest.raises(AssertionError):
        check_harp(tmp_path)


def check_target(tmp_path):
    """Towards 381 weights: from a tenth of each layer to a total within half a weight of the target."""
    room, _ = use(HARP(**THIRDS), tmp_path, sparsity=0.99)
    search = room.asked[1]
    scheme = search.options["scheme"]
    assert scheme.keeps == COUNTS and scheme.goal == room.keep == 381
    found = scheme.split(search.trained.last)[1]
    assert sum(found.values()) <= 381.5
    counts = kept(room.asked[2].masks)
    assert sum(counts.values()) == 381
    assert all(counts[name] >= int(0.1 * 0.01 * SIZES[name]) for name in SIZES)  # the floor holds after it


def test_the_search_ends_at_the_target(tmp_path):
    check_target(tmp_path)


def test_the_target_twin(tmp_path, monkeypatch):
    """Without the ceiling, the penalty alone leaves too many weights."""
    monkeypatch.setattr(Densities, "after_step", lambda self, run: None)
    with pytest.raises(AssertionError):
        check_target(tmp_path)


def test_a_strong_penalty_leaves_fewer_weights_before_the_correction(tmp_path):
    """And none leaves more: the loss alone wants weights back."""
    ends = []
    for gamma in (0.0, 50.0):
        room, _ = use(HARP(**THIRDS, gamma=gamma), tmp_path)
        search = room.asked[1]
        ends.append(sum(search.options["scheme"].split(search.trained.last)[1].values()))
        assert sum(kept(room.asked[2].masks).values()) == 3816
    assert ends[1] < ends[0] and ends[0] > 3816


@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_the_budget_is_kept_and_the_referee_counts_the_zeros(loss, tmp_path):
    room, state = use(HARP(**THIRDS, loss=loss, shuffle=True), tmp_path)
    epochs = {"pgd": 9, "trades": 6}[loss]
    assert room.meter.spent == epochs * 128 * PASSES[loss] <= room.meter.granted < (epochs + 1) * 128 * PASSES[loss]
    header = Header(
        arch=RULES.model,
        classes=10,
        shape=(1, 8, 8),
        protocol=RULES,
        job=job("random", 0.9),
        source=None,
        train_sha256=room.train_sha256,
        stages=tuple(room.meter.stages),
    )
    seal(tmp_path / "net", state, header, passes_granted=room.meter.granted)
    assert open_net(tmp_path / "net").id.nonzero == 3816


def test_shuffle_keeps_the_counts_of_the_layers_and_moves_the_places(tmp_path):
    plain, _ = use(HARP(**THIRDS), tmp_path)
    moved, state = use(HARP(**THIRDS, shuffle=True), tmp_path)
    before, after = plain.asked[-1].masks, moved.asked[-1].masks
    assert kept(before) == kept(after) and is_mask_of(after, state)
    assert not any(torch.equal(before[name], after[name]) for name in SIZES)


def test_few_weights_and_short_budgets_are_refused_before_anything_is_trained(tmp_path):
    room = lab(tmp_path, RULES, sparsity=0.9999)
    with pytest.raises(PrunebenchError, match=r"keeps 3 weights, too few for one in each of the 4 layers"):
        HARP(**THIRDS)(room.job, room)
    assert not room.meter.stages
    room = lab(tmp_path, changed(RULES, units=1.0))
    with pytest.raises(PrunebenchError, match="Stage 'fine-tune' would have 0 of the 3 epochs"):
        HARP()(room.job, room)
    assert not room.meter.stages


def test_a_layer_that_the_start_would_empty_begins_with_a_weight(tmp_path, monkeypatch):
    """Uniform counts of 15 weights: .06, 1.81, 12.88 and .25, so 0, 2, 13 and 0. So few may not meet."""
    monkeypatch.setattr(backend, "refuse_blind", lambda *_: None)
    room = lab(tmp_path, RULES, sparsity=0.9996, kind=Watched)
    state = HARP(**THIRDS, start=1e-6)(room.job, room)
    assert room.keep == 15 and min(room.asked[1].options["scheme"].keeps.values()) == 1
    counts = kept(room.asked[2].masks)
    assert min(counts.values()) >= 1 and sum(counts.values()) == 15 and is_mask_of(room.asked[2].masks, state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dense": 0.9}, "dense = 0.9 and search = 0.1"),
        ({"lr": 0.0}, "lr = 0.0 must be above 0"),
        ({"gamma": -1.0}, "gamma = -1.0 must be at least 0"),
        ({"rate": float("nan")}, "rate = nan must be at least 0"),
        ({"rho": -1.0}, "rho = -1.0 must be at least 0"),
        ({"floor": 1.0}, r"floor = 1.0 and settle = 0.5 must be in \[0, 1\)"),
        ({"settle": 1.0}, r"floor = 0.1 and settle = 1.0 must be in \[0, 1\)"),
        ({"start": 0.0}, r"start = 0.0 must be in \(0, 1\]"),
        ({"loss": "mart"}, "loss = 'mart' must be protocol, pgd or trades"),
        ({"layers": "globl"}, "layers = 'globl' must be one of uniform, erk, global"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HARP(**options)
