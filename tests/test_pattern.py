"""Masks in a pattern against masks derived by hand, and patterns that a net's zeros have or just miss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunebench.bench import mask, pattern
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.job import Job
from prunebench.bench.mask import attach_scores, erk, rescaled, two_of_four, uniform
from prunebench.bench.models import build, prunable
from prunebench.bench.pattern import Chooser, patterns_of
from tests.support.nets import TINY, changed
from tests.test_channels import channel_pruned

SHAPES = {"1.0.weight": (16, 1, 3, 3), "1.3.weight": (32, 16, 3, 3), "1.7.weight": (64, 512), "1.9.weight": (10, 64)}
WHOLE = 38160
MOST = {"1.0.weight": 144, "1.3.weight": 2304, "1.7.weight": 16384, "1.9.weight": 320}  # the first has one input alone


def digits():
    return build("digits-cnn")


def chooser(name, keep, shapes=SHAPES, net=digits):
    return Chooser(name, shapes, keep, net)


def noise(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def count(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


# 2:4


def check_two_of_four():
    """By hand: a linear layer of eight inputs with a tie, one of five and one of three, and a convolution."""
    given = {
        "eight": torch.tensor([[0.1, 0.9, 0.3, 0.2, 0.5, 0.5, 0.4, 0.6]]),
        "five": torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]),
        "three": torch.tensor([[1.0, 3.0, 2.0]]),
        "pixels": torch.tensor([[8.0, 6.0], [7.0, 5.0], [2.0, 4.0], [1.0, 3.0]]).view(1, 4, 1, 2),
    }
    wanted = {
        "eight": [[0, 1, 1, 0, 1, 0, 0, 1]],
        "five": [[1, 1, 0, 0, 1]],
        "three": [[0, 1, 1]],
        "pixels": [[[[1, 1]], [[1, 1]], [[0, 0]], [[0, 0]]]],  # of four channels at each pixel, not of four in memory
    }
    assert {name: kept.int().tolist() for name, kept in mask.two_of_four(given).items()} == wanted


def in_memory(scores):
    """Of every four that lie side by side in memory."""
    flat = {name: score.flatten(1) for name, score in scores.items()}
    return {name: kept.view(scores[name].shape) for name, kept in two_of_four(flat).items()}


TWINS = {
    "in memory": in_memory,
    "the smallest": lambda scores: two_of_four({name: -score for name, score in scores.items()}),
    "of outputs": lambda scores: {
        n: m.transpose(0, 1) for n, m in two_of_four({n: s.transpose(0, 1) for n, s in scores.items()}).items()
    },
}


def test_two_of_four_by_hand():
    check_two_of_four()


@pytest.mark.parametrize("twin", TWINS)
def test_two_of_four_twin(twin, monkeypatch):
    monkeypatch.setattr(mask, "two_of_four", TWINS[twin])
    with pytest.raises(AssertionError):
        check_two_of_four()


@pytest.mark.parametrize("keep", [WHOLE // 2, 1908, 0])
def test_two_of_four_keeps_exactly_the_largest_that_it_allows(keep):
    scores = noise()
    masks = chooser("2:4", keep)(scores)
    assert sum(count(masks).values()) == keep
    allowed = two_of_four(scores)
    assert not any((masks[name] & ~allowed[name]).any() for name in SHAPES)
    rest = torch.cat([scores[name][allowed[name] & ~masks[name]] for name in SHAPES])
    kept = torch.cat([scores[name][masks[name]] for name in SHAPES])
    assert not keep or kept.min() >= rest.max()
    if keep == WHOLE // 2:
        assert count(allowed) == MOST and sum(MOST.values()) == keep + 72


def test_counts_by_layer_go_where_there_is_room():
    """ERK at half of the weights asks for more than half of the small layers; 2:4 cannot give it."""
    half = chooser("2:4", WHOLE // 2)
    wanted = erk(SHAPES, WHOLE // 2)
    assert wanted["1.9.weight"] > MOST["1.9.weight"] and wanted["1.3.weight"] < MOST["1.3.weight"]
    keeps = half.capped(wanted)
    assert sum(keeps.values()) == WHOLE // 2 and all(keeps[name] <= MOST[name] for name in MOST)
    masks = half(noise(), keeps)
    assert count(masks) == keeps
    few = uniform(SHAPES, 1908)
    assert chooser("2:4", 1908).capped(few) == few  # what fits stays as it is


def test_shuffled_masks_are_of_the_same_pattern_with_the_same_counts():
    for name in ("2:4", "channel", "unstructured"):
        choose = chooser(name, 3816)
        masks = choose(noise())
        moved = choose.shuffled(masks, torch.Generator().manual_seed(5))
        assert count(moved) == count(masks) and not all(torch.equal(moved[n], masks[n]) for n in SHAPES)
        net = digits()
        net.load_state_dict(mask.masked(net.state_dict(), moved))
        assert patterns_of(net) == (() if name == "unstructured" else (name,))


def test_a_search_by_scores_keeps_to_two_of_four():
    net, scores = nn.Sequential(nn.Linear(8, 2, bias=False)), torch.randn(2, 8, generator=torch.Generator())
    attach_scores(net, {"0.weight": scores}, {"0.weight": 5}, by_four=True)
    seen = net[0].weight != 0
    allowed = two_of_four({"": scores.abs()})[""]
    assert seen.sum() == 5 and not (seen & ~allowed).any()
    before = scores.abs()[allowed].sort(descending=True).values[:5]
    assert torch.equal(scores.abs()[seen].sort(descending=True).values, before)
    net(torch.ones(1, 8)).sum().backward()
    assert net[0].parametrizations.weight[0].scores.grad.count_nonzero() == 16  # pruned entries too


# Channels


def chain():
    """2 -> 4 -> 2 -> 3: a and b neurons of the two hidden layers cost 2 a + a b + 3 b weights."""
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))


CHAIN = {"0.weight": (4, 2), "2.weight": (2, 4), "4.weight": (3, 2)}


@pytest.mark.parametrize(
    ("keep", "widths", "left"),
    [
        (6, (1, 1), 6),  # the fewest
        (7, (1, 1), 6),
        (9, (2, 1), 9),  # half of each
        (11, (2, 1), 9),  # 3 and 1 cost 12, 2 and 2 cost 14
        (12, (3, 1), 12),
        (14, (3, 1), 12),
        (15, (4, 1), 15),  # the second layer has the smaller share, but 3 and 2 cost 18
        (18, (3, 2), 18),
        (21, (3, 2), 18),
        (22, (4, 2), 22),
    ],
)
def test_how_many_channels_stay(keep, widths, left):
    masks = chooser("channel", keep, CHAIN, chain)(noise(CHAIN))
    assert (int(masks["0.weight"].any(1).sum()), int(masks["2.weight"].any(1).sum())) == widths
    assert sum(count(masks).values()) == left <= keep


def two_layers():
    """One input channel, three filters of 1x1, images of 2x2: a channel costs 1 weight, and 4 inputs of 2 neurons."""
    return nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


TWO = {"0.weight": (3, 1, 1, 1), "4.weight": (2, 12)}


def check_ranking():
    """|0.5|, |-2|, |1|: of 9 weights a channel, 20 pay for the second and the third."""
    scores = {"0.weight": torch.tensor([0.5, -2.0, 1.0]).view(3, 1, 1, 1).abs(), "4.weight": torch.ones(2, 12)}
    masks = pattern.Chooser("channel", TWO, 20, two_layers)(scores)
    assert masks["0.weight"].flatten().tolist() == [False, True, True]
    assert masks["4.weight"].tolist() == [[False] * 4 + [True] * 8] * 2
    assert sum(count(masks).values()) == 18


def test_channels_are_ranked_by_their_filters():
    check_ranking()


@pytest.mark.parametrize("twin", ["the smallest", "next to each other"])
def test_ranking_twin(twin, monkeypatch):
    if twin == "the smallest":
        real = mask.keep_largest
        monkeypatch.setattr(pattern, "keep_largest", lambda scores, keep: real({"": -scores[""]}, keep))
    else:
        monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, times: self.repeat(times))
    with pytest.raises(AssertionError):
        check_ranking()


def test_tied_channels_are_ranked_by_the_sum_of_all_their_filters():
    net = build("resnet18", shape=(3, 8, 8))
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    size = sum(math.prod(shape) for shape in shapes.values())
    scores = {name: torch.zeros(shape) for name, shape in shapes.items()}
    scores["1.conv1.weight"][:10] = 1.0  # 27 in all; the second layer's channels 5 to 14 have more
    scores["1.layer1.1.conv2.weight"][5:15] = 1.0
    masks = Chooser("channel", shapes, size // 10, lambda: net)(scores)
    widths = [int(masks[f"1.{name}.weight"].any(3).any(2).any(1).sum()) for name in ("conv1", "layer1.1.conv2")]
    assert widths[0] == widths[1] >= 15
    kept = masks["1.conv1.weight"][:, 0, 0, 0].nonzero().flatten().tolist()
    assert kept[:15] == list(range(15))
    assert sum(count(masks).values()) <= size // 10 < 1.02 * sum(count(masks).values())


def test_the_start_of_kept_outputs_is_rescaled_by_their_own_density():
    """One of two outputs, two of its four inputs: 1/sqrt(1/2), not 1/sqrt(1/4)."""
    state, masks = {"a": torch.ones(2, 4)}, {"a": torch.tensor([[True, True, False, False], [False] * 4])}
    assert rescaled(state, masks, outputs=True)["a"][0].tolist() == pytest.approx([2**0.5] * 2 + [0, 0])
    assert rescaled(state, masks)["a"][0].tolist() == pytest.approx([2, 2, 0, 0])


def test_sparsities_that_a_pattern_cannot_have_are_refused():
    with pytest.raises(
        PrunebenchError, match=r"2:4 leaves at most 19152 of 38160 .* asks for 26712; .* 0\.499 or more"
    ):
        chooser("2:4", 26712)
    assert sum(count(chooser("2:4", mask.keep_count(WHOLE, 0.499))(noise())).values()) == 38160 - 19042
    with pytest.raises(PrunebenchError, match=r"at least 44 of 38160 .* allows 38; .* at most 0\.998"):
        chooser("channel", 38)  # 9 + 9 + 16 + 10
    assert sum(count(chooser("channel", mask.keep_count(WHOLE, 0.998))(noise())).values()) <= 76
    with pytest.raises(ValueError, match=r"pattern = '1:2' must be one of unstructured, 2:4, channel"):
        chooser("1:2", 10)


def test_scores_that_are_no_numbers_are_refused():
    scores = noise()
    scores["1.0.weight"][3] = torch.nan
    for name in pattern.PATTERNS:
        with pytest.raises(ValueError, match="NaN"):
            chooser(name, 3816)(scores)


# What a net has


@pytest.mark.parametrize("arch", ["digits-cnn", "mnist-cnn", "resnet18", "vgg16-bn"])
def test_one_weight_breaks_the_pattern_channel(arch):
    net, masks = channel_pruned(arch)
    assert patterns_of(net) == ("channel",)
    name = max(masks, key=lambda name: masks[name].numel())
    for kept in (True, False):
        place = tuple((masks[name] == kept).nonzero()[0].tolist())
        weight = prunable(net)[name].data
        before = weight[place].clone()
        weight[place] = 0.0 if kept else 1.0
        assert patterns_of(net) == ()
        weight[place] = before
    assert patterns_of(net) == ("channel",)


def test_one_weight_breaks_two_of_four():
    net, masks = digits(), chooser("2:4", WHOLE // 2)(noise())
    net.load_state_dict(mask.masked(net.state_dict(), masks))
    assert patterns_of(net) == ("2:4",)
    weight = net[1][3].weight.data
    weight[0, 5, 1, 1] = 0.0
    weight[0, 4:8, 1, 1] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert patterns_of(net) == ("2:4",)
    weight[0, 5, 1, 1] = 1e-30
    assert patterns_of(net) == ()


def test_filters_alone_are_not_the_pattern():
    """A filter at zero leaves a constant channel that the next layer still reads."""
    net = digits()
    net[1][0].weight.data[3] = 0.0
    assert patterns_of(net) == ()
    net[1][3].weight.data[:, 3] = 0.0
    assert patterns_of(net) == ("channel",)
    net[1][0].weight.data[3] = 0.1  # and weights that nobody reads are kept weights
    assert patterns_of(net) == ()


def test_nets_without_a_pattern():
    assert patterns_of(digits()) == ()
    net = digits()
    net.load_state_dict(mask.masked(net.state_dict(), chooser("unstructured", WHOLE // 2)(noise())))
    assert patterns_of(net) == ()
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2))
    grouped[1].weight.data[:, 0] = 0.0
    assert patterns_of(grouped) == ()  # its channels cannot be followed


# What the rules ask for


def header(rules, sparsity):
    job = Job(pruner="any", sparsity=sparsity, seed=0)
    return Header(
        arch="digits-cnn",
        classes=10,
        shape=(1, 8, 8),
        protocol=rules,
        job=job,
        source=None,
        train_sha256=None,
        stages=(),
    )


def test_rules_may_ask_for_a_pattern(tmp_path):
    rules = changed(TINY, name="structured", patterns=("channel",))
    state = digits().state_dict()
    good, other = (mask.masked(state, chooser(name, 3816)(noise())) for name in ("channel", "2:4"))
    for number, (state_, sparsity) in enumerate([(good, 0.9), (state, 0.0)]):
        seal(tmp_path / f"{number}", state_, header(rules, sparsity), passes_granted=0)
        open_net(tmp_path / f"{number}")
    with pytest.raises(
        Refused, match=r"has zeros of the pattern 2:4, but structured ranks only channel; prune with"
    ) as error:
        seal(tmp_path / "other", other, header(rules, 0.9), passes_granted=0)
    assert error.value.check == "pattern" and not (tmp_path / "other").exists()
    seal(tmp_path / "other", other, header(changed(TINY, patterns=("2:4", "channel")), 0.9), passes_granted=0)
    seal(tmp_path / "any", other, header(TINY, 0.9), passes_granted=0)
