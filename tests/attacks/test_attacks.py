"""Attacks on linear nets, whose robust radius is known in closed form: images robust beyond eps stand, others fall.

On logits W x + b an image of class y is robust up to min over j of (z_y - z_j) / ||w_y - w_j||, in the norm dual to the
threat's: the 1-norm for Linf, the 2-norm for L2.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack

from prunebench.bench.attacks import square
from prunebench.bench.attacks.base import within
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.protocol import Threat
from tests.support.nets import RANKED

LINF, L2 = Threat(norm="Linf", eps="0.1"), Threat(norm="L2", eps="0.5")
INSIDE, OUTSIDE, FAR = 1.05, 0.9, 0.6  # robust radius in units of eps: the first cannot be fooled, the others can
ITERATED = ("apgd-ce", "apgd-t", "fab-t")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear:
    """A linear net on 8x8 images, indifferent at mid-grey, that remembers what it was asked."""

    def __init__(self, classes, gain=1.0):
        self.gain = gain
        self.weights = torch.randn(classes, 64, generator=generator(7))
        self.asked = []

    def __call__(self, images):
        self.asked.append(images.detach())
        return (images - 0.5).flatten(1) @ self.weights.T * self.gain

    def robust(self, images, labels, norm):
        """The radius up to which each image is robust, and the step of length 1 that is its shortest way out."""
        logits = self(images)
        margins = logits.gather(1, labels[:, None]) - logits
        apart = self.weights[labels][:, None] - self.weights[None]
        dual = apart.abs().sum(2) if norm == "Linf" else apart.norm(dim=2)
        radius, nearest = margins.div(dual.clamp_min(1e-9)).masked_fill(dual == 0, torch.inf).min(1)
        way = apart[torch.arange(len(labels)), nearest].view_as(images)
        return radius, -way.sign() if norm == "Linf" else -way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def at_radius(classes, threat, ratios):
    """A net, images around mid-grey whose robust radius is `ratios` times eps, and their labels.

    The net is linear around mid-grey, so an image twice as far from it is twice as robust.
    """
    net = Linear(classes)
    labels = torch.arange(len(ratios)) % classes
    typical = net.weights[labels] - net.weights.mean(0) + 0.1 * torch.randn(len(ratios), 64, generator=generator(3))
    offsets = (typical.sign() if threat.norm == "Linf" else typical).view(-1, 1, 8, 8)
    scale = torch.tensor(ratios) * threat.radius / net.robust(0.5 + offsets, labels, threat.norm)[0]
    images = 0.5 + offsets * scale.view(-1, 1, 1, 1)
    check_premise(net, images, labels, threat, ratios)
    return net, images, labels


def check_premise(net, images, labels, threat, ratios):
    assert net(images).argmax(1).equal(labels)
    radius, way = net.robust(images, labels, threat.norm)
    torch.testing.assert_close(radius, torch.tensor(ratios) * threat.radius, rtol=1e-3, atol=1e-6)
    assert images.min() > 0 and images.max() < 1
    moved = images + threat.radius * way
    assert moved.min() > 0 and moved.max() < 1  # [0, 1] is nowhere in the way
    assert (net(moved).argmax(1) != labels).tolist() == [ratio < 1 for ratio in ratios]


def fooled(net, proposals, images, labels, threat):
    return (net(within(proposals, images, threat)).argmax(1) != labels).tolist()


def madry(net, images, labels, threat, *, generator):
    return pgd(net, images, labels, threat, generator=generator, steps=30, step_size=threat.radius / 5)


@pytest.fixture
def short_square(monkeypatch):
    """A Square attack of 300 queries: on nets this small it needs fewer."""
    monkeypatch.setattr(square, "QUERIES", 300)


# Robust radius in closed form


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", ITERATED)
def test_images_inside_their_radius_stand_and_those_outside_fall(name, classes, threat):
    # with several classes cross-entropy climbs towards all of them, not straight to the nearest
    outside = FAR if name == "apgd-ce" and classes > 2 else OUTSIDE
    net, images, labels = at_radius(classes, threat, [outside, INSIDE] * 3)
    proposals = RANKED[name](net, images, labels, threat, generator=generator())
    assert proposals.shape == images.shape and not proposals.requires_grad
    assert fooled(net, proposals, images, labels, threat) == [True, False] * 3


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 10])
def test_pgd_finds_the_radius_too(classes, threat):
    net, images, labels = at_radius(classes, threat, [OUTSIDE if classes == 2 else FAR, INSIDE] * 3)
    proposals = madry(net, images, labels, threat, generator=generator())
    assert fooled(net, proposals, images, labels, threat) == [True, False] * 3


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_square_fools_what_is_far_outside_and_nothing_inside(short_square, classes, threat):
    net, images, labels = at_radius(classes, threat, [0.3, INSIDE])
    proposals = RANKED["square"](net, images, labels, threat, generator=generator())
    assert fooled(net, proposals, images, labels, threat) == [True, False]


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_square_asks_no_more_than_5000_times_and_sees_no_gradients(threat):
    """It does not ask what it knows, and on 8x8 pixels in Linf it soon knows everything."""
    net, images, labels = at_radius(2, threat, [INSIDE])
    net.asked.clear()
    with torch.no_grad():  # a net that gives no gradients is all the same to it
        RANKED["square"](net, images, labels, threat, generator=generator())
    assert 3 <= sum(len(images) for images in net.asked) <= 5010


@pytest.mark.parametrize("name", [*ITERATED, "pgd"])
def test_the_same_images_at_a_larger_eps_fall(name):
    """The twin of the images that stand: nothing but eps holds the attack back."""
    net, images, labels = at_radius(4, LINF, [INSIDE] * 3)
    larger = Threat(norm="Linf", eps="0.12")
    attack = madry if name == "pgd" else RANKED[name]
    assert fooled(net, attack(net, images, labels, larger, generator=generator()), images, labels, larger) == [True] * 3


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("name", [*RANKED, "pgd"])
def test_proposals_lie_in_the_ball_and_in_the_pixel_range(short_square, name, threat):
    net, images, labels = at_radius(4, threat, [0.1, 0.2])
    weakest = net.weights.abs().amax(0).argsort()[:4]  # pixels that hardly matter are set to 0 and 1
    images.view(-1, 64)[:, weakest] = images.view(-1, 64)[:, weakest].round()
    assert net(images).argmax(1).equal(labels) and images.min() == 0 and images.max() == 1
    net.asked.clear()
    attack = madry if name == "pgd" else RANKED[name]
    proposals = attack(net, images, labels, threat, generator=generator())
    assert proposals.min() >= 0 and proposals.max() <= 1
    offsets = (proposals - images).flatten(1)
    length = offsets.abs().max(1).values if threat.norm == "Linf" else offsets.norm(dim=1)
    assert (length <= threat.radius * (1 + 1e-5)).all() and (length > 0).any()
    assert all(asked.min() >= 0 and asked.max() <= 1 for asked in net.asked)  # the net never sees another image


@pytest.mark.parametrize("name", RANKED)
def test_images_already_wrong_come_back_unchanged(short_square, name):
    net, images, labels = at_radius(4, LINF, [0.5, 0.5])
    wrong = (labels + 1) % 4
    assert torch.equal(RANKED[name](net, images, wrong, LINF, generator=generator()), images)


@pytest.mark.parametrize("name", ITERATED)
@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_one(name, count):
    net, images, labels = at_radius(4, LINF, [FAR] * count)
    proposals = RANKED[name](net, images, labels, LINF, generator=generator())
    assert fooled(net, proposals, images, labels, LINF) == [True] * count


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_apgd_t_does_not_climb_cross_entropy_unless_there_are_only_two_classes(classes):
    """Logits a million times as large leave cross-entropy without a gradient; the DLR loss is a ratio and minds not."""
    net, images, labels = at_radius(classes, LINF, [OUTSIDE])
    net.gain = 1e6
    climbs = {}
    for name in ("apgd-ce", "apgd-t"):
        proposals = RANKED[name](net, images, labels, LINF, generator=generator())
        climbs[name] = fooled(net, proposals, images, labels, LINF)[0]
    assert climbs == {"apgd-ce": False, "apgd-t": classes > 2}


def test_what_runs_is_said_for_every_number_of_classes():
    assert SUITES["standard"].ran(10) == ("apgd-ce", "apgd-t: 9 targets", "fab-t: 9 targets", "square")
    assert SUITES["standard"].ran(100) == SUITES["standard"].ran(10)
    assert SUITES["standard"].ran(4) == ("apgd-ce", "apgd-t: 3 targets", "fab-t: 3 targets", "square")
    assert "untargeted DLR" in SUITES["standard"].ran(3)[1] and SUITES["standard"].ran(3)[2] == "fab-t: 2 targets"
    two = SUITES["standard"].ran(2)
    assert "cross-entropy from a second start" in two[1] and two[2] == "fab-t: 1 targets"


# Randomness


@pytest.mark.parametrize("name", [*RANKED, "pgd"])
def test_the_generator_decides_and_the_global_state_is_left_alone(short_square, name):
    net, images, labels = at_radius(4, LINF, [0.3, OUTSIDE])
    attack = madry if name == "pgd" else RANKED[name]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = attack(net, images, labels, LINF, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(attack(net, images, labels, LINF, generator=generator(5)), first)
    if name != "fab-t":  # which has no random start
        assert not torch.equal(attack(net, images, labels, LINF, generator=generator(6)), first)


def test_the_published_attack_does_seed_the_global_state():
    """What the test above would catch."""
    net, images, labels = at_radius(4, LINF, [OUTSIDE])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    APGDAttack(net, n_iter=2, eps=0.1, norm="Linf", seed=0, device=images.device).perturb(images, labels)
    assert not torch.equal(torch.get_rng_state(), before)


def test_on_two_classes_the_second_start_is_another_one():
    net, images, labels = at_radius(2, LINF, [INSIDE])
    starts = []
    for name in ("apgd-ce", "apgd-t"):
        net.asked.clear()
        RANKED[name](net, images, labels, LINF, generator=generator())
        starts.append(next(asked for asked in net.asked if not torch.equal(asked, images)))
    assert not torch.equal(*starts)


# PGD and where its gradient is taken


def pgd_through_clamp(net, images, labels, threat, *, steps, step_size):
    """The twin: it differentiates through the clipping to [0, 1], where the gradient is zero outside."""
    radius = threat.radius
    offsets = torch.empty_like(images).uniform_(-radius, radius, generator=generator())
    for _ in range(steps):
        offsets = offsets.detach().requires_grad_()
        loss = F.cross_entropy(net((images + offsets).clamp(0, 1)), labels)
        (gradient,) = torch.autograd.grad(loss, offsets)
        offsets = (offsets.detach() + step_size * gradient.sign()).clamp(-radius, radius)
    return (images + offsets).clamp(0, 1)


def brightness(images):
    """Class 1 as soon as the pixels add up to 90 % of what eps allows on a black image."""
    total = images.flatten(1).sum(1)
    return torch.stack([torch.zeros_like(total), total - 0.9 * 64 * LINF.radius], dim=1)


@pytest.mark.parametrize("white", [False, True])
def test_the_gradient_is_taken_at_the_clipped_image(white):
    def net(images):
        return brightness(1 - images if white else images)

    images, labels = torch.full((4, 1, 8, 8), float(white)), torch.zeros(4, dtype=torch.int64)
    towards = -1 if white else 1
    assert (net(images).argmax(1) == 0).all() and (net(images + towards * LINF.radius).argmax(1) == 1).all()
    found = pgd(net, images, labels, LINF, generator=generator(), steps=30, step_size=0.02)
    assert (net(found).argmax(1) == 1).all()
    twin = pgd_through_clamp(net, images, labels, LINF, steps=30, step_size=0.02)
    assert (net(twin).argmax(1) == 0).all()  # half of its pixels started beyond the clipping and never came back


def test_pgd_starts_where_it_is_told_and_takes_steps_of_the_size_it_is_told():
    net, images, labels = at_radius(2, LINF, [INSIDE])
    net.asked.clear()
    moved = pgd(net, images, labels, LINF, generator=generator(), steps=1, step_size=0.03, start=images)
    assert torch.equal(net.asked[0], images)
    assert torch.allclose((moved - images).abs(), torch.tensor(0.03))
    short = pgd(net, images, labels, L2, generator=generator(), steps=1, step_size=0.03, start=images)
    assert (short - images).norm().item() == pytest.approx(0.03, rel=1e-4)
    still = pgd(net, images, labels, LINF, generator=generator(), steps=0, step_size=1.0, start=images)
    assert torch.equal(still, images)


def test_pgd_climbs_the_loss_it_is_given_inside_no_grad_and_leaves_no_gradients():
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
    with torch.no_grad():
        up, down = (
            pgd(layer, images, labels, LINF, generator=generator(), steps=10, step_size=0.03, loss=loss)
            for loss in (F.cross_entropy, lambda logits, labels: -F.cross_entropy(logits, labels))
        )
        losses = [float(F.cross_entropy(layer(x), labels)) for x in (down, images, up)]
    assert losses == sorted(losses) and losses[0] < losses[2]
    assert layer[1].weight.grad is None


# Projection


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@given(seed=st.integers(0, 10**6), eps=st.sampled_from(["0.001", "8/255", "0.2", "0.3", "1"]), far=st.floats(0, 3))
def test_within_is_a_projection(norm, seed, eps, far):
    threat, chance = Threat(norm=norm, eps=eps), generator(seed)
    images = torch.rand(3, 1, 4, 4, generator=chance)
    proposals = images + far * torch.randn(images.shape, generator=chance)
    inside = within(proposals, images, threat)
    assert inside.min() >= 0 and inside.max() <= 1
    offsets = (inside - images).double().flatten(1)
    length = offsets.abs().max(1).values if norm == "Linf" else offsets.norm(dim=1)
    assert (length <= threat.radius * (1 + 1e-6) + 1e-6).all()
    assert torch.allclose(within(inside, images, threat), inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", ["8/255", "0.2", "0.3"])
def test_what_an_attack_reaches_with_x_plus_eps_is_not_touched(eps):
    threat = Threat(norm="Linf", eps=eps)
    images = torch.rand(100, 1, 8, 8, generator=generator()) * (1 - threat.radius)
    edge = images + threat.radius
    assert ((edge.double() - images.double()) > threat.radius).any()  # float32 puts some outside of the exact ball
    assert edge.max() <= 1
    assert torch.equal(within(edge, images, threat), edge)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_ball_is_a_millionth_larger_than_eps(norm):
    threat, images = Threat(norm=norm, eps="0.2"), torch.full((1, 1, 2, 2), 0.25)
    for excess, stays in ((0.5e-6, True), (1e-5, False)):
        proposals = images.clone()
        proposals[0, 0, 0, 0] += 0.2 * (1 + excess)
        assert torch.equal(within(proposals, images, threat), proposals) is stays


def test_within_on_paper():
    images = torch.tensor([0.5, 0.5, 0.05]).view(1, 1, 1, 3)
    proposals = torch.tensor([0.9, 0.45, -1.0]).view(1, 1, 1, 3)
    assert within(proposals, images, LINF).flatten().tolist() == pytest.approx([0.6, 0.45, 0.0], abs=1e-6)
    flat, far = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0.5 + 3.0, 0.5 + 4.0]).view(1, 1, 1, 2)
    assert within(far, flat, L2).flatten().tolist() == pytest.approx([0.8, 0.9], abs=1e-5)  # 0.5 of (3, 4) / 5


def test_nan_proposals_stay_visible():
    """The referee measures what comes out, and NaN must not turn into an image that was never attacked."""
    images = torch.full((1, 1, 2, 2), 0.5)
    assert within(torch.full_like(images, float("nan")), images, LINF).isnan().all()
