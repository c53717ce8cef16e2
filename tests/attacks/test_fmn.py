"""The minimum-norm attack against distances known on paper: of half-spaces, of balls, and of steps without a slope."""

from __future__ import annotations

import math

import pytest
import torch

from prunebench.bench.attacks import fab, fmn
from prunebench.bench.protocol import Threat

NORMS = ("Linf", "L2")
PIXELS = 64
CLOSE = 1.005  # times the shortest distance


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two_logits(margin):
    """Logits of two classes; class 0 where `margin` is positive."""
    return torch.stack([margin, torch.zeros_like(margin)], dim=1)


class Plane:
    """Class 0 on one side of a plane through mid-grey."""

    weights = torch.randn(PIXELS, generator=generator(7))

    def __call__(self, images):
        return two_logits((images - 0.5).flatten(1) @ self.weights)


class Ball:
    """Class 0 inside a ball around mid-grey; its slope vanishes in the middle."""

    radius = 2.0

    def __call__(self, images):
        return two_logits(self.radius**2 - (images - 0.5).flatten(1).square().sum(1))


class Stair:
    """Class 0 for images whose mean is below one half, with logits that never slope."""

    def __call__(self, images):
        return two_logits(torch.where(images.flatten(1).mean(1) < 0.5, 1.0, -1.0) + 0 * images.flatten(1).sum(1))


def beside_plane(scale, count=16):
    """Images around mid-grey of which `Plane` tells class 0, in steps of up to `scale`."""
    drawn = 0.5 + scale * (2 * torch.rand(count, PIXELS, generator=generator(1)) - 1)
    side = ((drawn - 0.5) @ Plane.weights).sign().unsqueeze(1)
    return (0.5 + (drawn - 0.5) * side).view(-1, 1, 8, 8)


def found(net, images, norm, **how):
    """How far the attack moves each image of class 0 and whether it fools `net` there."""
    labels = torch.zeros(len(images), dtype=torch.long)
    moved = fmn.fmn(net, images, labels, norm, generator=generator(), **how)
    assert moved.min() >= 0 and moved.max() <= 1
    fooled = net(moved).argmax(1) != 0
    return fmn.lengths((moved - images).flatten(1), norm), fooled


def assert_shortest(length, shortest):
    assert (length > shortest * (1 - 1e-4)).all(), "the premise: nothing nearer can fool the net"
    assert (length < shortest * CLOSE).all(), (length / shortest).max()


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_is_as_far_as_its_margin_over_the_dual_norm(norm):
    images = beside_plane(0.1)
    margin = (images - 0.5).flatten(1) @ Plane.weights
    assert (margin > 0).all()
    shortest = margin / (Plane.weights.abs().sum() if norm == "Linf" else Plane.weights.norm())
    length, fooled = found(Plane(), images, norm)
    assert fooled.all()
    assert_shortest(length, shortest)


@pytest.mark.parametrize("norm", NORMS)
def test_the_range_of_pixels_is_kept_and_lengthens_the_way(norm):
    images = beside_plane(0.5).clamp(0.0, 1.0).mul_(4).round_().div_(4)  # a quarter of the pixels at either end
    margin = (images - 0.5).flatten(1) @ Plane.weights
    images, margin = images[margin > 0.5], margin[margin > 0.5]
    normals = Plane.weights.expand(len(images), -1).contiguous()
    shortest = fmn.lengths(fab.projected(images.flatten(1), normals, margin, norm), norm)
    free = margin / (Plane.weights.abs().sum() if norm == "Linf" else Plane.weights.norm())
    assert len(images) > 4 and (shortest > 1.05 * free).any(), "the premise: the range is in the way"
    length, fooled = found(Plane(), images, norm)
    assert fooled.all()
    assert_shortest(length, shortest)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("out", [0.0, 0.1])
def test_a_sphere_is_as_far_as_its_radius_less_the_way_gone(norm, out):
    """All pixels `out` from mid-grey: 2 - 8 out in L2, and in Linf 2 / 8 - out. In the middle the slope is zero."""
    signs = torch.randn(8, 1, 8, 8, generator=generator(2)).sign()
    length, fooled = found(Ball(), 0.5 + out * signs, norm)
    shortest = Ball.radius / (math.sqrt(PIXELS) if norm == "Linf" else 1.0)
    shortest -= out * (1.0 if norm == "Linf" else math.sqrt(PIXELS))
    assert fooled.all()
    assert_shortest(length, torch.full_like(length, shortest))


def test_without_a_drawn_direction_the_middle_of_the_ball_is_a_trap(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    length, fooled = found(Ball(), torch.full((2, 1, 8, 8), 0.5), "L2")
    assert not fooled.any() and (length == 0).all()


@pytest.mark.parametrize(
    ("broken", "by"),
    [
        ("inside", lambda offsets, radius, norm: offsets),
        ("_downhill", lambda gradient, norm, generator: (gradient.sign(), gradient.abs().sum(1))),
    ],
)
def test_an_attack_with_a_fault_is_seen(monkeypatch, broken, by):
    """The twins: one that ignores its ball, and one that climbs the margin."""
    images = beside_plane(0.1)
    shortest = (images - 0.5).flatten(1) @ Plane.weights / Plane.weights.abs().sum()
    monkeypatch.setattr(fmn, broken, by)
    length, fooled = found(Plane(), images, "Linf")
    assert not (fooled & (length < shortest * CLOSE)).any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_drawn_in_to_the_boundary_without_any_slope(norm):
    """From grey .3 to grey .9 the class changes at .5: .2 in Linf, and .2 x 8 in L2, to a part in 2^10."""
    dark, bright = torch.full((1, 1, 8, 8), 0.3), torch.full((1, 1, 8, 8), 0.9)
    length, fooled = found(Stair(), dark, norm, start=bright, steps=1)
    assert fooled.all()
    assert length.item() == pytest.approx(0.2 * (1 if norm == "Linf" else 8), rel=0.003)
    length, fooled = found(Stair(), dark, norm, start=dark + 0.1, steps=1)  # a start that fools nothing is none
    assert not fooled.any() and length.item() == 0


def test_images_that_nothing_fools_come_back_unchanged():
    images = torch.rand(4, 1, 8, 8, generator=generator(3))
    length, fooled = found(
        lambda points: two_logits(1 + 0 * points.flatten(1).sum(1)), images, "Linf", start=1 - images
    )
    assert not fooled.any() and (length == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_images_of_other_classes_are_starts(norm):
    """Greys .3 and .6 of two classes, no slope: each is drawn in along the other, .2 and .1 to grey .5."""
    images = torch.tensor([0.3, 0.6]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    labels = torch.tensor([0, 1])
    threat = Threat(norm=norm, eps="0.01")  # no bound here
    moved = fmn.nearest(Stair(), images, labels, threat, generator=generator())
    assert (Stair()(moved).argmax(1) != labels).all()
    length = fmn.lengths((moved - images).flatten(1), norm) / (1 if norm == "Linf" else 8)
    assert length.tolist() == pytest.approx([0.2, 0.1], rel=0.003)


def test_starts_are_one_per_other_class_the_nearest_first():
    greys = torch.tensor([0.5, 0.2, 0.3, 0.55, 0.9]).view(-1, 1, 1, 1)
    starts = list(fmn._others(greys, torch.tensor([0, 1, 1, 0, 2]), "Linf"))
    assert [start.flatten()[0].item() for start in starts] == pytest.approx([0.3, 0.9])  # of .5, classes 1 and 2
    assert list(fmn._others(greys, torch.zeros(5, dtype=torch.long), "L2")) == []


def test_the_generator_decides():
    images = torch.full((2, 1, 8, 8), 0.5)
    labels = torch.zeros(2, dtype=torch.long)
    one, again, other = (fmn.fmn(Ball(), images, labels, "L2", generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
