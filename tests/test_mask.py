"""Masks keep exactly as many weights as they were asked to, under ties, inside others, layer by layer."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.mask import (
    LAYERS,
    apportion,
    distribution,
    draw,
    enforce,
    erk,
    keep_count,
    keep_largest,
    keep_largest_by_layer,
    layer_counts,
    masked,
    nonzero,
    rescaled,
    shuffled,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kept(masks):
    return {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()}


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


# How many


def test_055_of_100_leaves_45():
    assert math.ceil(0.55 * 100) == 56  # what binary floats make of it
    assert keep_count(100, 0.55) == 45


@pytest.mark.parametrize(
    ("prunable", "sparsity", "keep"),
    [(38160, 0.9, 3816), (38160, 0.98, 763), (38160, 0, 38160), (11164352, 0.99, 111643), (3, 0.5, 1), (3, 0.999, 0)],
)
def test_counts_on_paper(prunable, sparsity, keep):
    assert keep_count(prunable, sparsity) == keep


@given(st.integers(1, 10**8), st.integers(0, 9999))
def test_no_fewer_zeros_than_asked_and_not_one_more(prunable, tenthousandths):
    zeros = prunable - keep_count(prunable, tenthousandths / 10000)
    asked = Fraction(tenthousandths, 10000) * prunable
    assert asked <= zeros < asked + 1


@pytest.mark.parametrize("sparsity", [1, -0.1, float("nan")])
def test_a_sparsity_outside_is_refused(sparsity):
    with pytest.raises(PrunebenchError, match=r"not in \[0, 1\)"):
        keep_count(100, sparsity)


# Which


def test_the_largest_of_all_layers_together():
    scores = {"a": torch.tensor([0.1, 0.9, 0.5]), "b": torch.tensor([[0.8], [-3.0]])}
    masks = keep_largest(scores, 3)
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [[True], [False]]
    assert masks["b"].dtype == torch.bool


@pytest.mark.parametrize("keep", [0, 1, 49, 50, 99, 100])
def test_total_ties_are_cut_exactly_and_the_first_stay(keep):
    scores = {"a": torch.ones(50), "b": torch.ones(5, 10)}
    masks = keep_largest(scores, keep)
    assert torch.cat([mask.flatten() for mask in masks.values()]).tolist() == [i < keep for i in range(100)]
    threshold = torch.ones(100).topk(max(keep, 1)).values[-1]
    assert int((torch.ones(100) >= threshold).sum()) == 100  # what a threshold keeps, whatever is asked


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf]), min_size=1, max_size=30), st.data())
def test_exact_under_any_ties_and_none_left_out_is_larger(values, data):
    keep = data.draw(st.integers(0, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    scores = {"a": torch.tensor(values[:cut]), "b": torch.tensor(values[cut:])}
    mask = torch.cat(list(keep_largest(scores, keep).values()))
    assert int(mask.sum()) == keep
    inside, outside = torch.tensor(values)[mask], torch.tensor(values)[~mask]
    assert not len(inside) or not len(outside) or inside.min() >= outside.max()


@given(st.lists(st.tuples(st.sampled_from([-math.inf, 0.0, 1.0]), st.booleans()), min_size=1, max_size=30), st.data())
def test_among_nests_whatever_the_scores(weights, data):
    scores, among = torch.tensor([score for score, _ in weights]), torch.tensor([inside for _, inside in weights])
    keep = data.draw(st.integers(0, int(among.sum())))
    mask = keep_largest({"a": scores}, keep, {"a": among})["a"]
    assert int(mask.sum()) == keep
    assert not (mask & ~among).any()


def test_among_holds_where_pruned_weights_score_higher():
    scores, among = {"a": torch.tensor([9.0, 1.0, 2.0])}, {"a": torch.tensor([False, True, True])}
    assert kept(keep_largest(scores, 1)) == {"a": [0]}
    assert kept(keep_largest(scores, 1, among)) == {"a": [2]}
    with pytest.raises(ValueError, match="cannot keep 3 of 2 weights"):
        keep_largest(scores, 3, among)


@pytest.mark.parametrize("keep", [-1, 4])
def test_more_than_there_are(keep):
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 3 weights"):
        keep_largest({"a": torch.zeros(3)}, keep)


def test_nan_has_no_largest():
    with pytest.raises(ValueError, match="NaN"):
        keep_largest({"a": torch.tensor([1.0, math.nan])}, 1)


def test_by_layer():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([9.0, 8.0, 8.0])}
    assert kept(keep_largest_by_layer(scores, {"a": 1, "b": 2})) == {"a": [2], "b": [0, 1]}


# Layer densities


def test_apportion_on_paper():
    assert apportion(10, [10, 10], [1.0, 1.0]) == [5, 5]
    assert apportion(10, [10, 10], [3.0, 1.0]) == [8, 2]  # 7.5 and 2.5: equal remainders, the first takes it
    assert apportion(10, [2, 20, 20], [8.0, 1.0, 1.0]) == [2, 4, 4]  # 8 wanted of 2, and 6 left for two
    assert apportion(10, [2, 3, 20], [8.0, 8.0, 1.0]) == [2, 3, 5]
    assert apportion(3, [3, 3], [0.0, 0.0]) == [2, 1]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1e6)), min_size=1, max_size=12), st.fractions(0, 1))
def test_apportion_is_exact_in_total_and_fits(layers, density):
    sizes, shares = [size for size, _ in layers], [share for _, share in layers]
    keep = int(density * sum(sizes))
    counts = apportion(keep, sizes, shares)
    assert sum(counts) == keep
    assert all(0 <= number <= size for number, size in zip(counts, sizes, strict=True))


def test_erk_on_paper():
    shapes = {"conv": (4, 2, 3, 3), "fc": (10, 6)}
    assert (sum(shapes["conv"]), sum(shapes["fc"])) == (12, 16)
    # densities 12/72 and 16/60 times the same factor are counts in the ratio 12 : 16
    assert erk(shapes, 28) == {"conv": 12, "fc": 16}
    assert erk(shapes, 7) == {"conv": 3, "fc": 4}


def test_erk_caps_small_layers_and_gives_the_rest_to_the_others():
    shapes = {"conv": (2, 1, 1, 1), "a": (8, 8), "b": (20, 4)}
    # 5, 16 and 24 of 45 at 45 kept: the first has only 2; the 43 left are shared 16 : 24
    assert erk(shapes, 45) == {"conv": 2, "a": 17, "b": 26}
    assert 43 * 16 / 40 == 17.2
    assert erk(shapes, 2 + 64 + 80) == {"conv": 2, "a": 64, "b": 80}


def test_draw_counts_and_is_a_function_of_its_generator():
    shapes, keeps = {"a": (10, 10), "b": (4, 3)}, {"a": 7, "b": 12}
    first, same, other = (draw(shapes, keeps, generator(seed)) for seed in (1, 1, 2))
    assert {name: int(mask.sum()) for name, mask in first.items()} == keeps
    assert all(torch.equal(first[name], same[name]) for name in shapes)
    assert not torch.equal(first["a"], other["a"])


def test_drawn_places_are_uniform():
    total = sum(draw({"a": (10,)}, {"a": 3}, generator(seed))["a"].int() for seed in range(1000))
    # 300 expected at each place, standard deviation sqrt(1000 * .3 * .7) = 14.5
    assert total.sum() == 3000
    assert (total - 300).abs().max() < 5 * 14.5


def test_shuffled_keeps_the_counts_of_the_layers_and_moves_the_places():
    masks = {
        "a": torch.arange(100) < 30,
        "b": torch.zeros(5, 5, dtype=torch.bool),
        "c": torch.ones(4, dtype=torch.bool),
    }
    moved = shuffled(masks, generator())
    assert {name: int(mask.sum()) for name, mask in moved.items()} == {"a": 30, "b": 0, "c": 4}
    assert {name: mask.shape for name, mask in moved.items()} == {name: mask.shape for name, mask in masks.items()}
    assert not torch.equal(moved["a"], masks["a"])
    assert torch.equal(masks["a"], torch.arange(100) < 30)  # the masks given are left alone
    assert torch.equal(shuffled(masks, generator())["a"], moved["a"])  # the generator alone decides
    assert not torch.equal(shuffled(masks, generator(1))["a"], moved["a"])


# Masks on weights


def test_masked_weights_are_exact_zeros_and_the_rest_is_untouched():
    state = {"w": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([5.0])}
    result = masked(state, {"w": torch.tensor([True, False, True])})
    assert result["w"].tolist() == [1.0, 0.0, 3.0]
    assert not torch.signbit(result["w"]).any()  # -2 * 0 would be -0
    assert result["b"] is state["b"]
    assert state["w"].tolist() == [1.0, -2.0, 3.0]
    assert nonzero(result, ["w"])["w"].tolist() == [True, False, True]


def test_masked_hides_even_nan_and_infinity():
    state = {"w": torch.tensor([math.nan, math.inf, 1.0])}
    assert masked(state, {"w": torch.tensor([False, False, True])})["w"].tolist() == [0.0, 0.0, 1.0]


def test_rescaled_on_paper():
    state = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]), "e": torch.tensor([7.0])}
    result = rescaled(state, {"w": torch.tensor([True, False, False, False]), "e": torch.tensor([False])})
    assert result["w"].tolist() == [2.0, 0.0, 0.0, 0.0]  # density 1/4: times 2
    assert result["e"].tolist() == [0.0]


def test_rescaled_keeps_the_variance_of_a_layers_outputs():
    chance = generator()
    weights, inputs = torch.randn(500, 400, generator=chance), torch.randn(200, 400, generator=chance)
    masks = draw({"w": (500, 400)}, {"w": 20_000}, chance)
    variance = {
        "dense": (inputs @ weights.T).var(),
        "masked": (inputs @ masked({"w": weights}, masks)["w"].T).var(),
        "rescaled": (inputs @ rescaled({"w": weights}, masks)["w"].T).var(),
    }
    assert variance["dense"] == pytest.approx(400, rel=0.1)
    assert variance["rescaled"] == pytest.approx(400, rel=0.1)
    assert variance["masked"] == pytest.approx(40, rel=0.1)  # without it, the density's share is left


def test_enforce_zeroes_in_place():
    layer = nn.Linear(3, 2)
    nn.init.ones_(layer.weight)
    before, bias = layer.weight, layer.bias.clone()
    enforce(layer, {"weight": torch.tensor([[True, False, True], [False, False, True]])})
    assert layer.weight is before and layer.weight.requires_grad
    assert layer.weight.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert torch.equal(layer.bias, bias)
    assert count(nonzero(dict(layer.named_parameters()), ["weight"])) == 3


def test_the_spread_of_weights_is_that_of_the_paper() -> None:
    """Hoyer's sparsity is 0 for equal weights, 1 for a single one, and (2 - 7/5) / (2 - 1) for 3, 4, 0, 0."""
    assert distribution([torch.ones(2), -torch.ones(7)])["hoyer"] == 0
    assert distribution([torch.tensor([0.0, 5.0, 0.0, 0.0])])["hoyer"] == 1
    assert distribution([torch.tensor([5.0] + 8 * [0.0])])["hoyer"] == 1  # (3 - 1) / (3 - 1)
    assert distribution([torch.zeros(4)])["hoyer"] == 1  # an empty net is as sparse as can be
    spread = distribution([torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 0.0])])
    assert spread == {"hoyer": 0.6, "below 0.001": 0.5, "below 0.01": 0.5}
    assert distribution([torch.tensor([0.0, 0.0005, 0.005, 0.05])])["below 0.001"] == 0.5
    limits = distribution([torch.tensor([0.001, 0.01, 1.0], dtype=torch.float64)])
    assert (limits["below 0.001"], limits["below 0.01"]) == (0, 0.333333)  # 0.01 itself is not below; six decimals


# Of 16 weights, 8 stay. Uniform: 4/16 and 12/16 of them. ERK: 8 * 4/11 = 2.91 and 8 * 7/11 = 5.09. Global: the largest
# are 6, 5, 4, 3, 1, .9 and two of .2, of which a has 5, 4, 3 and .9.
TWO = {
    "a": torch.tensor([[5.0, -4.0], [3.0, 0.9]]),
    "b": torch.tensor([[-6.0, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, -1.0]]),
}


@pytest.mark.parametrize(
    ("kind", "counts"), [("uniform", {"a": 2, "b": 6}), ("erk", {"a": 3, "b": 5}), ("global", {"a": 4, "b": 4})]
)
def test_layer_counts_on_paper(kind, counts):
    assert layer_counts(kind, TWO, 8) == counts


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_counts_are_exact_in_total_from_none_to_all(kind):
    for keep in range(17):
        counts = layer_counts(kind, TWO, keep)
        assert counts.keys() == TWO.keys() and sum(counts.values()) == keep
        assert all(0 <= counts[name] <= TWO[name].numel() for name in TWO)


def test_a_global_cut_may_empty_a_layer():
    assert layer_counts("global", {"a": torch.ones(3), "b": torch.full((4,), 0.1)}, 3) == {"a": 3, "b": 0}


def test_layer_counts_refuses_another_kind_and_impossible_numbers():
    with pytest.raises(PrunebenchError, match="'globl'; did you mean 'global'"):
        layer_counts("globl", TWO, 8)
    for kind in LAYERS:
        for keep in (-1, 17):
            with pytest.raises(ValueError, match=f"cannot keep {keep} of 16"):
                layer_counts(kind, TWO, keep)
    with pytest.raises(ValueError, match="NaN"):
        layer_counts("global", {"a": torch.tensor([math.nan, 1.0])}, 1)
