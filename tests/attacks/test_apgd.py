"""APGD on several targets at once gives what it gives on one after the other, bit for bit, with fewer questions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from prunebench.bench.attacks import apgd
from prunebench.bench.attacks.base import lanes
from prunebench.bench.attacks.targets import long_malt
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.executor import fast
from prunebench.bench.protocol import Threat
from tests.support.nets import STORE
from tools.verdicts import CLAIMS

RECORDS = CLAIMS.parent / "leaderboard" / "records"
LINF, L2 = Threat(norm="Linf", eps="0.23"), Threat(norm="L2", eps="0.8")
NOTHING = Threat(norm="Linf", eps="0.0001")
NET = fast(open_net(CLAIMS / "imp-s0.95-seed0" / "net.safetensors").module.requires_grad_(False))
TEST = STORE.testing("digits", 9)
IMAGES, LABELS = as_float(TEST.images)[1:], TEST.labels[1:]


class Asked:
    """A net that says how many images it answers in the time of one, and how often it was asked how many."""

    def __init__(self, room: int = 1) -> None:
        self.room, self.batches = room, []

    def lanes(self, shape):
        return self.room

    def __call__(self, images):
        self.batches.append(len(images))
        return NET(images)


def attacked(net, threat, images=IMAGES, targets=9):
    return apgd.apgd_t(net, images, LABELS[: len(images)], threat, targets, 0)


def fallen(threat, targets):
    return (attacked(Asked(), threat, targets=targets) != IMAGES).flatten(1).any(1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_targets_at_once_give_what_they_give_in_turn(threat, count):
    alone, together = Asked(), Asked(16)
    images = IMAGES[:count]
    assert torch.equal(attacked(together, threat, images), attacked(alone, threat, images))
    assert sum(together.batches) >= sum(alone.batches)
    assert max(together.batches) <= 16


def test_larger_images_in_l2_are_added_up_alike(request, monkeypatch):
    """Eleven images of 3072 values pass the size from which torch shares out sums among threads."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    monkeypatch.setattr(apgd, "climbed", partial(apgd.climbed, steps=10))
    torch.set_num_threads(2)
    kept = RECORDS / "cifar10-small-linf" / "random-s0.9-seed0.net.safetensors"
    net = fast(open_net(kept).module.requires_grad_(False))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels, threat = net(images).argmax(1), Threat(norm="L2", eps="0.3")
    assert lanes(net, images) == 16
    together = apgd.apgd_t(net, images, labels, threat, 9, 0)
    assert torch.equal(together, apgd.apgd_t(lambda points: net(points), images, labels, threat, 9, 0))
    assert not torch.equal(together, images)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_some_images_fall_to_a_later_target_and_some_stand(threat):
    """The premise of the test above: what follows a fall has to be discarded and attacked again."""
    first, every = fallen(threat, 1), fallen(threat, 9)
    assert (every & ~first).any()
    assert not every.all()


def test_random_numbers_that_were_not_given_back_are_seen(monkeypatch):
    """The twin: what is attacked again after a fall would start elsewhere."""
    alone, climbed = attacked(Asked(), L2), apgd._climbed

    def kept(*given):
        found = climbed(*given)
        return [(replace(turn, after=found[-1][0].after), *rest) for turn, *rest in found]

    monkeypatch.setattr(apgd, "_climbed", kept)
    assert not torch.equal(attacked(Asked(16), L2), alone)


def test_an_image_that_stands_costs_one_turn_of_questions_in_place_of_nine():
    """A look at the classes, then 101 gradients."""
    for room, batches in ((1, [1] * (1 + 9 * 101)), (16, [1] + [9] * 101), (4, [1] + [4] * 202 + [1] * 101)):
        net = Asked(room)
        attacked(net, NOTHING, IMAGES[:1])
        assert net.batches == batches


def test_restarts_run_at_once_too():
    """Five starts of 500 steps, after one gradient."""
    net = Asked(16)
    long_malt(net, IMAGES[:1], LABELS[:1], NOTHING, generator=torch.Generator())
    assert net.batches == [1] + [5] * 501


def test_only_kernels_answer_several_images_in_the_time_of_one():
    assert lanes(NET, IMAGES) == 16
    assert lanes(lambda images: images, IMAGES) == 1
    assert lanes(Asked(16), torch.zeros(1, 3, 128, 128)) == 1  # a single sum of so many values depends on the threads
