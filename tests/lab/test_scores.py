"""Scores that choose a mask: what is seen through them, and the gradient that goes straight through, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunebench.bench import mask
from prunebench.bench.mask import (
    attach_scores,
    keep_largest_by_layer,
    masked,
    scaled_scores,
    split_scores,
    straight_through,
    uniform,
)

# A linear layer with y = (W * m) x and L = a . y, so that dL/dW_eff = a x^T and all else can be written down.
W = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
S = torch.tensor([[0.1, -0.9], [0.5, -0.3]])
X = torch.tensor([10.0, 100.0])
A = torch.tensor([1.0, -1.0])
SEEN = torch.tensor([[0.0, -2.0], [3.0, 0.0]])  # the two largest |s| are .9 and .5
UPSTREAM = torch.tensor([[10.0, 100.0], [-10.0, -100.0]])  # a x^T
SCORE_GRADIENT = torch.tensor([[10.0, 200.0], [-30.0, 400.0]])  # (a x^T * W) * sign(s), pruned entries too
WEIGHT_GRADIENT = torch.tensor([[0.0, 100.0], [-10.0, 0.0]])  # a x^T where the mask is


def check_by_hand(through):
    weight, scores = W.clone().requires_grad_(), S.clone().requires_grad_()
    seen = through(weight, scores, 2)
    (A @ (seen @ X)).backward()
    assert torch.equal(seen, SEEN)
    assert torch.equal(scores.grad, SCORE_GRADIENT)
    assert torch.equal(weight.grad, WEIGHT_GRADIENT)


def test_the_premise():
    assert torch.equal(torch.outer(A, X), UPSTREAM)
    assert torch.equal(UPSTREAM * W * S.sign(), SCORE_GRADIENT)


def test_mask_and_gradients_by_hand():
    check_by_hand(straight_through)
    check_by_hand(through(lambda upstream, scores: upstream * scores.sign()))  # what the twins below are made from


def through(gradient):
    """The right mask with a gradient of one's own: `gradient(upstream, scores)`."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores, keep):
            ctx.save_for_backward(scores)
            return (SEEN != 0).float()

        @staticmethod
        def backward(ctx, upstream):
            return gradient(upstream, *ctx.saved_tensors), None

    return lambda weight, scores, keep: weight * Through.apply(scores, keep)


TWINS = {
    "the sign forgotten": through(lambda upstream, scores: upstream),
    "nothing for pruned entries": through(lambda upstream, scores: upstream * scores.sign() * (SEEN != 0)),
    "one weight too many": lambda weight, scores, keep: straight_through(weight, scores, keep + 1),
    "the largest scores, not the largest |scores|": lambda weight, scores, keep: (
        weight * straight_through(torch.ones_like(weight), scores - scores.min() + 0.01, keep)
    ),
    "no way through to the weight": lambda weight, scores, keep: (
        straight_through(weight.detach(), scores, keep) + 0 * weight
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_by_hand_twin(twin):
    with pytest.raises(AssertionError):
        check_by_hand(TWINS[twin])


def test_a_score_of_zero_has_no_sign_and_so_no_gradient():
    scores = torch.tensor([0.0, -2.0], requires_grad=True)
    straight_through(torch.tensor([3.0, 5.0]), scores, 1).sum().backward()
    assert scores.grad.tolist() == [0.0, -5.0]


@pytest.mark.parametrize("keep", range(5))
def test_ties_keep_exactly_as_many_as_asked(keep):
    weight = torch.ones(2, 2)
    assert straight_through(weight, torch.tensor([[1.0, -1.0], [1.0, -1.0]]), keep).sum() == keep


def net():
    """A small net with a convolution, batch norm, and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3)
    )


KEEPS = {"0.weight": 3, "4.weight": 10, "5.weight": 5}


def scored():
    """The net with scores of random signs, what it was before, and the scores."""
    plain = net()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    noise = torch.Generator().manual_seed(1)
    scores = {name: torch.randn(before[name].shape, generator=noise) for name in KEEPS}
    attach_scores(plain, scores, KEEPS)
    return plain, before, scores


def test_a_net_with_scores_is_the_net_under_the_mask_of_the_largest():
    plain, before, scores = scored()
    masks = keep_largest_by_layer({name: score.abs() for name, score in scores.items()}, KEEPS)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == KEEPS
    under = net()
    under.load_state_dict(masked(before, masks))
    images = torch.rand(5, 1, 3, 3)
    assert torch.equal(plain.eval()(images), under.eval()(images))
    assert not torch.equal(plain(images), net().eval()(images))


def test_the_scores_alone_are_trained():
    plain, _, scores = scored()
    trained = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(KEEPS) and all(name.endswith("scores") for name in trained)
    copies = {name: score.clone() for name, score in scores.items()}
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(scores[name], copies[name]) for name in KEEPS)  # what was handed over stays as it was


def test_splitting_takes_apart_what_attaching_put_together():
    plain, before, scores = scored()
    back, state = split_scores(plain.state_dict())
    assert back.keys() == scores.keys() and all(torch.equal(back[name], scores[name]) for name in scores)
    assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in before)
    net().load_state_dict(state, strict=True)
    none, same = split_scores(before)
    assert none == {} and same.keys() == before.keys()  # a net without scores


def test_a_mask_is_made_once_where_it_is_cached(monkeypatch):
    made, choose = [], mask.keep_largest
    monkeypatch.setattr(mask, "keep_largest", lambda *arguments: made.append(1) or choose(*arguments))
    plain, _, _ = scored()
    made.clear()  # registering looks at the weight, too
    images = torch.rand(2, 1, 3, 3)
    with parametrize.cached():
        for _ in range(4):
            plain(images)
    assert len(made) == len(KEEPS)


def test_scaled_scores_by_hand():
    weights = {
        "linear": torch.tensor([[1.0, -2.0, 0.5], [0.0, 4.0, 1.0]]),  # fan_in 3
        "conv": torch.full((4, 2, 3, 3), -0.5),  # fan_in 18
        "empty": torch.zeros(2, 6),
        "one output": torch.tensor([[3.0, -1.5, 0.0, 0.0, 0.0, 0.0]]),  # fan_in 6
    }
    scores = scaled_scores(weights)
    root = math.sqrt(2)
    wanted = torch.tensor([[root / 4, -root / 2, root / 8], [0.0, root, root / 4]])
    torch.testing.assert_close(scores["linear"], wanted)
    torch.testing.assert_close(scores["conv"], torch.full((4, 2, 3, 3), -math.sqrt(1 / 3)))
    assert torch.equal(scores["empty"], torch.zeros(2, 6))
    torch.testing.assert_close(scores["one output"], torch.tensor([[1.0, -0.5, 0.0, 0.0, 0.0, 0.0]]))


SHAPES = {"a": (7,), "b": (5, 1), "c": (3, 1, 1)}


def test_uniform_counts_on_paper():
    """7 of 15: 3.27, 2.33 and 1.40 round down to 6; the one left goes to .40. Rounding up would keep 9."""
    assert uniform(SHAPES, 7) == {"a": 3, "b": 2, "c": 2}
    assert sum(math.ceil(size * 7 / 15) for size in (7, 5, 3)) == 9


@pytest.mark.parametrize("keep", range(16))
def test_uniform_is_exact_in_all_and_within_one_in_each_layer(keep):
    counts = uniform(SHAPES, keep)
    assert sum(counts.values()) == keep
    for name, shape in SHAPES.items():
        assert abs(counts[name] - keep * math.prod(shape) / 15) < 1 and counts[name] <= math.prod(shape)
