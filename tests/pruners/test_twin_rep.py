"""Twin-Rep is right: gradients split as on paper, decay makes products few, and with B = 1 frozen it is magnitude."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import prunebench.bench.lab.trainer
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid import dry_run
from prunebench.bench.grid.dry_run import Dry, pruned
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import keep_largest, masked
from prunebench.pruners import twin_rep
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.twin_rep import TwinRep, Twins, multiplied
from tests.lab.test_resume import Cut
from tests.lab.test_train import CPU, content, plan, trained
from tests.lab.test_train import RULES as TRAINED
from tests.pruners.test_pruners import RULES, SIZES, is_mask_of, kept, same, use
from tests.support.nets import STORE, changed, job, lab

HALF = TwinRep(twins=2 / 3, lr=0.25)  # six epochs and three
A, B = "1.parametrizations.weight.original", "1.parametrizations.weight.0.twin"


def one_layer(*weights):
    """A linear layer from one pixel to len(weights) logits."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, len(weights), bias=False))
    net[1].weight.data = torch.tensor(weights).view(-1, 1)
    return net


def check_split():
    """W = (4, -9), an image of 2: dL/dW = 2 dL/dlogit. For the loss 3 logit_0 + 5 logit_1, g = (6, 10).

    One: A = W, B = 1, so dA = g and dB = W g. Root: A = (2, -3), B = (2, 3), so dA = (12, 30) and dB = (12, -30).
    """
    wanted = {
        "one": ([4.0, -9.0], [1.0, 1.0], [6.0, 10.0], [24.0, -90.0]),
        "root": ([2.0, -3.0], [2.0, 3.0], [12.0, 30.0], [12.0, -30.0]),
    }
    for split, (a, b, da, db) in wanted.items():
        net = one_layer(4.0, -9.0)
        Twins(split, 0.0).attach(net)
        parameters = dict(net.named_parameters())
        assert parameters[A].flatten().tolist() == a and parameters[B].flatten().tolist() == b
        logits = net(torch.tensor([[2.0]]))
        assert logits.tolist() == [[8.0, -18.0]]
        (3 * logits[0, 0] + 5 * logits[0, 1]).backward()
        assert parameters[A].grad.flatten().tolist() == da and parameters[B].grad.flatten().tolist() == db
        assert multiplied(net.state_dict())["1.weight"].flatten().tolist() == [4.0, -9.0]
        assert multiplied(net.state_dict()).keys() == one_layer(1.0).state_dict().keys()


def test_the_gradient_of_the_product_splits_as_on_paper():
    check_split()


@pytest.mark.parametrize("twin", ["a sum", "twin without gradient", "twin twice"])
def test_split_twin(twin, monkeypatch):
    forwards = {
        "a sum": lambda self, weight: weight + self.twin,
        "twin without gradient": lambda self, weight: weight * self.twin.detach() + 0 * self.twin,
        "twin twice": lambda self, weight: weight * self.twin * self.twin,
    }
    monkeypatch.setattr(twin_rep._Product, "forward", forwards[twin])
    with pytest.raises(AssertionError):
        check_split()


def factors_after_a_step(decay, weight_decay):
    """A and B of the weights 4 and -9, root split, after one step at rate .1 on a loss without gradient."""
    rules = changed(TRAINED, momentum=0.0, weight_decay=weight_decay, lr=0.1, objective="trades", beta=0.0, steps=1)
    how = TrainingPlan(rules.training, rules.threat, 4, scheme=Twins("root", decay))
    it = Trainer(one_layer(4.0, -9.0), how, {}, CPU)
    it.step(torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.long), 0.0, torch.Generator().manual_seed(0))
    return [dict(it.model.named_parameters())[name].flatten() for name in (A, B)]


@pytest.mark.parametrize(("decay", "weight_decay"), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.2)])
def test_both_factors_decay(decay, weight_decay):
    """A black image gives the weights no gradient: both factors shrink by .1 * .5."""
    a, b = factors_after_a_step(decay, weight_decay)
    torch.testing.assert_close(a, 0.95 * torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(b, 0.95 * torch.tensor([2.0, 3.0]))
    assert factors_after_a_step(0.0, 0.0)[0].tolist() == [2.0, -3.0]  # the twin


def check_stages(tmp_path):
    room, state = use(HALF, tmp_path)
    twins, tuned = room.asked
    rate = RULES.training.lr
    assert [asked.stage for asked in room.asked] == ["twins", "fine-tune"]
    assert same(twins.start, room.initial()) and twins.masks is None
    assert twins.options == {"epochs": 6, "lr": rate, "scheme": Twins("one", 0.0)}
    factors = twins.trained.weights
    product = {
        name: factors[name.replace("weight", "parametrizations.weight.original")]
        * factors[name.replace("weight", "parametrizations.weight.0.twin")]
        for name in SIZES
    }
    fresh = room.initial()
    assert not any(torch.equal(product[name], fresh[name]) for name in SIZES)
    assert same(tuned.masks, keep_largest({name: w.abs() for name, w in product.items()}, 1908))
    assert tuned.options == {"epochs": 3, "lr": 0.25 * rate}
    assert tuned.start.keys() == fresh.keys() and same(masked(product, tuned.masks), {n: tuned.start[n] for n in SIZES})
    others = fresh.keys() - SIZES.keys()
    assert all(torch.equal(tuned.start[name], factors[name]) for name in others)
    assert is_mask_of(tuned.masks, state) and sum(kept(tuned.masks).values()) == 1908
    assert room.meter.spent == room.meter.granted


def test_factors_are_trained_multiplied_cut_and_tuned(tmp_path):
    check_stages(tmp_path)


@pytest.mark.parametrize("twin", ["A alone", "one too many", "B stays"])
def test_stages_twin(twin, tmp_path, monkeypatch):
    real = multiplied
    if twin == "A alone":
        monkeypatch.setattr(
            twin_rep,
            "multiplied",
            lambda state: {
                name.replace("parametrizations.weight.original", "weight"): tensor
                for name, tensor in state.items()
                if not name.endswith("twin")
            },
        )
    elif twin == "one too many":
        monkeypatch.setattr(twin_rep, "keep_largest", lambda scores, keep: keep_largest(scores, keep + 1))
    else:
        monkeypatch.setattr(twin_rep, "multiplied", lambda state: {n: t + 0.01 for n, t in real(state).items()})
    with pytest.raises(AssertionError):
        check_stages(tmp_path)


class Frozen(Twins):
    """Twins whose B is not trained."""

    def attach(self, net):
        """As Twins, then frozen."""
        super().attach(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not name.endswith("twin"))


def test_with_b_frozen_at_one_it_is_magnitude_bit_for_bit(tmp_path, monkeypatch):
    """On torch throughout, and in one memory layout: kernels, and another layout of the product, round otherwise."""
    forward = twin_rep._Product.forward
    monkeypatch.setattr(
        twin_rep._Product,
        "forward",
        lambda self, weight: weight.new_empty_strided(weight.shape, weight.stride()).copy_(forward(self, weight)),
    )
    monkeypatch.setattr(prunebench.bench.lab.trainer, "_quick", lambda *arguments: None)
    _, expected = use(Magnitude(dense=2 / 3, lr=0.25), tmp_path / "magnitude")
    assert not same(use(HALF, tmp_path / "twins")[1], expected)  # the twin
    monkeypatch.setattr(twin_rep, "Twins", Frozen)
    assert same(use(HALF, tmp_path / "frozen")[1], expected)


@pytest.mark.parametrize("split", ["one", "root"])
def test_decay_of_the_factors_is_an_l1_norm_on_the_weights(split):
    """The least of (W - t)^2 / 2 + .3 / 2 (A^2 + B^2) is at sign(t) max(|t| - .3, 0): t less .3, or zero."""
    target = torch.tensor([[1.0], [-0.6], [0.2], [-0.1]])

    def descended(decay):
        net, scheme = one_layer(0.5, -0.3, 0.1, -0.05), Twins(split, decay)
        scheme.attach(net)
        for _ in range(2000):
            net.zero_grad()
            loss = (net[1].weight - target).square().sum() / 2 + (scheme.penalty(SimpleNamespace(model=net)) or 0)
            loss.backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
        return net[1].weight.detach()

    torch.testing.assert_close(descended(0.3).flatten(), torch.tensor([0.7, -0.3, 0.0, 0.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(descended(0.0), target, rtol=0, atol=1e-4)


@pytest.mark.parametrize("split", ["one", "root"])
def test_both_splits_start_at_the_common_initialisation(split, tmp_path):
    room = lab(tmp_path, RULES)
    start, net = room.initial(), room.model()
    Twins(split, 0.0).attach(net)
    product = multiplied(net.state_dict())
    assert product.keys() == start.keys()
    for name in start:
        torch.testing.assert_close(product[name], start[name], rtol=1e-6, atol=0)


def test_shuffle_keeps_the_counts(tmp_path):
    plain, moved = (use(replace(HALF, shuffle=shuffle), tmp_path)[0].asked[1] for shuffle in (False, True))
    assert kept(plain.masks) == kept(moved.masks) and not same(plain.masks, moved.masks)
    both = {name: plain.masks[name] & moved.masks[name] for name in SIZES}
    assert any(mask.any() for mask in both.values()) and same(
        {name: plain.start[name] for name in SIZES}, {name: moved.start[name] for name in SIZES}, where=both
    )


@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_resumed_it_ends_in_the_same_bytes(after, tmp_path):
    how, partial = replace(plan(), scheme=Twins("root", 0.01)), tmp_path / "partial"

    def report(what, done, of):
        if done == after:
            raise Cut

    with pytest.raises(Cut):
        trained(how, partial=partial, report=report)
    seen = []
    resumed = trained(how, partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == list(range(after + 1, 5)) and content(resumed) == content(trained(how))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"twins": 0.0}, "twins = 0.0"),
        ({"twins": 1.0}, "twins = 1.0"),
        ({"split": "half"}, "split = 'half' must be one of one, root"),
        ({"decay": -1.0}, "decay = -1.0"),
        ({"decay": math.nan}, "decay = nan"),
        ({"rate": 0.0}, "rate = 0.0"),
        ({"lr": 0.0}, "lr = 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TwinRep(**options)


def test_a_budget_without_fine_tuning_is_refused_before_it_is_touched(tmp_path):
    room = lab(tmp_path, RULES)
    with pytest.raises(PrunebenchError, match="Of 9 epochs twin-rep would spend 9 on the factors and none on"):
        TwinRep(twins=0.99)(room.job, room)
    assert not room.meter.stages


def test_a_layer_without_weights_is_refused_before_fine_tuning(tmp_path):
    room = lab(tmp_path, RULES, sparsity=0.9998)
    with pytest.raises(PrunebenchError, match="cannot see its images"):
        HALF(room.job, room)
    assert [stage.name for stage in room.meter.stages] == ["twins"]


def test_a_rehearsal_whose_untrained_weights_leave_a_layer_empty_passes(tmp_path, monkeypatch):
    """The largest of 8 initial weights lie in other layers than the widest, whose initial weights are smallest."""
    monkeypatch.setattr(dry_run, "training_pace", lambda *_: (3.0, 1e-6))
    lab = Lab(job("random", 0.9998), RULES, STORE, Dry(0.01))
    net, meter = pruned(lab, "prunebench.pruners.twin_rep:TwinRep", job("random", 0.9998))
    assert not net.get_submodule("1.7").weight.any() and meter.spent == meter.granted
