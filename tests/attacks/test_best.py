"""The attacks of the suite `best`, against closed forms, each with a twin that must fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunebench.bench.attacks import losses, targets
from prunebench.bench.attacks.ball import ball
from prunebench.bench.attacks.base import within
from prunebench.bench.attacks.best import BEST, long_square
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.executor import fast
from prunebench.bench.protocol import Threat

THREATS = [Threat(norm="Linf", eps="0.03"), Threat(norm="L2", eps="0.1")]
BY_GRADIENT = {name: listed for name, listed in BEST.attacks.items() if "square" not in name}
PIXELS = 16


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fooled(listed: Listed, model, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    found = listed.attack(model, images, labels, threat, generator=draw(7))
    return model(within(found, images, threat)).argmax(1) != labels


class Linear(nn.Module):
    """Logits W (x - 1/2) of images x."""

    def __init__(self, classes: int, pixels: int = PIXELS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=draw(1)), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ self.weight.T


class Still(nn.Module):
    """A net without gradients: the twin."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).detach() + 0 * images.sum((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("long" in name)) for name in BY_GRADIENT]
)
@pytest.mark.parametrize("classes", [2, 10])
def test_a_linear_net_is_fooled_exactly_where_a_boundary_is_within_reach(name, threat, classes):
    """An attack without targets may climb towards the wrong class where there are several; it never goes too far."""
    net = Linear(classes)
    images = 0.12 + 0.76 * torch.rand(60, 1, 4, 4, generator=draw(2))  # the ball lies inside [0, 1]
    logits = net(images)
    labels = logits.argmax(1)
    apart = net.weight[:, None] - net.weight[labels][None]  # (classes, n, pixels)
    reach = threat.radius * apart.norm(p=1 if threat.norm == "Linf" else 2, dim=2).T
    beyond = reach - (logits.max(1, keepdim=True).values - logits)
    left = beyond.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)  # how far the ball reaches over a boundary
    clear = left.abs() > 0.02 * reach.amax(1)  # steps of finite length may miss by a hair
    found = fooled(BY_GRADIENT[name], net, images, labels, threat)
    assert 5 < int((left > 0).sum()) < 55
    assert not (found & clear & (left <= 0)).any()
    if classes == 2 or "malt" in name or "targets" in name or "long" in name:
        assert torch.equal(found[clear], left[clear] > 0)
    assert int(fooled(BY_GRADIENT[name], Still(net), images, labels, threat).sum()) < int(found.sum()) / 2  # the twin


class Bowl(nn.Module):
    """Class 1 outside a sphere around grey: a quadratic net."""

    def __init__(self, square: float) -> None:
        super().__init__()
        self.square = square

    def forward(self, images: Tensor) -> Tensor:
        distance = (images - 0.5).flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(distance) + self.square, distance], dim=1)


@pytest.mark.parametrize("name", BY_GRADIENT)
@pytest.mark.parametrize(("norm", "eps", "farthest"), [("Linf", "0.05", 16 * 0.2**2), ("L2", "0.2", (0.6 + 0.2) ** 2)])
def test_a_quadratic_net_is_fooled_up_to_the_farthest_point_of_the_ball(name, norm, eps, farthest):
    """Every pixel is .15 from grey; .05 more in Linf makes it .2; in L2 the distance .6 grows by .2."""
    signs = (2 * torch.rand(8, 1, 4, 4, generator=draw(3)) - 1).sign()
    images, labels, threat = 0.5 + 0.15 * signs, torch.zeros(8, dtype=torch.int64), Threat(norm=norm, eps=eps)
    assert fooled(BY_GRADIENT[name], Bowl(0.97 * farthest), images, labels, threat).all()
    assert not fooled(BY_GRADIENT[name], Bowl(1.01 * farthest), images, labels, threat).any()  # out of reach


def test_leaking_gradients_find_what_a_unit_that_is_off_hides():
    """The unit is on in one corner of the ball alone: 2 sum(x) - 2 * 16 * .59 > 0 where all pixels are above .59."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 1), nn.ReLU(), nn.Linear(1, 2)).eval().requires_grad_(False)
    net[1].weight.fill_(2.0), net[1].bias.fill_(-2 * 16 * 0.59)
    net[3].weight.copy_(torch.tensor([[0.0], [1.0]])), net[3].bias.copy_(torch.tensor([0.05, 0.0]))
    threat = Threat(norm="Linf", eps="0.1")
    images, labels = torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.int64)
    listed = BEST.short["malt-leak-.01"]
    assert fooled(listed, fast(net, always=True, leak=listed.surrogate.leak), images, labels, threat).all()
    assert not fooled(listed, fast(net, always=True), images, labels, threat).any()  # the twin does not leak


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_the_price_of_an_attack_is_what_an_image_that_survives_costs(name, threat):
    net, listed, passes = Linear(10, 64), BEST.attacks[name], 0

    def model(images: Tensor) -> Tensor:
        nonlocal passes
        passes += len(images) * (3 if images.requires_grad and torch.is_grad_enabled() else 1)
        return net(images)

    images, nowhere = torch.rand(4, 1, 8, 8, generator=draw(9)), threat.model_copy(update={"eps": "0.000001"})
    listed.attack(model, images, net(images).argmax(1), nowhere, generator=draw(7))
    assert passes == pytest.approx(4 * listed.price(nowhere, (1, 8, 8)), rel=0.03)


def test_targets_are_ordered_by_the_distance_of_their_boundary():
    """Margins 1, 2 and 3 with slopes of L1 norm 1, 4 and 2: distances 1, 1/2 and 3/2."""
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 2.0], [0.0, 2.0]])

    def model(images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ weight.T + torch.tensor([0.0, -1.0, -2.0, -3.0])

    images, labels = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    ranked, standing = targets.nearest(model, images, labels, THREATS[0])
    assert ranked.tolist() == [[2, 1, 3]] and standing.all()
    ranked, _ = targets.nearest(model, images, labels, THREATS[1])
    assert ranked.tolist() == [[2, 1, 3]]  # in L2: 1, 2 / sqrt(8) = .71, 1.5


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), scale=st.sampled_from([0.01, 1, 10]))
def test_losses_and_their_gradients_are_those_of_autograd(seed, classes, scale):
    chance = draw(seed)
    logits = (scale * torch.randn(6, classes, dtype=torch.float64, generator=chance)).requires_grad_()
    labels = torch.randint(classes, (6,), generator=chance)
    other = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    rows, shares = torch.arange(6), logits.softmax(1)
    spread = (logits - logits.mean(1, keepdim=True)) / logits.detach().std(1, keepdim=True)
    for ours, theirs in (
        (losses.margin(labels), logits[rows, other] - logits[rows, labels]),
        (losses.margin(labels, other), logits[rows, other] - logits[rows, labels]),
        (losses.own_logit(labels), -logits[rows, labels]),
        (losses.other_logit(labels), logits[rows, other]),
        (losses.probability_margin(labels), shares[rows, other] - shares[rows, labels]),
        (losses.unit_spread(losses.margin(labels)), spread[rows, other] - spread[rows, labels]),
    ):
        values, slopes = ours(logits.detach())
        (expected,) = torch.autograd.grad(theirs.sum(), logits, retain_graph=True)
        torch.testing.assert_close(values, theirs.detach())
        torch.testing.assert_close(slopes, expected)


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_starts_and_projections_are_in_the_ball(threat):
    images = torch.rand(20, 3, 5, 5, generator=draw(4))
    around = ball(images, threat)
    order = float("inf") if threat.norm == "Linf" else 2
    for points in (around.start(draw(5)), around.inside(images + torch.randn(images.shape, generator=draw(6)))):
        assert points.min() >= 0 and points.max() <= 1
        assert (points - images).flatten(1).norm(p=order, dim=1).max() <= threat.radius * (1 + 1e-5)
    near = (images + 0.5 * threat.radius / 75 * torch.ones_like(images)).clamp(0, 1)
    torch.testing.assert_close(around.inside(near.clone()), near)  # points inside stay


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_long_square_needs_no_gradient_and_draws_by_its_salt(threat, monkeypatch):
    monkeypatch.setattr("prunebench.bench.attacks.best.QUERIES", 300)
    net, images = Still(Linear(10, 64)), 0.12 + 0.76 * torch.rand(30, 1, 8, 8, generator=draw(2))
    labels = net(images).argmax(1)
    first, again, second = (
        long_square(net, images, labels, threat, generator=draw(8), salt=salt) for salt in (1, 1, 2)
    )
    assert int((net(first).argmax(1) != labels).sum()) > 5
    assert torch.equal(first, again) and not torch.equal(first, second)
