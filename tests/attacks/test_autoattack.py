"""Our APGD, FAB and Square against pyautoattack's own, image by image, with planted faults that must be seen."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

from prunebench.bench.attacks import apgd, fab, losses, square
from prunebench.bench.attacks.base import at_once
from prunebench.bench.attacks.standard import STANDARD
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.protocol import Threat
from tests.support.nets import STORE

LINF = Threat(norm="Linf", eps="0.25")
NETS = Path(__file__).parents[2] / "claims"
IMAGES = 48
THEIRS = {"Linf": projection_linf, "L2": projection_l2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    """A trained sparse net with test images, of which about half stand at eps .25."""
    test = STORE.testing("digits", IMAGES)
    return open_net(NETS / "imp-s0.95-seed0" / "net.safetensors").module, as_float(test.images), test.labels


# FAB's projection


def planes(seed, pixels, edges, flat, depth):
    """Points of the cube, normals and gaps, float64; `edges`, `flat`: the share of pixels at 0 or 1, of zero normals.

    `depth`: how far the hyperplanes lie, in units of what the whole cube allows; beyond 1 they miss it.
    """
    chance = generator(seed)
    points, normals = torch.rand(2, 8, pixels, dtype=torch.float64, generator=chance)
    points = torch.where(torch.rand(8, pixels, generator=chance) < edges, points.round(), points)
    # Normals of 0.01 to 1: a thousandth as steep, and where a pixel stops would be noise in either.
    normals = (0.01 + 0.99 * normals) * (torch.rand(8, pixels, generator=chance) - 0.5).sign()
    normals[torch.rand(8, pixels, generator=chance) < flat] = 0.0
    side = (torch.rand(8, generator=chance) - 0.5).sign().double()
    towards = -side.unsqueeze(1) * normals.sign()
    reach = (normals.abs() * (towards.clamp_min(0) - towards * points)).sum(1)
    return points, normals, side * depth * reach, reach


@pytest.mark.parametrize("norm", THEIRS)
@given(
    seed=st.integers(0, 10**6),
    pixels=st.integers(1, 200),
    edges=st.sampled_from([0, 0.3, 1]),
    flat=st.sampled_from([0, 0.3, 1]),
    depth=st.sampled_from([0, 1e-4, 0.1, 0.5, 0.99, 1.5]),
)
def test_the_projection_is_theirs_to_a_millionth(norm, seed, pixels, edges, flat, depth):
    points, normals, gaps, _ = planes(seed, pixels, edges, flat, depth)
    theirs = THEIRS[norm](points, normals, (normals * points).sum(1) - gaps)
    ours = fab.projected(points, normals, gaps, norm)
    assert (ours - theirs).abs().max() < 1e-6
    single = fab.projected(points.float(), normals.float(), gaps.float(), norm)
    assert (single - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("norm", THEIRS)
@given(seed=st.integers(0, 10**6), edges=st.sampled_from([0, 0.5]), depth=st.sampled_from([0.05, 0.5, 0.9, 2]))
def test_a_projected_point_lies_on_the_hyperplane_or_at_the_cubes_nearest_corner(norm, seed, edges, depth):
    points, normals, gaps, reach = planes(seed, 50, edges, 0.2, depth)
    offsets = fab.projected(points, normals, gaps, norm)
    moved = points + offsets
    assert moved.min() >= 0 and moved.max() <= 1 + 1e-12
    closed = -gaps.sign() * (normals * offsets).sum(1)
    torch.testing.assert_close(closed, torch.minimum(gaps.abs(), reach))


def test_the_projection_on_paper():
    """A normal of (1, 2) and a gap of .9: in Linf both move by .3; in L2 by (.18, .36); at (.1, .5) the first stops."""
    normal, gap = torch.tensor([[1.0, 2.0]]), torch.tensor([0.9])
    for norm, start, expected in (
        ("Linf", [0.5, 0.5], [-0.3, -0.3]),
        ("L2", [0.5, 0.5], [-0.18, -0.36]),
        ("Linf", [0.1, 0.5], [-0.1, -0.4]),
        ("L2", [0.1, 0.5], [-0.1, -0.4]),
        ("Linf", [0.1, 0.1], [-0.1, -0.1]),
    ):
        found = fab.projected(torch.tensor([start]), normal, gap, norm)
        assert found.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("norm", THEIRS)
def test_a_projection_that_forgets_the_cube_is_seen(norm):
    """The twin: without the pixels' range the same comparison finds another point."""
    points, normals, gaps, _ = planes(0, 50, 0.5, 0, 0.9)
    theirs = THEIRS[norm](points, normals, (normals * points).sum(1) - gaps)
    steepness = normals.sign() if norm == "Linf" else normals
    free = -steepness * (gaps / (normals * steepness).sum(1)).unsqueeze(1)
    assert (free - theirs).abs().max() > 1e-2


@pytest.mark.parametrize("norm", THEIRS)
def test_a_normal_that_is_not_finite_ends_and_leaves_the_others_alone(norm):
    points, normals, gaps, _ = planes(0, 50, 0, 0, 0.5)
    expected = fab.projected(points, normals, gaps, norm)
    normals[0], gaps[0] = math.nan, math.nan
    found = fab.projected(points, normals, gaps, norm)
    assert torch.equal(found[1:], expected[1:]) and not (found[0].abs() > 0).any()


# Whole attacks


@pytest.mark.parametrize(("shape", "points"), [((1, 8, 8), 4096), ((3, 32, 32), 64), ((3, 224, 224), 32)])
def test_how_many_points_fill_a_cache(shape, points):
    """A quarter of a million values: whole groups of images, and 32 where images are large."""
    assert at_once(torch.zeros(5, *shape)) == points


def seeded(perturb, images, labels):
    with torch.random.fork_rng():
        return perturb(images, labels).detach()


def their_fab(net, images, labels, norm, eps):
    attack = FABAttack_PT(
        net, n_restarts=1, n_iter=100, eps=eps, norm=norm, targeted=True, n_target_classes=9, device=images.device
    )
    return seeded(attack.perturb, images, labels)


def their_square(net, images, labels, eps, seed=3):
    attack = SquareAttack(
        net,
        p_init=0.8,
        n_queries=square.QUERIES,
        eps=eps,
        norm="Linf",
        n_restarts=1,
        resc_schedule=False,
        seed=seed,
        device=images.device,
    )
    return seeded(attack.perturb, images, labels)


@pytest.fixture(scope="module")
def by_their_square(trained):
    """What the published Square attack makes of these images."""
    return their_square(*trained, 0.25)


def right(net, images, labels):
    with torch.no_grad():
        return net(images).argmax(1) == labels


def alike(net, labels, ours, theirs):
    """Whether each image has the same verdict, and all but one in twenty the same point.

    A hundred steps make much of a last digit where two faces of the boundary are equally near. The premise is checked
    too: images fall and images stand.
    """
    standing = right(net, theirs, labels)
    assert 5 < int(standing.sum()) < len(labels) - 5
    near = (ours - theirs).abs().flatten(1).amax(1) < 1e-3
    return torch.equal(right(net, ours, labels), standing) and int(near.sum()) >= 0.95 * len(labels)


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("apgd-ce", "Linf", "0.25"),
        ("apgd-t", "Linf", "0.25"),
        ("apgd-ce", "L2", "0.7"),
        pytest.param("apgd-t", "L2", "0.7", marks=pytest.mark.slow),
    ],
)
def test_apgd_is_theirs_image_by_image(trained, name, norm, eps, monkeypatch):
    net, images, labels = trained
    threat = Threat(norm=norm, eps=eps)
    common = dict(n_restarts=1, n_iter=100, eps=float(eps), norm=norm, eot_iter=1, rho=0.75, seed=3, device="cpu")

    def ours():
        if name == "apgd-ce":
            return apgd.apgd_ce(net, images, labels, threat, generator=generator(3))
        return apgd.apgd_t(net, images, labels, threat, 9, 3)

    peer = (
        APGDAttack(net, loss="ce", **common)
        if name == "apgd-ce"
        else APGDAttack_targeted(net, n_target_classes=9, **common)
    )
    theirs = seeded(peer.perturb, images.clone(), labels)
    assert alike(net, labels, ours(), theirs)
    for constant, wrong in (("MOMENTUM", 0.5), ("_RISES", 0.1)):  # the twins
        with monkeypatch.context() as planted:
            planted.setattr(apgd, constant, wrong)
            assert not alike(net, labels, ours(), theirs)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "0.3"), ("L2", "0.98")])
def test_on_three_classes_apgd_t_is_their_untargeted_dlr(trained, norm, eps):
    """On the zeros, ones and twos, and a net that answers with one of these."""
    net, test = trained[0], STORE.testing("digits", 200)
    images, labels = as_float(test.images)[test.labels < 3], test.labels[test.labels < 3]

    def few(points):
        return net(points)[:, :3]

    threat = Threat(norm=norm, eps=eps)
    common = dict(n_restarts=1, n_iter=100, eps=float(eps), norm=norm, eot_iter=1, rho=0.75, seed=3, device="cpu")
    theirs = seeded(APGDAttack(few, loss="dlr", **common).perturb, images.clone(), labels)
    ours = STANDARD.ranked["apgd-t"].attack(few, images, labels, threat, generator=generator(3))
    assert alike(few, labels, ours, theirs)
    twin = apgd.apgd_ce(few, images, labels, threat, generator=generator(3))
    assert not alike(few, labels, twin, theirs)


@given(seed=st.integers(0, 10**6), classes=st.integers(4, 12), scale=st.sampled_from([0.01, 1, 100]))
def test_losses_and_their_gradients_are_those_of_autograd(seed, classes, scale):
    chance = generator(seed)
    logits = (scale * torch.randn(6, classes, dtype=torch.float64, generator=chance)).requires_grad_()
    labels = torch.randint(classes, (6,), generator=chance)
    targets = (labels + torch.randint(1, classes, (6,), generator=chance)) % classes
    peer = APGDAttack_targeted(None, eps=0.1)
    peer.y_target = targets
    for ours, theirs in (
        (losses.cross_entropy(labels), torch.nn.functional.cross_entropy(logits, labels, reduction="none")),
        (losses.dlr(labels, targets), peer.dlr_loss_targeted(logits, labels)),
        (losses.dlr(labels), peer.dlr_loss(logits, labels)),
    ):
        values, slopes = ours(logits.detach())
        (expected,) = torch.autograd.grad(theirs.sum(), logits)
        torch.testing.assert_close(values, theirs.detach())
        torch.testing.assert_close(slopes, expected)


def test_apgd_takes_a_gradient_that_shares_its_memory():
    """A sum's gradient is one number for all pixels."""
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)

    def model(points):
        total = points.sum((1, 2, 3))
        return torch.stack([torch.full_like(total, 34.0), total], dim=1)

    found = apgd.apgd_ce(model, images, labels, Threat(norm="Linf", eps="0.1"), generator=generator())
    assert (model(found).argmax(1) == 1).all()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.25), pytest.param("L2", 0.7, marks=pytest.mark.slow)])
def test_fab_is_theirs_image_by_image(trained, norm, eps, monkeypatch):
    net, images, labels = trained
    theirs = their_fab(net, images, labels, norm, eps)
    ours = fab.fab_t(net, images, labels, norm, eps, 9)
    assert alike(net, labels, ours, theirs)
    few = slice(0, 24)
    monkeypatch.setattr(fab, "at_once", lambda images: 32)
    assert alike(net, labels[few], fab.fab_t(net, images[few], labels[few], norm, eps, 9), theirs[few])
    monkeypatch.setattr(fab, "BACKWARD", 0.5)
    assert not alike(net, labels[few], fab.fab_t(net, images[few], labels[few], norm, eps, 9), theirs[few])  # the twin


def test_fab_leaves_an_image_that_fell_in_peace(trained, monkeypatch):
    """In batches of 32 rows all images but the last few have fallen to the likeliest class before the next is tried."""
    net, images, labels = trained
    monkeypatch.setattr(fab, "at_once", lambda images: 32)
    asked = []

    def model(points):
        asked.append(len(points))
        return net(points)

    proposals = fab.fab_t(model, images, labels, "Linf", 1.0, 9)
    correct = right(net, images, labels)
    assert not right(net, proposals, labels)[correct].any()
    attacked = sum(asked[1:]) / (2 * fab.STEPS)
    assert correct.sum() <= attacked < 2 * correct.sum() + 32


def test_square_is_theirs_image_by_image(trained, by_their_square, monkeypatch):
    (net, images, labels), theirs = trained, by_their_square
    assert alike(net, labels, square.square(net, images, labels, LINF, 3, square.QUERIES), theirs)
    assert not alike(net, labels, square.square(net, images, labels, LINF, 4, square.QUERIES), theirs)  # the twin
    monkeypatch.setattr(square, "_AHEAD", 5)
    monkeypatch.setattr(square, "_PATIENCE", 1)
    assert alike(net, labels, square.square(net, images, labels, LINF, 3, square.QUERIES), theirs)


def test_square_that_skips_what_it_may_not_skip_is_seen(trained, by_their_square, monkeypatch):
    """The twin of skipping known answers: here every other square counts as known."""
    (net, images, labels), theirs = trained, by_their_square
    drawn = square.Squares.drawn

    def forgetful(*args):
        squares = drawn(*args)
        squares.before[1::2] = square.QUERIES
        return squares

    monkeypatch.setattr(square.Squares, "drawn", forgetful)
    assert not alike(net, labels, square.square(net, images, labels, LINF, 3, square.QUERIES), theirs)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 3, 5)])
def test_the_squares_are_those_the_published_attack_draws(shape):
    """By its own functions, which draw from the global generator."""
    channels, height, width = shape
    peer = SquareAttack(None, n_queries=5000, eps=0.1, resc_schedule=False, device="cpu")
    ours = square.Squares.drawn(shape, 1200, generator(7))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for query in range(1200):
            size = min(max(round(math.sqrt(peer.p_selection(query) * height * width)), 1), height, width)
            assert ours.size[query] == size
            assert ours.top[query] == peer.random_int(0, height - size)
            assert ours.left[query] == peer.random_int(0, width - size)
            assert torch.equal(ours.signs[query], peer.random_choice([channels, 1, 1]).flatten())


def test_an_image_that_never_changes_is_asked_about_each_square_once():
    """A net that answers the same to all: there are as many questions as different squares, and three about images."""
    asked = []

    def model(images):
        assert len(images)
        asked.append(images)
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    images = torch.full((2, 1, 8, 8), 0.5)
    square.square(model, images, torch.zeros(2, dtype=torch.int64), LINF, 0, square.QUERIES)
    drawn = generator()
    torch.rand(2, 1, 1, 8, generator=drawn)  # the stripes
    squares = square.Squares.drawn((1, 8, 8), square.QUERIES, drawn)
    different = set(
        zip(*(v.flatten().tolist() for v in (squares.size, squares.top, squares.left, squares.signs)), strict=True)
    )
    assert len(different) < 400
    assert sum(len(points) for points in asked) == 2 * (3 + len(different))


def test_square_draws_beside_the_global_state():
    torch.manual_seed(1)
    random.seed(1)
    state = torch.get_rng_state()
    square.Squares.drawn((1, 8, 8), 10, generator())
    assert torch.equal(torch.get_rng_state(), state)
