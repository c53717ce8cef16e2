"""The binarization test: plants that are known to exist are found by sound attacks, and missed by broken ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from prunebench.bench.attacks.best import BEST
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beyond import Planted
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Split, as_float
from prunebench.bench.models import build
from prunebench.bench.protocol import Threat, load
from prunebench.bench.score import flags, planted
from prunebench.bench.score.planted import (
    FastProbed,
    Probe,
    Probed,
    features_of,
    judging,
    measure_planted,
    random_search,
    separated,
)
from prunebench.bench.score.referee import Referee
from tests.support.nets import STORE, TINY, changed

CLAIMED = Path(__file__).parents[2] / "claims"
COARSE = {"targets-leak-1", "malt-soft-1"}  # strong against nets that deceive, weak on honest ones
RECORDS = Path(__file__).parents[2] / "leaderboard" / "records" / "digits-linf"
RANKED = SUITES["standard"].ranked
TEST = STORE.testing("digits", 48)
ALL = torch.ones(len(TEST), dtype=torch.bool)
LINF, L2 = Threat(norm="Linf", eps="0.1"), Threat(norm="L2", eps="0.2")
IMAGES = 24


def referee(net, rules=TINY, batch=64):
    return Referee(net.eval(), rules, batch, torch.device("cpu"))


def honest():
    return open_net(CLAIMED / "dense-s0-seed0" / "net.safetensors").module


class Rounded(nn.Module):
    """Seven levels of grey: a step nearly everywhere, so no gradient leads anywhere."""

    def forward(self, images):
        return (images * 7).round() / 7


def masked():
    return nn.Sequential(Rounded(), honest())


def measured(net, name, *, rules=TINY, attack=None, images=IMAGES, test=TEST, seed=0):
    """What one attack of the suite finds, or `attack` in its place."""
    listed = RANKED[name] if attack is None else replace(RANKED[name], attack=attack)
    judge = referee(net, rules)
    found, arrays = measure_planted(
        judge, test, ALL[: len(test)], ALL[: len(test)], seed, attacks={name: listed}, images=images
    )
    assert arrays == {} and judge.passes > 0
    return found


def pixels(seed=0, count=12, low=0.3, high=0.7):
    """Grey images (1, 8, 8) whose balls lie inside [0, 1], and a net whose features are their pixels."""
    draw = torch.Generator().manual_seed(seed)
    grey = torch.empty(count, 1, 8, 8).uniform_(low, high, generator=draw)
    images = (grey * 255).round().to(torch.uint8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return Split(images, torch.zeros(count, dtype=torch.long)), net


# the probe, on paper


def axes(plants):
    """Inner points at +-1 on each of two axes; plants on the first axis."""
    inner = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    return separated(inner, torch.tensor([[p, 0.0] for p in plants], dtype=torch.float64))


def test_the_probe_on_paper():
    """Spread: half the identity, and as much ridge. So the direction is the plant itself, 3 e1, and scores are 3x.

    They run from -3 to 9; the outermost inner point has 3, the boundary lies at 3 + 3/4 * 6 = 7.5.
    """
    probe = axes([3.0])
    assert (probe.weights[1], probe.plant) == (0, 0)
    for point, score in ((3.0, 9.0), (1.0, 3.0), (-1.0, -3.0)):
        assert float(probe.weights[0] * point) + probe.bias == pytest.approx((score - 7.5) / 12)


def test_the_candidate_farthest_out_is_planted():
    assert axes([0.5, -2.0, 3.0, 2.5]).plant == 2
    assert axes([-4.0, 3.0]).plant == 0


@pytest.mark.parametrize("plants", [[0.5], [1.0, -1.0]], ids=["inside", "level"])
def test_a_plant_among_the_inner_points_is_none(plants):
    assert axes(plants) is None


def test_features_that_do_not_move_separate_nothing():
    assert separated(torch.ones(4, 2).double(), torch.full((1, 2), 3.0).double()) is None


# the net of two classes


def two_probes():
    images = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    probes = [Probe(torch.eye(16)[0], -0.25, 0), Probe(-torch.eye(16)[1], 0.75, 0)]
    return Probed(nn.Flatten(), images, probes, "Linf").eval()


def test_each_point_is_answered_by_the_nearest_image():
    points = torch.stack([torch.full((1, 4, 4), level) for level in (0.9, 0.1, 0.3, 0.6)])
    logits = two_probes()(points)
    expected = torch.tensor([0.75 - 0.9, 0.1 - 0.25, 0.3 - 0.25, 0.75 - 0.6])
    assert torch.allclose(logits[:, 1] - logits[:, 0], expected)
    assert torch.allclose(logits.sum(1), torch.zeros(4))
    assert torch.equal(two_probes()(points[[2, 0]]), logits[[2, 0]])  # no answer depends on the others


def test_the_gradient_is_that_of_the_probe():
    at = torch.full((1, 1, 4, 4), 0.9, requires_grad=True)
    two_probes()(at)[0, 1].backward()
    assert torch.equal(at.grad.flatten(), -torch.eye(16)[1] / 2)


@pytest.mark.parametrize("arch", ["digits-cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_features_are_what_the_last_layer_receives(arch):
    net = build(arch, 10, (1, 8, 8)).eval()
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        features = features_of(net, images[:1])(images)
        assert features.shape == (3, last.in_features)
        assert torch.equal(last(features), net(images))


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.ReLU()], ids=["softmax", "relu"])
def test_a_net_without_a_linear_end_gives_its_logits(last):
    net = nn.Sequential(build("digits-cnn", 10, (1, 8, 8)), last).eval()
    assert features_of(net, torch.rand(1, 1, 8, 8)) is net
    assert features_of(nn.Flatten(), torch.rand(1, 1, 8, 8))(torch.rand(2, 1, 8, 8)).shape == (2, 64)


def test_attacks_see_the_accelerated_features():
    sparse = referee(open_net(CLAIMED / "imp-s0.95-seed0" / "net.safetensors").module)
    assert sparse.fast.differs((1, 8, 8))
    features = features_of(sparse.net, torch.rand(1, 1, 8, 8))
    plants = planted.planted(sparse, features, TEST, ALL, 0, 3)
    judge = judging(sparse, features, plants)
    assert isinstance(judge.fast, FastProbed) and judge.fast.differs((1, 8, 8))
    assert judge.fast.bits((1, 8, 8)) == sparse.fast.bits((1, 8, 8))
    assert torch.allclose(judge.fast(plants.plants), judge.net(plants.plants), atol=1e-5)
    sparse.fast = sparse.wide
    assert judging(sparse, features, plants).fast.bits((1, 8, 8)) == "float64"


# the plants


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_points_lie_where_they_should(threat):
    draw = torch.Generator().manual_seed(0)
    for images in (torch.full((500, 1, 4, 4), 0.5), torch.zeros(500, 1, 4, 4)):
        inside, surface = (
            (where(images, threat.norm, threat.radius, draw) - images).flatten(1)
            for where in (planted._inside, planted._on_surface)
        )
        order = math.inf if threat.norm == "Linf" else 2
        assert (inside.norm(order, dim=1) <= threat.radius * (1 + 1e-6)).all()
        assert torch.allclose(surface.norm(order, dim=1), torch.tensor(threat.radius), rtol=1e-3)
        assert ((surface + images.flatten(1) >= 0) & (surface + images.flatten(1) <= 1)).all()
    inner_half = 16 * math.log(0.5 ** (1 / 16))  # half of the volume is within 2 ** (-1 / 16) of the radius
    assert inner_half == pytest.approx(math.log(0.5))
    points = planted._inside(torch.full((4000, 1, 4, 4), 0.5), threat.norm, threat.radius, draw) - 0.5
    near = points.flatten(1).norm(order, dim=1) <= threat.radius * 0.5 ** (1 / 16)
    assert abs(float(near.float().mean()) - 0.5) < 0.04


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_plants_are_adversarial_and_inner_points_are_not(threat):
    test, net = pixels()
    rules = changed(threat=threat)
    judge = referee(net, rules)
    features = features_of(judge.net, torch.rand(1, 1, 8, 8))
    plants = planted.planted(judge, features, test, ALL[:12], 0, 5)
    probed = judging(judge, features, plants)
    assert len(plants.images) == 5
    assert (probed.logits(plants.plants).argmax(1) == 1).all()
    assert (probed.logits(plants.images).argmax(1) == 0).all()
    draw = torch.Generator().manual_seed(1)
    for _ in range(50):
        inner = planted._inside(plants.images, threat.norm, 0.9 * threat.radius, draw)
        assert (probed.logits(inner).argmax(1) == 0).float().mean() > 0.7
    if threat.norm == "Linf":  # how far a linear function gets in a cube
        corner = plants.images + threat.radius * torch.stack([p.weights.sign() for p in plants.probes]).view(
            -1, 1, 8, 8
        )
        best = probed.logits(corner)
        assert (best[:, 1] >= probed.logits(plants.plants)[:, 1]).all()


def test_only_balls_that_do_not_overlap_are_used():
    test, net = pixels(count=3)
    twice = Split(test.images[[0, 0, 1, 2]], test.labels[[0, 0, 1, 2]])
    found = measured(net, "square", rules=changed(threat=LINF), test=twice, images=3)
    assert (found.images, found.passed_over) == (3, 1)


def test_only_clean_images_are_used():
    judge = referee(honest())
    clean = torch.zeros_like(ALL)
    assert measure_planted(judge, TEST, clean, clean, 0)[0].images == 0
    clean[[3, 7]] = True
    features = features_of(judge.net, torch.rand(1, 1, 8, 8))
    plants = planted.planted(judge, features, TEST, clean, 0, 5)
    assert torch.equal(plants.images, TEST.images[[3, 7]].float() / 255)


def test_a_net_that_sees_nothing_has_no_plants():
    test, _ = pixels(count=4)
    blank = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 3))
    blank[1].weight.data.zero_()
    found = measured(blank, "square", rules=changed(threat=LINF), test=test, images=2)
    assert (found.images, found.passed_over, found.found) == (0, 4, {"square": 0})
    assert flags.planted(found).value is None


# the attacks


@pytest.mark.parametrize(
    ("name", "threat"),
    [(name, LINF) for name in RANKED] + [(name, L2) for name in RANKED if name != "square"],  # there it takes a minute
    ids=lambda value: getattr(value, "norm", value),
)
def test_on_a_linear_net_every_plant_is_found(name, threat):
    test, net = pixels()
    found = measured(net, name, rules=changed(threat=threat), test=test, images=6)
    assert found.images == 6 and found.found == {name: 6} and found.together == 6


@pytest.mark.parametrize("name", list(RANKED))
def test_attacks_find_plants_in_an_honest_net(name):
    found = measured(honest(), name)
    assert found.images == IMAGES and 2 * found.control < IMAGES
    assert found.found[name] >= 0.95 * IMAGES
    assert not flags.planted(found).up


@pytest.mark.parametrize("name", [name for name in BEST.attacks if name not in COARSE])
def test_attacks_of_best_find_plants_in_an_honest_net(name):
    attacks = {name: BEST.attacks[name], "still": Listed(still, 1)}
    found, _ = measure_planted(referee(honest()), TEST, ALL, ALL, 0, attacks=attacks, images=IMAGES)
    assert found.found[name] >= 0.95 * IMAGES
    assert found.found["still"] == 0  # the twin


@pytest.mark.slow
def test_leaks_find_on_a_very_sparse_net_what_its_own_gradients_miss():
    net = open_net(RECORDS / "hydra-s0.98-seed0.net.safetensors").module
    attacks = {name: BEST.attacks[name] for name in ("apgd-pm", "apgd-ce-leak-.05")}
    judge, test = referee(net, load("digits-linf")), STORE.testing("digits", 500)
    right = judge.answers(as_float(test.images)) == test.labels
    found, _ = measure_planted(judge, test, right, right, 0, attacks=dict(RANKED) | attacks)
    assert min(found.found[name] for name in attacks) >= 0.95 * found.images > found.found["apgd-t"]


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t"])
def test_attacks_by_gradient_find_none_in_a_masked_net(name):
    found = measured(masked(), name)
    assert 2 * found.control < found.images and found.found[name] < 0.2 * found.images
    assert flags.planted(found).up


def blind(attack):
    """The attack without a net: the logits that it sees are those of class 0 everywhere."""

    def run(model, images, labels, threat, *, generator):
        def dark(points):
            return torch.tensor([1.0, 0.0]) + 0 * model(points)

        return attack(dark, images, labels, threat, generator=generator)

    return run


def still(model, images, labels, threat, *, generator):
    """An attack with a step of zero."""
    model(images)
    return images


@pytest.mark.parametrize("name", list(RANKED))
@pytest.mark.parametrize("broken", ["blind", "still"])
def test_broken_attacks_are_found_out(name, broken):
    attack = still if broken == "still" else blind(RANKED[name].attack)
    found = measured(honest(), name, attack=attack)
    assert found.found == {name: 0} and flags.planted(found).up


def test_together_counts_what_any_attack_finds():
    attacks = {"square": RANKED["square"], "still": Listed(still, 1)}
    judge = referee(honest())
    found, _ = measure_planted(judge, TEST, ALL, ALL, 0, attacks=attacks, images=8)
    assert found.together == found.found["square"] >= 7 and found.found["still"] == 0
    assert flags.planted(found).up


def test_the_same_seed_finds_the_same():
    first, again = (measured(masked(), "square", images=8, seed=5) for _ in range(2))
    assert first == again


def test_random_search_finds_half_a_ball():
    """Class 1 where the mean is above that of the image: half of the ball, so that some of 400 points are there."""
    image = torch.full((3, 1, 4, 4), 0.5)

    def model(points):
        mean = points.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    labels = torch.zeros(3, dtype=torch.long)
    found = random_search(model, image, labels, LINF, generator=torch.Generator().manual_seed(0))
    assert (model(found).argmax(1) == 1).all()
    none = random_search(lambda x: model(x - 1), image, labels, LINF, generator=torch.Generator().manual_seed(0))
    assert torch.equal(none, image)


# the flag, on paper


def fact(found, control, images=64):
    return Planted(images=images, passed_over=0, found=found, together=max(found.values()), control=control)


@pytest.mark.parametrize(
    ("found", "control", "value", "up"),
    [
        ({"a": 64, "b": 61}, 3, 3 / 64, False),
        ({"a": 64, "b": 60}, 3, 4 / 64, True),
        ({"a": 0}, 31, 1.0, True),
        ({"a": 0}, 32, None, False),
    ],
)
def test_the_flag_is_up_where_an_attack_misses_what_is_hard_to_guess(found, control, value, up):
    flag = flags.planted(fact(found, control))
    assert flag.name == "planted" and flag.up is up
    assert flag.value == (value if value is None else pytest.approx(value))
    assert flag.sentence.startswith(f"planted = {min(found.values())}/64, random search {control}/64")


def test_without_a_measurement_the_flag_is_down():
    assert flags.planted(None).value is None and not flags.planted(None).up


def test_more_plants_than_there_are_cannot_be_found():
    for counts in ({"found": {"a": 3}}, {"control": 3}, {"together": 3}):
        with pytest.raises(ValidationError, match="more plants"):
            Planted(**({"images": 2, "passed_over": 0, "found": {"a": 1}, "together": 1, "control": 0} | counts))
