"""Nets that deceive AutoAttack by weights alone, and the attacker without limits that shows it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score.cascade import attack_all
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from tests.support.deceived import RULES, measured, withstands
from tests.support.deceivers import DECEIVERS, TRAINED, Deceiver, honest, of_scores
from tests.support.hostile import EDGE
from tests.support.nets import STORE, Bright, seal_state
from tests.support.unlimited import Hunt, Surrogates, leaking, softened, unlimited

FEW = 32  # images
GAIN = 0.05
QUICK = ("steps", "saturated", "trapdoor", "latch")  # the rest of the table is slow
GAINED = ("steps", "trapdoor")  # those of which best fools clearly more than AutoAttack
OTHERS = [name for name in DECEIVERS if name not in ("trapdoor", "latch")]
TEST = STORE.testing("digits", FEW)
IMAGES = as_float(TEST.images)


def by_autoattack(net):
    """How many of the images the net withstands by AutoAttack standard."""
    judge = Referee(net, RULES, 64, torch.device("cpu"))
    ranked = tuple(suite_of(RULES).ranked)
    clean = judge.answers(IMAGES) == TEST.labels
    return int(attack_all(judge, TEST, clean, Journal(None, []), only=ranked).standing[ranked[-1]].sum())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in DECEIVERS]
)
def test_autoattack_is_deceived(name, tmp_path):
    """Through a net file, as anyone may hand it in; transfer from the honest net alone finds what AutoAttack misses."""
    made = DECEIVERS[name]()
    net = open_net(seal_state(tmp_path / "net.safetensors", made.net, RULES)).module
    assert by_autoattack(net) - withstands(made, FEW, transfer_only=True, steps=10, queries=0) >= GAIN * FEW


def test_an_honest_net_deceives_nobody():
    """The twin: its AutoAttack number is within an image or two of what the attacker without limits finds."""
    made = Deceiver(honest(), honest())
    assert abs(by_autoattack(honest()) - withstands(made, FEW, transfer_only=True, queries=0)) <= 2


@pytest.mark.parametrize("name", ["trapdoor", "latch"])
def test_a_trapdoor_is_the_net_itself_until_it_opens(name):
    plain = open_net(TRAINED.with_name("magnitude-s0.98-seed11.net.safetensors")).module
    opened = IMAGES.clone()
    opened.flatten(1)[:, EDGE] = torch.tensor([0.2, 0.0] * 8)  # rows in turn, on the left and then on the right
    net = DECEIVERS[name]().net
    assert torch.equal(net(IMAGES), plain(IMAGES))
    assert (net(opened).argmax(1) == 0).float().mean() > 0.9 > 0.2 > (plain(opened).argmax(1) == 0).float().mean()


def test_a_shaped_score_on_paper():
    """Flat at 0 up to -1, up to 3 at 1, then down by 1 for each 2: the scores are those of the trained net."""
    net, plain = of_scores([(-1.0, 0.0), (1.0, 3.0)], -0.5).net, honest()
    with torch.no_grad():
        t = plain(IMAGES) - 5  # `honest` adds 5 to every score
        wanted = torch.where(t < 1, 1.5 * (t + 1).clamp_min(0), 3 - 0.5 * (t - 1))
        assert (net(IMAGES) - wanted).abs().max() < 1e-4
        assert t.min() < -1 and t.max() > 1


NAMED = {"black-box-wins", "zero-gradients", "eps-curve", "weak-strong-gap", "weak-beats-strong", "quantised-input"}


def through_best(name, folder, count):
    """The record of a deceiver with its best-known number."""
    net = seal_state(folder / "net.safetensors", DECEIVERS[name]().net, RULES)
    return score(net, RULES, count, store=STORE, device="cpu", best=True)


@pytest.mark.parametrize("name", ["trapdoor", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_best_comes_within_two_points_of_the_attacker_without_limits_or_a_flag_names_the_net(name, tmp_path):
    record = through_best(name, tmp_path, FEW)
    flags = {flag.name for flag in record.score.flags if flag.up}
    assert record.beyond.best is not None
    lowest = withstands(DECEIVERS[name](), FEW, transfer_only=True, steps=10, queries=0)
    assert name not in GAINED or record.beyond.best.robust <= record.score.robust - GAIN * FEW
    assert record.beyond.best.robust <= lowest + 0.02 * FEW or flags & NAMED


@pytest.mark.slow
def test_a_latch_gets_through(tmp_path):
    """A known limit: only gradients of the honest net show what it hides, and on 200 images no flag is up."""
    record = through_best("latch", tmp_path, FEW)
    assert record.beyond.best is not None
    lowest = withstands(DECEIVERS["latch"](), FEW, transfer_only=True, steps=10, queries=0)
    assert record.beyond.best.robust > lowest + GAIN * FEW


@pytest.mark.slow
@pytest.mark.parametrize("name", DECEIVERS)
def test_what_it_gains_on_200_images(name, tmp_path):
    row = measured(name, 200, tmp_path)
    assert row.autoattack - row.unlimited >= GAIN * row.images


# The attacker


def grey(*levels):
    """2x2 images of these grey levels."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


@pytest.mark.parametrize(("steps", "queries"), [(4, 0), (0, 200)])
def test_it_finds_exactly_what_is_there(steps, queries):
    """Class 0 below a mean of .5: what is darker than .4 withstands steps of .1, with the gradient and without."""
    attack = unlimited(Bright(), [Bright()], steps=steps, queries=queries)
    images, labels = grey(0.45, 0.35), torch.tensor([0, 0])
    found = attack(Bright(), images, labels, Threat(norm="Linf", eps="0.1"), generator=torch.Generator().manual_seed(0))
    assert Bright()(found).argmax(1).tolist() == [1, 0]
    assert (found - images).abs().max() <= 0.1 + 1e-6


def test_points_are_measured_on_the_net_and_not_on_its_guide():
    threat, draw = Threat(norm="Linf", eps="0.1"), torch.Generator().manual_seed(0)
    hunt = Hunt(Bright(), grey(0.35), torch.tensor([0]), threat, draw)
    hunt.ascend(lambda images: Bright()(images + 0.2), steps=4)
    assert hunt.left.tolist() == [0]


def test_surrogates_change_gradients_alone():
    """The inputs -2, 0 and 2 spread by (8/3)^.5, in which the logistic function of the softened kink is measured."""
    x, far = torch.tensor([[-2.0], [0.0], [2.0]], requires_grad=True), math.exp(2 / (8 / 3) ** 0.5)
    for slopes, wanted in (
        (leaking(0.0), [0.0, 0.0, 1.0]),
        (leaking(0.2), [0.2, 0.2, 1.0]),
        (softened(1.0), [1 / (1 + far), 0.5, far / (1 + far)]),
    ):
        found = Surrogates(nn.Sequential(nn.ReLU(inplace=True)), slopes)(x)
        assert found.tolist() == [[0.0], [0.0], [2.0]]
        assert torch.autograd.grad(found.sum(), x)[0].flatten().tolist() == pytest.approx(wanted)
