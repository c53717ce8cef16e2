"""RST is right: its weights are signed constants that never move, and the mask is all that it learns."""

from __future__ import annotations

import math

import pytest
import torch

import prunebench.bench.lab.schemes
from prunebench.bench import mask
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.mask import keep_largest_by_layer, shuffled
from prunebench.pruners import rst
from prunebench.pruners.rst import RST, signed_constants
from tests.pruners.test_hydra import COUNTS, Scoring, places, thawed
from tests.pruners.test_pruners import SIZES, WHOLE
from tests.support.nets import changed, lab

RULES = changed(train=128, units=2.0, validate_every=100)  # 6 epochs of two steps
FAN_IN = {"1.0.weight": 9, "1.3.weight": 16 * 9, "1.7.weight": 512, "1.9.weight": 64}
# sqrt(2 / (fan_in * kept / size)) for COUNTS: 14 of 144, 461 of 4608, 3277 of 32,768, 64 of 640
CONSTANTS = {name: math.sqrt(2 * SIZES[name] / (FAN_IN[name] * COUNTS[name])) for name in SIZES}


def use(pruner, tmp_path, sparsity=0.9):
    room = lab(tmp_path, RULES, sparsity=sparsity, kind=Scoring)
    return room, pruner(room.job, room)


def test_the_constants_on_paper():
    """fan_in 2, half of four weights kept: c = sqrt(2 / (2 * 1/2)) = sqrt(2)."""
    weights = {"a": torch.tensor([[0.3, -5.0], [0.0, -0.1]])}
    (found,) = signed_constants(weights, {"a": 2}).values()
    assert torch.equal(found, math.sqrt(2) * torch.tensor([[1.0, -1.0], [1.0, -1.0]])) and found.dtype == torch.float32


def test_the_constants_keep_the_variance_of_a_layers_signal():
    """Half of the inputs of a ReLU are active, so fan_in * density * c^2 / 2 = 1."""
    for name, constant in CONSTANTS.items():
        assert FAN_IN[name] * COUNTS[name] / SIZES[name] * constant**2 / 2 == pytest.approx(1)


def check_rst(tmp_path):
    """One search from random scores; its result is signed constants under the mask of the largest scores, exactly."""
    room, state = use(RST(lr=0.5), tmp_path)
    stage, weights, scores, keeps, options, (found, _) = room.searched
    assert stage == "search" and options == {"epochs": 6, "lr": 0.5 * RULES.training.lr}
    assert keeps == COUNTS and sum(COUNTS.values()) == room.keep == 3816
    assert not hasattr(room, "asked")  # nothing is trained before or afterwards
    fresh = room.initial()
    for name, constant in CONSTANTS.items():
        bound = FAN_IN[name] ** -0.5
        assert scores[name].abs().max() <= bound and scores[name].std() == pytest.approx(bound / 3**0.5, rel=0.2)
        assert torch.equal(weights[name], fresh[name].sign() * torch.tensor(constant))
        assert not torch.equal(found[name], scores[name])

    masks = keep_largest_by_layer({name: score.abs() for name, score in found.items()}, COUNTS)
    for name, constant in CONSTANTS.items():
        kept = masks[name]
        assert torch.equal(state[name] != 0, kept) and int(kept.sum()) == COUNTS[name]
        assert torch.equal(state[name][kept], fresh[name][kept].sign() * torch.tensor(constant))
    first = keep_largest_by_layer({name: score.abs() for name, score in scores.items()}, COUNTS)
    assert places(masks)["1.7.weight"] != places(first)["1.7.weight"]  # the mask was learned

    biases = [name for name in fresh if name.endswith("bias")]
    assert len(biases) == 4 and any(fresh[name].any() for name in biases)
    assert not any(state[name].any() for name in biases)
    assert all(bool((state[name] == 1).all()) for name in ("1.1.weight", "1.4.weight"))  # batch norm's affine part
    assert not torch.equal(state["1.1.running_mean"], fresh["1.1.running_mean"])  # its statistics follow the net


def test_rst_learns_a_mask_and_nothing_else(tmp_path):
    check_rst(tmp_path)


TWINS = {
    "weights move in the search": (prunebench.bench.lab.schemes, "attach_scores", thawed),
    "weights are not constants": (rst, "signed_constants", lambda weights, keeps: weights),
    "one sign": (
        rst,
        "signed_constants",
        lambda weights, keeps: {n: w.abs() for n, w in signed_constants(weights, keeps).items()},
    ),
    "not scaled by the density": (
        rst,
        "signed_constants",
        lambda weights, keeps: signed_constants(weights, {name: w.numel() for name, w in weights.items()}),
    ),
    "one weight too many": (
        rst,
        "keep_largest_by_layer",
        lambda scores, keeps: keep_largest_by_layer(scores, {name: keep + 1 for name, keep in keeps.items()}),
    ),
    "the smallest scores": (
        rst,
        "keep_largest_by_layer",
        lambda scores, keeps: keep_largest_by_layer({name: -score for name, score in scores.items()}, keeps),
    ),
    "nothing is learned": (
        mask._TopK,
        "backward",
        staticmethod(lambda ctx, gradient: (torch.zeros_like(gradient), None)),
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_rst_twin(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(*TWINS[twin])
    with pytest.raises(AssertionError):
        check_rst(tmp_path)


def test_erk_counts(tmp_path):
    """ERK shares are 23 : 54 : 576 : 74 of 727: of 3,816 weights 120.73, 283.45, 3023.41 and 388.42."""
    room, state = use(RST(layers="erk"), tmp_path)
    counts = {"1.0.weight": 121, "1.3.weight": 284, "1.7.weight": 3023, "1.9.weight": 388}
    assert room.searched[3] == counts
    assert {name: int(state[name].count_nonzero()) for name in SIZES} == counts


def test_the_whole_budget_is_one_search(tmp_path):
    room, _ = use(RST(), tmp_path)
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [("search", 6 * 128 * 12)]
    assert room.meter.spent == room.meter.granted


def test_shuffle_moves_the_constants_inside_their_layers(tmp_path):
    plain, state = use(RST(), tmp_path)
    _, moved = use(RST(shuffle=True), tmp_path)
    before = {name: state[name] != 0 for name in SIZES}
    after = shuffled(before, plain.generator("shuffle"))
    for name in SIZES:
        assert torch.equal(moved[name] != 0, after[name]) and not torch.equal(before[name], after[name])
        assert moved[name].abs().unique().numel() == 2  # zero, and the layer's constant
    assert all(torch.equal(moved[name], state[name]) for name in state.keys() - SIZES.keys())


def test_a_layer_without_weights_stops_before_the_search(tmp_path):
    """At .999 the first of 144 weights keeps .14 of one: none."""
    room = lab(tmp_path, RULES, sparsity=0.999, kind=Scoring)
    with pytest.raises(PrunebenchError, match=r"^No weights would be left in 1\.0\.weight"):
        RST()(room.job, room)
    assert not room.meter.stages and room.keep == WHOLE - math.ceil(0.999 * WHOLE) == 38
    RST(layers="erk")(room.job, room)  # has one
    assert room.meter.stages


@pytest.mark.parametrize(("options", "said"), [({"layers": "global"}, "layers = 'global'"), ({"lr": 0.0}, "lr = 0.0")])
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RST(**options)
