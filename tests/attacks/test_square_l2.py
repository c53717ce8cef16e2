"""Our Square attack in L2 against pyautoattack's own, image by image, with planted faults that must be seen.

The published attack draws signs for the images that still stand, ours for all. So theirs runs here with draws laid out
as ours are; and as it is, on one image at a time, where both draw the same.
"""

from __future__ import annotations

import math

import pytest
import torch
from pyautoattack.square import SquareAttack

from prunebench.bench.attacks import square, square_l2
from prunebench.bench.attacks.square_l2 import Moves
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.protocol import Threat
from tests.attacks.test_autoattack import NETS, alike, generator, right, seeded
from tests.support.nets import STORE

THREAT = Threat(norm="L2", eps="0.7")
QUERIES = 700  # windows of 7, 5 and 3 pixels


class Steady(SquareAttack):
    """The published attack, with signs drawn for all images and used for those that still stand."""

    standing = None

    def margin_and_loss(self, x, y):
        margin, loss = super().margin_and_loss(x, y)
        if self.standing is None:
            self.count, self.standing = len(x), torch.arange(len(x))
        self.standing = self.standing[margin > 0]
        return margin, loss

    def random_choice(self, shape):
        if self.standing is None:
            return super().random_choice(shape)
        return super().random_choice([self.count, *shape[1:]])[self.standing]


def theirs(net, images, labels, peer=Steady, queries=QUERIES, radius=THREAT.radius, seed=3):
    attack = peer(net, p_init=0.8, n_queries=queries, eps=radius, norm="L2", resc_schedule=False, seed=seed)
    return seeded(attack.perturb, images, labels)


def ours(net, images, labels, queries=QUERIES, threat=THREAT, seed=3):
    return square.square(net, images, labels, threat, seed, queries)


@pytest.fixture(scope="module")
def trained():
    test = STORE.testing("digits", 48)
    return open_net(NETS / "imp-s0.95-seed0" / "net.safetensors").module, as_float(test.images), test.labels


@pytest.fixture(scope="module")
def by_theirs(trained):
    return theirs(*trained)


def test_it_is_theirs_image_by_image(trained, by_theirs, monkeypatch):
    labels = trained[2]
    assert alike(trained[0], labels, ours(*trained), by_theirs)
    monkeypatch.setattr(square, "_AHEAD", 5)
    monkeypatch.setattr(square, "_PATIENCE", 1)
    monkeypatch.setattr(square_l2, "_KEPT", 0)
    assert alike(trained[0], labels, ours(*trained), by_theirs)
    assert not alike(trained[0], labels, ours(*trained, seed=4), by_theirs)  # the twin


def test_one_image_alone_meets_the_published_numbers(trained):
    """Without `Steady`: of these images some fall soon, some late, some not at all."""
    net, images, labels = trained
    wider, fell = Threat(norm="L2", eps="1"), 0
    for k in range(8):
        one = net, images[k : k + 1], labels[k : k + 1]
        expected = theirs(*one, peer=SquareAttack, queries=150, radius=1.0)
        torch.testing.assert_close(ours(*one, queries=150, threat=wider), expected, atol=1e-4, rtol=0)
        fell += bool((expected != one[1]).any())
    assert 2 < fell < 8


def faulty(moves, fault):
    """Moves of a run with one fault."""
    if fault == "the answer is known that a query has changed":
        moves.since.add_(1)
    elif fault == "every other query is known":
        moves.since[:, 1::2] = QUERIES
    elif fault == "both windows are one":
        moves.corners[:, 2:] = moves.corners[:, :2]
    elif fault == "patterns never lie on their side":
        moves.kind.copy_(moves.kind // 2 * 2)
    elif fault == "images share their signs":
        moves.signs.copy_(moves.signs[:1].expand_as(moves.signs))
    return moves


FAULTS = (
    "the answer is known that a query has changed",
    "every other query is known",
    "both windows are one",
    "patterns never lie on their side",
    "images share their signs",
)


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_is_seen(trained, by_theirs, fault, monkeypatch):
    """The twins, and the same without a fault."""
    drawn = Moves.drawn
    monkeypatch.setattr(Moves, "drawn", lambda *args: faulty(drawn(*args), fault))
    assert alike(trained[0], trained[2], ours(*trained), by_theirs) == (fault is None)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 10, 13), (1, 5, 5)])
def test_images_of_other_shapes(shape):
    """On a net of one hidden layer, eight images: those that fall end at the same points."""
    chance = generator(1)
    first = torch.randn(math.prod(shape), 30, generator=chance) / math.prod(shape) ** 0.5
    second = torch.randn(30, 4, generator=chance)

    def net(points):
        return ((points - 0.5).flatten(1) @ first).relu() @ second

    images = torch.rand(8, *shape, generator=chance)
    labels = net(images).argmax(1)
    threat = Threat(norm="L2", eps=str(round(0.07 * math.prod(shape) ** 0.5, 3)))
    expected = theirs(net, images, labels, queries=150, radius=threat.radius)
    found = ours(net, images, labels, queries=150, threat=threat)
    assert int((~right(net, expected, labels)).sum()) > 2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert ((found - images).flatten(1).norm(dim=1) <= threat.radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 14, 14), (1, 4, 9)])
def test_shapes_that_the_published_code_cannot_handle(shape):
    """A grid cut off by the edge, and images smaller than a window: a net that looks at the central pixel falls."""
    images, labels = torch.full((2, *shape), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        theirs(lambda points: torch.zeros(len(points), 2), images, labels)

    def net(points):
        return torch.stack([torch.full((len(points),), 0.05), points[:, 0, shape[1] // 2, shape[2] // 2] - 0.5], dim=1)

    found = ours(net, images, labels, queries=300)
    assert not right(net, found, labels).any()
    assert ((found - images).flatten(1).norm(dim=1) <= THREAT.radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("side", range(1, 12))
def test_patterns_are_theirs(side):
    peer = SquareAttack(None, norm="L2", eps=0.1, device="cpu")
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            turned = bool(torch.rand(1) > 0.5)
            torch.manual_seed(seed)
            expected = peer.eta(side)
        pattern = square_l2._pattern(side)
        torch.testing.assert_close(pattern.T if turned else pattern, expected, atol=1e-6, rtol=0)


def test_a_pattern_on_paper():
    """Side 3: one row above two. Beside the centre of a bump lies a quarter of its height, before both get length 1."""
    upper = torch.tensor([0.25, 1.25, 0.25]) / math.sqrt(1.25**2 + 2 * 0.25**2)
    lower = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]]) / math.sqrt(1.25**2 + 5 * 0.25**2)
    torch.testing.assert_close(square_l2._pattern(3), torch.cat([upper[None], -lower]) / math.sqrt(2))


def test_an_image_that_never_changes_is_asked_about_each_move_once():
    """A net that answers the same to all is asked by ours, mostly once, about the points that theirs asks about."""
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)

    def points_of(attack):
        asked = []

        def net(points):
            asked.append(points.clone())
            return torch.tensor([[1.0, 0.0]]).repeat(len(points), 1)

        attack(net, images, labels, queries=1500)
        asked = torch.cat(asked)
        return len(asked), {tuple(point) for point in (asked * 1e4).round().flatten(1).tolist()}

    (fewer, points), (more, same) = points_of(ours), points_of(theirs)
    assert points == same
    assert len(points) <= fewer < 0.8 * more
    moves = Moves.drawn(images, 0.7, square._shares(1500), generator(3))
    assert fewer == 6 + int((moves.since < 0).sum())


def test_the_price_is_what_an_image_that_never_changes_costs():
    assert 2000 < square.price_of("L2", (1, 8, 8), square.QUERIES) < 3500
    assert square.price_of("L2", (3, 32, 32), square.QUERIES) > 4900
