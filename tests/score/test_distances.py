"""Distances that the referee measures, on nets whose distances are known on paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.bench.attacks.fmn import lengths
from prunebench.bench.attacks.pgd import usual_pgd
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score import distances
from prunebench.bench.score.distances import measure_distances
from prunebench.bench.score.referee import Referee
from tests.support.nets import STORE, Bright, changed

NET = Path(__file__).parents[2] / "claims" / "imp-s0.95-seed0" / "net.safetensors"
NORMS = ("Linf", "L2")
CPU = torch.device("cpu")
GREYS = [51, 77, 102, 115, 140, 153, 179, 204]  # of 255; Bright tells class 1 from 128 on
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
TEST = Split(torch.tensor(GREYS, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), LABELS)
ALL = torch.ones(8, dtype=torch.bool)


def referee(norm="Linf", eps="0.1", module=None, **rules):
    return Referee(with_third(module or Bright()), changed(threat=Threat(norm=norm, eps=eps), **rules), 8, CPU)


def with_third(module):
    """`module` with a third class that is never chosen: of two, float32 is not trusted near a tie."""

    class Third(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, images):
            logits = self.inner(images)
            return torch.cat([logits, logits.amin(1, keepdim=True) - 1], dim=1)

    return Third()


def on_paper(norm):
    """A grey image is fooled at mid-grey: all 64 pixels move alike."""
    return np.abs(np.array(GREYS) / 255 - 0.5) * (1 if norm == "Linf" else 8)


@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_those_on_paper_and_never_below(norm):
    facts, arrays = measure_distances(referee(norm), TEST, ALL, ALL, 0)
    found, shortest = arrays["distance"], on_paper(norm)
    assert found.dtype == np.float32 and arrays.keys() == facts.kinds(8).keys()
    assert (found >= shortest * (1 - 1e-4)).all()
    assert found == pytest.approx(shortest, rel=2e-3)
    assert facts.attack == "fmn" and facts.median == pytest.approx(np.sort(shortest)[3], rel=2e-3)
    assert facts.recounted(arrays) == {
        "distances.median": (facts.median, facts.median),
        "impossible distances": (0, 0),
    }


def test_what_was_wrong_has_no_distance_and_what_nothing_fools_an_infinite_one():
    clean = ALL.clone()
    clean[[0, 5]] = False
    found = measure_distances(referee(), TEST, clean, clean, 0)[1]["distance"]
    assert found[[0, 5]].tolist() == [0, 0] and (np.delete(found, [0, 5]) > 0).all()

    class Zero(Bright):
        def forward(self, images):
            return super().forward(0 * images)  # grey 0 whatever it sees: class 0

    facts, arrays = measure_distances(referee(module=Zero()), TEST, LABELS == 0, LABELS == 0, 0)
    assert arrays["distance"].tolist() == [np.inf] * 4 + [0] * 4
    assert facts.median == 0  # the fourth smallest of eight


def test_an_image_that_autoattack_fools_is_at_most_at_eps():
    robust = ALL.clone()
    robust[[0, 3]] = False  # at .3 and at .049
    found = measure_distances(referee(eps="0.1"), TEST, ALL, robust, 0)[1]["distance"]
    assert found[0] == np.float32(0.1)
    assert found[3] == pytest.approx(on_paper("Linf")[3], rel=2e-3)
    assert found[[1, 2]] == pytest.approx(on_paper("Linf")[[1, 2]], rel=2e-3)  # robust, and left as measured


def test_the_attack_is_not_believed(monkeypatch):
    """One that says nothing further than 1/1000 is needed, and one that proposes no numbers."""
    for lie in (lambda images: (images + 0.001).clamp(0, 1), lambda images: images * torch.nan):
        monkeypatch.setattr(distances, "nearest", lambda model, images, *_, lie=lie, generator: lie(images))
        assert np.isinf(measure_distances(referee(), TEST, ALL, ALL, 0)[1]["distance"]).all()


def test_a_far_proposal_is_drawn_in(monkeypatch):
    """Proposed are black and white: .8 away at most, and the way back is measured, to a part in 2^10 of it."""
    monkeypatch.setattr(distances, "nearest", lambda model, images, *_, generator: (images < 0.5).float())
    found = measure_distances(referee(), TEST, ALL, ALL, 0)[1]["distance"]
    assert found == pytest.approx(on_paper("Linf"), abs=0.8 / 2**10)
    monkeypatch.setattr(distances, "_HALVINGS", 0)
    far = measure_distances(referee(), TEST, ALL, ALL, 0)[1]["distance"]  # the twin
    assert far == pytest.approx(np.where(np.array(GREYS) < 128, 1 - np.array(GREYS) / 255, np.array(GREYS) / 255))


def test_each_shard_is_a_world_of_its_own_and_passes_are_counted():
    """The first shard alone has the same bits as with the second behind it."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    test, judge = TEST.take(order), referee("L2", shard=4)
    whole = measure_distances(judge, test, ALL, ALL, 3)[1]["distance"]
    assert judge.passes > 8 * 3 * 30
    alone = measure_distances(referee("L2", shard=4), test.take(slice(4)), ALL[:4], ALL[:4], 3)[1]["distance"]
    assert (whole[:4] == alone).all()


def test_a_plane_is_as_far_as_its_margin_over_the_dual_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    drawn = torch.Generator().manual_seed(0)
    net[1].weight.data = torch.randn(2, 64, generator=drawn)
    net[1].bias.data = -net[1].weight.data.sum(1) / 2  # a tie at mid-grey
    images = torch.randint(115, 140, (12, 1, 8, 8), generator=drawn, dtype=torch.uint8)
    margin = net(as_float(images)).detach() @ torch.tensor([1.0, -1.0])
    normal = net[1].weight.data[0] - net[1].weight.data[1]
    test, every = Split(images, (margin < 0).long()), torch.ones(12, dtype=torch.bool)
    for norm, dual in (("Linf", normal.abs().sum()), ("L2", normal.norm())):
        found = measure_distances(referee(norm, module=net), test, every, every, 0)[1]["distance"]
        shortest = (margin.abs() / dual).numpy()
        assert (found >= shortest * (1 - 1e-3)).all()
        assert found == pytest.approx(shortest, rel=3e-3)


def test_on_a_trained_sparse_net_it_finds_nearly_all_that_pgd_finds():
    net, test = open_net(NET), STORE.testing("digits", 48)
    judge = Referee(net.module, net.header.protocol, 48, CPU)
    clean = judge.answers(as_float(test.images)) == test.labels
    found = torch.from_numpy(measure_distances(judge, test, clean, clean, 0)[1]["distance"])
    pgd = judge.fooled(usual_pgd(50), as_float(test.images), test.labels, 0).fooled & clean
    eps = judge.rules.threat.radius * (1 + 1e-5)
    assert pgd.sum() > 5 and found.isfinite().all()
    assert (found[pgd] <= eps).float().mean() > 0.9
    assert lengths(found[clean].unsqueeze(1), "L2").min() > 0
