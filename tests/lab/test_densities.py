"""Densities that are trained: masks, gradients, penalty and correction against answers found by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunebench.bench.lab import densities
from prunebench.bench.lab.densities import Densities, corrected, density_of, logit_of, lowering, under_density
from prunebench.bench.mask import attach_scores, straight_through
from tests.lab.test_schemes import cut_off
from tests.lab.test_scores import SCORE_GRADIENT, SEEN, WEIGHT_GRADIENT, A, S, W, X
from tests.lab.test_train import content, net, plan, trained

# dL/dW_eff = a x^T is ((10, 100), (-10, -100)); its product with W sums to 10 - 200 - 30 - 400 over all four entries.
DENSITY_GRADIENT = -620.0


def check_by_hand(through):
    weight, scores, density = W.clone().requires_grad_(), S.clone().requires_grad_(), torch.tensor(0.5).requires_grad_()
    seen = through(weight, scores, density)
    (A @ (seen @ X)).backward()
    assert torch.equal(seen, SEEN) and torch.equal(scores.grad, SCORE_GRADIENT)
    assert torch.equal(weight.grad, WEIGHT_GRADIENT) and density.grad.item() == DENSITY_GRADIENT


def test_mask_and_gradients_by_hand():
    check_by_hand(under_density)


def with_mask(extra):
    """The right mask, to which `extra(density - density, mask)` adds a gradient of the density."""

    def through(weight, scores, density):
        mask = straight_through(torch.ones_like(weight), scores, 2)
        return weight * (mask + extra(density - density.detach(), mask.detach()))

    return through


TWINS = {
    "kept entries alone": with_mask(lambda zero, mask: zero * mask),
    "the mean, not the sum": with_mask(lambda zero, mask: zero / mask.numel()),
    "against the density": with_mask(lambda zero, mask: -zero),
    "one weight too many": lambda weight, scores, density: under_density(weight, scores, density + 0.25),
}


@pytest.mark.parametrize("twin", TWINS)
def test_by_hand_twin(twin):
    with pytest.raises(AssertionError):
        check_by_hand(TWINS[twin])


@pytest.mark.parametrize(("warmth", "wanted"), [(100.0, [1, 1, 1, 1]), (0.01, [0, 0, 0, 4])])
def test_the_derivation(warmth, wanted):
    """Entries kept to a degree: by the density they grow alike if the threshold is soft, at the threshold if hard."""
    sizes = torch.tensor([0.9, 0.1, 0.2, 0.52], dtype=torch.float64)  # at density .5 the threshold is near .52

    def degrees(density):
        low, high = -1e4, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            soft = ((sizes - middle) / warmth).sigmoid()
            low, high = (middle, high) if soft.mean() > density else (low, middle)
        return soft

    slope = (degrees(0.38) - degrees(0.37)) / 0.01
    assert slope.tolist() == pytest.approx(wanted, abs=0.02)


def test_density_and_logit_are_inverse_between_their_bounds():
    for density in (0.0021, 0.02, 0.5, 0.999):
        assert density_of(logit_of(density, 0.002), 0.002).item() == pytest.approx(density, rel=1e-5)
    assert density_of(logit_of(1.0, 0.002), 0.002).item() == pytest.approx(1.0, abs=1e-5)  # and not infinite
    assert density_of(logit_of(0.001, 0.002), 0.002).item() == pytest.approx(0.002, rel=1e-2)  # below the bound
    assert density_of(torch.tensor(0.0), 0.2).item() == pytest.approx(0.6)


def test_a_layer_keeps_a_weight_at_least():
    assert int((under_density(W, S, torch.tensor(0.01)) != 0).sum()) == 1


def two():
    """A net of two layers, of 8 and 4 weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))


def scheme(keeps, **options):
    weights = {name: p.detach() for name, p in two().named_parameters()}
    return Densities({name: w + 0.01 for name, w in weights.items()}, keeps, **options)


KEEPS = {"0.weight": 4, "1.weight": 2}


def check_penalty():
    """Both layers begin at density 1/2 with lowest 0, 6 weights in all; the slope of the sigmoid is d (1 - d)."""
    model, it = two(), scheme(KEEPS, gamma=3.0)
    it.attach(model)
    run = SimpleNamespace(model=model, progress=0.5)
    assert it.penalty(run).item() == 0.0  # on target
    with torch.no_grad():
        model[0].parametrizations.weight[0].logit.fill_(1.0986123)  # density 3/4: 6 weights; 8 in all, of 6
    penalty = it.penalty(run)
    penalty.backward()
    assert penalty.item() == pytest.approx(3.0 * 0.5 * (8 / 6 - 1), rel=1e-5)
    slopes = [layer.parametrizations.weight[0].logit.grad.item() for layer in model]
    assert slopes == pytest.approx([1.5 / 6 * 8 * 0.75 * 0.25, 1.5 / 6 * 4 * 0.25], rel=1e-5)
    with torch.no_grad():
        model[1].parametrizations.weight[0].logit.fill_(-5.0)  # 6 weights and a few hundredths
        model[0].parametrizations.weight[0].logit.fill_(0.0)
    assert it.penalty(run).item() == 0.0  # below the target


def test_the_penalty_on_paper():
    check_penalty()


@pytest.mark.parametrize(
    "penalty",
    [
        lambda self, run: self.gamma * _over(self, run).clamp_min(0),
        lambda self, run: self.gamma * run.progress * _over(self, run).abs(),
        lambda self, run: self.gamma * run.progress * (_over(self, run) * 6).clamp_min(0),
    ],
    ids=["from the first step", "also below", "in weights"],
)
def test_penalty_twin(penalty, monkeypatch):
    monkeypatch.setattr(Densities, "penalty", penalty)
    with pytest.raises(AssertionError):
        check_penalty()


def _over(it, run):
    return sum(layer.kept for layer in densities._layers(run.model)) / sum(it.keeps.values()) - 1


def test_the_ceiling_falls_geometrically_to_the_target():
    """From all 12 weights to 3: a quarter, so half at half of the way, and the target after it."""
    it = scheme(KEEPS, target=3, settle=0.5)
    assert [it.ceiling(progress) for progress in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([12, 6, 3, 3])
    assert scheme(KEEPS).ceiling(0.0) == 6  # without `settle`, the target of `keeps` from the first step


def check_lowering(lower):
    """At density 3/4 the slope by a logit is 3/16 of the size: a layer of 8 is lowered twice as far as one of 4."""
    logits, sizes = torch.full((2,), 3.0).log().double(), torch.tensor([8.0, 4.0]).double()
    both = lower(logits[:1].repeat(2), sizes[:1].repeat(2), 0.0, 8.0)
    assert both.tolist() == pytest.approx([-1.0986123] * 2, rel=1e-6)  # equal layers: from 3/4 to 1/2 by log 3
    shifts = lower(logits, sizes, 0.1, 5.0)
    assert shifts[0].item() == pytest.approx(2 * shifts[1].item(), rel=1e-9) and shifts[1] < 0
    assert (density_of(logits + shifts, 0.1) * sizes).sum().item() == pytest.approx(5.0, abs=1e-6)
    assert not lower(logits, sizes, 0.0, 12.0).any() and not lower(logits, sizes, 0.0, 8.6).any()


def test_lowering_on_paper():
    check_lowering(lowering)


@pytest.mark.parametrize(
    "twin",
    [
        lambda logits, sizes, lowest, most: torch.zeros(2),
        lambda logits, sizes, lowest, most: lowering(logits, sizes, lowest, most).mean().repeat(2),
        lambda logits, sizes, lowest, most: lowering(logits, sizes, 0.0, most),
    ],
    ids=["none", "all alike", "no lowest density"],
)
def test_lowering_twin(twin):
    with pytest.raises(AssertionError):
        check_lowering(twin)


def test_a_step_ends_at_the_ceiling():
    model, it = two(), scheme(KEEPS, target=3)
    it.attach(model)
    it.after_step(SimpleNamespace(model=model, progress=0.0))
    layers = [layer.parametrizations.weight[0] for layer in model]
    assert sum(layer.kept.item() for layer in layers) == pytest.approx(3.0, abs=1e-4)
    assert layers[0].logit.item() == pytest.approx(
        2 * layers[1].logit.item()
    )  # both began at 0, the first has 8 weights


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.5])
def test_the_rate_multiplies_the_gradient_of_the_densities_alone(rate):
    model, it = two(), scheme(KEEPS, rate=rate)
    it.attach(model)
    model(torch.ones(1, 4)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(before) == 4 and all(gradient.any() for gradient in before.values())
    it.after_gradient(SimpleNamespace(model=model), lambda: None)
    for name, p in model.named_parameters():
        if name in before:
            assert torch.equal(p.grad, before[name] * rate if name.endswith("logit") else before[name])


def test_a_net_under_densities_is_the_net_under_scores_until_they_move():
    dense, scored, it = two(), two(), scheme(KEEPS)
    it.attach(dense)
    attach_scores(scored, it.scores, KEEPS)
    for a, b in zip(dense, scored, strict=True):
        assert torch.equal(a.weight, b.weight) and 0 < int((a.weight != 0).sum()) < a.weight.numel()
    scores, kept, plain = it.split(dense.state_dict())
    assert kept == pytest.approx({"0.weight": 4.0, "1.weight": 2.0}) and plain.keys() == two().state_dict().keys()
    assert all(torch.equal(scores[name], it.scores[name]) for name in KEEPS)
    two().load_state_dict(plain, strict=True)
    assert all(parametrize.is_parametrized(layer) for layer in dense)


# Of 10: one each, 7 left for what is beyond one, 3 : 1 : 0, so 5.25 and 1.75, but b holds only 1 more: 6, 1, 0.
def test_the_correction_on_paper():
    sizes = {"a": 20, "b": 2, "c": 5}
    assert corrected({"a": 4.0, "b": 2.0, "c": 0.3}, sizes, 10) == {"a": 7, "b": 2, "c": 1}
    assert corrected({"a": 14.0, "b": 1.0, "c": 4.0}, sizes, 10) == {"a": 7, "b": 1, "c": 2}  # 7 * 13/16, 7 * 3/16
    assert corrected({"a": 9.9, "b": 9.9, "c": 9.9}, sizes, 3) == {"a": 1, "b": 1, "c": 1}
    assert corrected({"a": 1.0, "b": 1.0, "c": 1.0}, sizes, 27) == sizes
    assert corrected({"a": 6.99999, "b": 1.00001, "c": 2.00001}, sizes, 10) == {"a": 7, "b": 1, "c": 2}  # as it was


def test_an_interrupted_training_of_densities_ends_in_the_same_bytes(tmp_path):
    weights = {name: p.detach() for name, p in net().named_parameters() if p.dim() > 1}
    keeps = {name: max(1, w.numel() // 5) for name, w in weights.items()}
    how = replace(plan(), scheme=Densities(weights, keeps, rho=0.1, gamma=2.0, lowest=0.01))
    cut_off(how, None, tmp_path / "partial", 2)
    seen = []
    resumed = trained(how, partial=tmp_path / "partial", report=lambda what, done, of: seen.append(done))
    assert seen == [3, 4] and content(resumed) == content(trained(how))
