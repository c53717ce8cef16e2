"""S2AP is right: it descends along the gradient found at the raised scores, pays for it, and at rho = 0 is HYDRA."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import schemes
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.schemes import Scores
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import attach_scores, scaled_scores
from prunebench.pruners.hydra import HYDRA, S2AP
from tests.lab.test_lab import PASSES
from tests.lab.test_train import CPU
from tests.pruners.test_hydra import COUNTS, Scoring
from tests.pruners.test_pruners import RULES, same
from tests.support.nets import lab

HALVES = {"dense": 1 / 3, "search": 1 / 3, "search_lr": 0.5, "lr": 0.25}


def use(pruner, tmp_path):
    room = lab(tmp_path, RULES, kind=Scoring)
    return room, pruner(room.job, room)


# A linear layer y = (W * m) x of two inputs (1, 1) that keeps two of four weights, and L = (a . y)^2 / 2.
W = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
S = torch.tensor([[0.1, -0.9], [0.5, -0.3]])
A = torch.tensor([1.0, -1.0])
# At S: y = (-2, 3), a . y = -5, dL/dW_eff = -5 a x^T, and its product with W and the signs of S is the gradient:
FIRST = torch.tensor([[-5.0, -10.0], [15.0, -20.0]])
# Its norm is sqrt(750), that of S sqrt(1.16). So rho = 2 adds .07866 of it: [[-.293, -1.687], [1.680, -1.873]]. Now -2
# and 4 are kept: a . y = -6, dL/dW_eff = -6 a x^T, and the sign of the first score has changed.
RAISED = torch.tensor([[-0.2933, -1.6866], [1.6799, -1.8731]])
SECOND = torch.tensor([[6.0, -12.0], [18.0, -24.0]])


def layer():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.data = W.clone()
    attach_scores(net, {"0.weight": S}, {"0.weight": 2})
    return net


def check_by_hand():
    net, seen = layer(), []
    scores = net[0].parametrizations.weight[0].scores

    def gradient():
        seen.append(scores.detach().clone())
        net.zero_grad()
        ((A @ net(torch.ones(2))).square() / 2).backward()

    gradient()
    torch.testing.assert_close(scores.grad, FIRST)
    Scores({"0.weight": S}, {"0.weight": 2}, rho=2.0).after_gradient(SimpleNamespace(model=net), gradient)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], RAISED, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.grad, SECOND)
    assert torch.equal(scores, S)  # bit for bit: the descent begins where the ascent did


def test_the_ascent_and_the_gradient_there_by_hand():
    check_by_hand()


BY_HAND = {
    "descends": lambda s, g, rho: s.detach() - rho * s.norm() * g / g.norm(),
    "not in units of the scores": lambda s, g, rho: s.detach() + rho * g / g.norm(),
    "not normalised": lambda s, g, rho: s.detach() + rho * s.norm() * g,
    "by signs": lambda s, g, rho: s.detach() + rho * s.norm() * g.sign() / 2,
    "stays": lambda s, g, rho: s.detach(),
}


@pytest.mark.parametrize("twin", BY_HAND)
def test_by_hand_twin(twin, monkeypatch):
    monkeypatch.setattr(schemes, "ascended", BY_HAND[twin])
    with pytest.raises(AssertionError):
        check_by_hand()


@pytest.mark.parametrize("gradient", [None, torch.zeros(2, 2)])
def test_scores_without_a_gradient_stay(gradient):
    assert torch.equal(schemes.ascended(S, gradient, 1.0), S)


def check_statistics(room):
    """One step with and without the ascent leaves the same statistics of batch norm, but other scores."""
    start = room.initial()
    scores = scaled_scores({name: start[name] for name in COUNTS})
    images, labels = room.sample("a", 32)
    after = []
    for rho in (0.0, 0.5):
        plan = TrainingPlan(RULES.training, RULES.threat, 2, scheme=Scores(scores, COUNTS, rho))
        it = Trainer(room.model(start), plan, {}, CPU)
        it.step(images, labels, 0.0, torch.Generator().manual_seed(0))
        after.append(it.live)
    plain, raised = after
    moved = {name for name in plain if not torch.equal(plain[name], raised[name])}
    assert moved == {name for name in plain if name.endswith("scores")}
    assert raised["1.1.num_batches_tracked"] == 1 and raised["1.1.running_mean"].any()


def test_batch_norm_is_fed_once_a_step_by_the_net_that_is_trained(tmp_path):
    check_statistics(lab(tmp_path, RULES))


def test_batch_norm_twin(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "buffers", lambda self: iter([]))
    with pytest.raises(AssertionError):
        check_statistics(lab(tmp_path, RULES))


@pytest.mark.parametrize("layers", ["uniform", "global"])
def test_without_a_radius_it_is_hydra_bit_for_bit(layers, tmp_path):
    plain, hydra = use(HYDRA(**HALVES, layers=layers), tmp_path / "hydra")
    still, same_net = use(S2AP(**HALVES, layers=layers, rho=0.0), tmp_path / "s2ap")
    assert same(hydra, same_net) and [s.passes for s in plain.meter.stages] == [s.passes for s in still.meter.stages]
    moved, other = use(S2AP(**HALVES, layers=layers, rho=0.1), tmp_path / "s2ap")  # the twin
    assert not same(hydra, other) and moved.searched[4]["rho"] == 0.1
    assert same(moved.asked[0].trained.weights, plain.asked[0].trained.weights)  # the dense net is HYDRA's


# 108 passes per image: nine epochs of PGD at 3 * 3 + 3. A second gradient costs 3 passes, or 6 of TRADES.
# PGD: 3 epochs at 12, 3 * 12 / 15 = 2.4, so 2, at 15; 42 are left, for 3 epochs at 12.
# TRADES: 2 epochs at 16, 2 * 16 / 22 = 1.45, so 1, at 22; 54 are left, for 3 epochs at 16.
PRICES = {"pgd": [3 * 12, 2 * 15, 3 * 12], "trades": [2 * 16, 22, 3 * 16]}


@pytest.mark.parametrize("loss", PRICES)
def test_the_second_gradient_is_charged(loss, tmp_path):
    room, _ = use(S2AP(**HALVES, loss=loss), tmp_path)
    assert [stage.passes for stage in room.meter.stages] == [128 * passes for passes in PRICES[loss]]
    assert 0 <= room.meter.granted - room.meter.spent < 128 * PASSES[loss]  # not enough for an epoch


def test_a_search_that_forgets_to_pay_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Scores, "gradients", 1)
    with pytest.raises(PrunebenchError, match="more gradients per step than the 1 that it pays for"):
        test_the_second_gradient_is_charged("pgd", tmp_path)


def test_the_methods_own_radius_is_not_zero():
    assert S2AP().rho > 0 == HYDRA().rho
