"""SNIP, GraSP and SynFlow are right: their scores are those of the papers, on the adversarial loss or without data."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import draw, erk, keep_largest, masked, rescaled
from prunebench.pruners import at_init
from prunebench.pruners.at_init import SNIP, GraSP, SynFlow, flow, gradient
from tests.pruners.test_pruners import SIZES, WHOLE, Watched, is_mask_of, kept, same
from tests.support.nets import changed, lab

RULES = changed(train=128, units=2.0, validate_every=100)  # 6 epochs of two steps

# The gradient on paper. x = (1, 2) has equal logits 5 and 5 under W, so p - y = (-1/2, 1/2) and g = (p - y) x^T.
LAYER = nn.Linear(2, 2, bias=False)
W = {"weight": torch.tensor([[1.0, 2.0], [3.0, 1.0]])}
X, Y = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
G = torch.tensor([[-0.5, -1.0], [0.5, 1.0]])


def test_the_gradient_of_a_linear_layer_on_paper():
    assert torch.equal(X @ W["weight"].T, torch.tensor([[5.0, 5.0]]))
    assert torch.equal(gradient(LAYER, W, X, Y)["weight"], G)
    assert torch.equal(gradient(LAYER, W, X, Y, temperature=4.0)["weight"], G / 4)
    both = gradient(LAYER, W, torch.cat([X, X]), torch.tensor([0, 1]))["weight"]  # the other label: the other sign
    assert torch.equal(both, torch.zeros(2, 2))


class OneLayer:
    """What `scores` needs of a lab; the layer is the net, its image is every batch, and the attack changes nothing."""

    shapes, device, attack_passes, train = {"weight": (2, 2)}, torch.device("cpu"), 0, [None]
    protocol = SimpleNamespace(training=SimpleNamespace(batch=1))

    def initial(self):
        return W

    def calibrated(self, stage, state, *, batches):
        return state

    def model(self, state):
        return copy.deepcopy(LAYER)

    def sample(self, name, images):
        return X, Y

    def attack(self, model, images, labels, *, name):
        return images

    def loop(self, stage, state, step, *, steps, passes, facts):
        for index in range(steps):
            state = step(state, index)
        return state


@pytest.mark.parametrize("batches", [1, 3])
def test_snips_scores_on_paper(batches):
    """|g * w|: 1/2 * 1, 1 * 2, 1/2 * 3, 1 * 1; the mean over equal batches is that of a single one."""
    torch.testing.assert_close(SNIP(batches).scores(OneLayer())["weight"], torch.tensor([[0.5, 2.0], [1.5, 1.0]]))


def test_grasps_scores_on_paper():
    """w * (H g): H = (x x^T) times 1/4 [[1, -1], [-1, 1]] over the classes, g = +-1/2 x and |x|^2 = 5, so H g = 5/2 g.

    The products are negative where raising the weight lowers |g|^2: 5/2 * (-1/2 * 1, -1 * 2, 1/2 * 3, 1 * 1).
    """
    scores = GraSP(1).scores(OneLayer())["weight"]
    torch.testing.assert_close(scores, 2.5 * torch.tensor([[-0.5, -2.0], [1.5, 1.0]]))


# The Hessian of a small net, in double precision


def small_net():
    """A net of 12 prunable weights, its batch norm in eval mode with statistics of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2)).double().eval()
    net.get_submodule("1").running_mean.copy_(torch.tensor([0.3, -0.2]))
    net.get_submodule("1").running_var.copy_(torch.tensor([0.5, 2.0]))
    return net.requires_grad_(False)


NET = small_net()
WEIGHTS = {name: NET.get_parameter(name) for name in ("0.weight", "4.weight")}
IMAGES = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, 1, 1])


def split(flat):
    return {"0.weight": flat[:8].view(2, 1, 2, 2), "4.weight": flat[8:].view(2, 2)}


def joined(weights):
    return torch.cat([weight.flatten() for weight in weights.values()])


def loss(flat, temperature=1.0):
    return F.cross_entropy(functional_call(NET, split(flat), (IMAGES,)) / temperature, LABELS)


def flow_of_gradient(flat):
    """|g|^2 by the plain backward pass."""
    flat = flat.clone().requires_grad_()
    return torch.autograd.grad(loss(flat), flat)[0].square().sum()


def check_hessian(product):
    for temperature in (1.0, 200.0):
        hessian = torch.autograd.functional.hessian(partial(loss, temperature=temperature), joined(WEIGHTS))
        assert hessian.shape == (12, 12) and hessian.abs().max() > 1e-6
        g = gradient(NET, WEIGHTS, IMAGES, LABELS, temperature)
        for v in (g, split(torch.arange(12.0, dtype=torch.float64) - 5)):
            found = joined(product(NET, WEIGHTS, IMAGES, LABELS, temperature, v))
            torch.testing.assert_close(found, hessian @ joined(v), rtol=1e-9, atol=1e-15)


def test_the_hessian_product_is_the_explicit_one():
    check_hessian(gradient)


@pytest.mark.parametrize(
    "twin",
    [
        lambda net, weights, x, y, t, v: gradient(net, weights, x, y, t),  # g itself
        lambda net, weights, x, y, t, v: gradient(net, weights, x, y, 1.0, v),  # no temperature
        lambda net, weights, x, y, t, v: {  # the layers' own blocks of H, without those between layers
            name: gradient(net, {name: weights[name]}, x, y, t, {name: v[name]})[name] for name in weights
        },
    ],
    ids=["gradient", "temperature", "blocks"],
)
def test_hessian_twin(twin):
    with pytest.raises(AssertionError):
        check_hessian(twin)


def check_sign(scores):
    """Removing a share t of weight q changes |g|^2 by -2 t times its score: GraSP keeps the largest scores."""
    flat, g = joined(WEIGHTS), gradient(NET, WEIGHTS, IMAGES, LABELS)
    given, step = joined(scores(g)), 1e-5
    for q in range(12):
        less, more = flat.clone(), flat.clone()
        less[q] *= 1 - step
        more[q] *= 1 + step
        slope = (flow_of_gradient(less) - flow_of_gradient(more)) / (2 * step)
        assert float(slope) == pytest.approx(-2 * float(given[q]), rel=1e-5, abs=1e-10)


def test_a_high_score_is_a_weight_without_which_the_gradient_flow_falls():
    check_sign(lambda g: {n: WEIGHTS[n] * hg for n, hg in gradient(NET, WEIGHTS, IMAGES, LABELS, 1.0, g).items()})


def test_twin_the_other_sign():
    with pytest.raises(AssertionError):
        check_sign(lambda g: {n: -WEIGHTS[n] * hg for n, hg in gradient(NET, WEIGHTS, IMAGES, LABELS, 1.0, g).items()})


# The methods on a lab

PRUNERS = {"snip": SNIP(batches=2), "grasp": GraSP(batches=2, temperature=200.0), "synflow": SynFlow(iterations=20)}


class Searching(Watched):
    """A lab that also writes down the dense net, what it attacked, and each search."""

    def calibrated(self, stage, state, *, batches):
        """As Lab.calibrated."""
        self.dense = super().calibrated(stage, state, batches=batches)
        return self.dense

    def loop(self, stage, start, step, **options):
        """As Lab.loop."""
        states = [start]
        self.searches = getattr(self, "searches", {}) | {stage: states}

        def watched(now, index):
            states.append(step(now, index))
            return states[-1]

        return super().loop(stage, start, watched, **options)


def use(pruner, tmp_path, sparsity=0.95, rules=RULES):
    room = lab(tmp_path, rules, sparsity=sparsity, kind=Searching)
    return room, pruner(room.job, room)


def adversarial(room):
    """The images of the two batches, attacked on the calibrated dense net, and the labels."""
    net = room.model(room.dense).eval()
    samples = [room.sample(f"score {i}", 64) for i in range(2)]
    found = [Lab.attack(room, net, *sample, name=f"score {i}") for i, sample in enumerate(samples)]
    assert not torch.equal(found[0], samples[0][0])
    return net, torch.cat(found), torch.cat([labels for _, labels in samples])


def scores_of(room, kind):
    """The scores on paper from all images at once: |w g|, or w * H g by a derivative forward over the gradient."""
    net, images, labels = adversarial(room)
    weights = {name: room.dense[name] for name in SIZES}
    temperature = 200.0 if kind == "grasp" else 1.0

    def slope(values):
        return torch.func.grad(lambda v: F.cross_entropy(functional_call(net, v, (images,)) / temperature, labels))(
            values
        )

    g = slope(weights)
    if kind == "snip":
        return {name: (weights[name] * g[name]).abs() for name in SIZES}
    _, product = torch.func.jvp(slope, (weights,), (g,))
    return {name: weights[name] * product[name] for name in SIZES}


def check_gradients(kind, tmp_path):
    """The mask holds the largest scores of all layers together; training starts from the initial weights under it."""
    room, state = use(PRUNERS[kind], tmp_path)
    (asked,) = room.asked
    masks, scores = asked.masks, scores_of(room, kind)
    assert sum(kept(masks).values()) == room.keep == 1908
    inside, outside = (torch.cat([scores[n][m if keep else ~m] for n, m in masks.items()]) for keep in (True, False))
    assert inside.min() > 0 and inside.min() >= outside.max() - 1e-4 * outside.max()
    assert is_mask_of(masks, asked.start) and same(asked.start, masked(room.initial(), masks))
    assert is_mask_of(masks, state) and same(state, asked.trained.weights)


@pytest.mark.parametrize("kind", ["snip", "grasp"])
def test_the_mask_holds_the_largest_scores_of_the_adversarial_loss(kind, tmp_path):
    check_gradients(kind, tmp_path)


def statistics_of_the_beginning(self, stage, state, *, batches):
    self.dense = Lab.calibrated(self, stage, state, batches=batches)
    return state


PRODUCTS = at_init._products
TWINS = {
    "clean images": (Searching, "attack", lambda self, model, images, labels, *, name: images),
    "statistics of the beginning": (Searching, "calibrated", statistics_of_the_beginning),
    "one weight too many": (at_init, "keep_largest", lambda scores, keep: keep_largest(scores, keep + 1)),
    "the smallest": (
        at_init,
        "keep_largest",
        lambda scores, keep: keep_largest({name: -score for name, score in scores.items()}, keep),
    ),
    "either sign": (
        at_init,
        "_products",
        lambda *args, **options: {name: p.abs() - 1e-9 for name, p in PRODUCTS(*args, **options).items()},
    ),
    "without the weight": (
        at_init,
        "_products",
        lambda room, *args, **options: {
            name: p / room.initial()[name] for name, p in PRODUCTS(room, *args, **options).items()
        },
    ),
    "rescaled": (at_init, "masked", rescaled),
}


@pytest.mark.parametrize(
    ("twin", "kind"),
    [
        (twin, kind) for twin in TWINS for kind in ("snip", "grasp") if (twin, kind) != ("either sign", "snip")
    ],  # is SNIP
)
def test_gradients_twin(twin, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(*TWINS[twin])
    with pytest.raises((AssertionError, PrunebenchError)):  # the smallest scores may leave no path
        check_gradients(kind, tmp_path)


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_start_like_that_of_random(kind, tmp_path):
    room, _ = use(replace(PRUNERS[kind], start="rescaled"), tmp_path)
    assert same(room.asked[0].start, rescaled(room.initial(), room.asked[0].masks))


# SynFlow


def test_the_flow_on_paper():
    """Two layers: |W1| = 1 2 / 3 0, |W2| = 1 2. Paths: 1*1 + 1*2 + 2*3 + 2*0 = 9 in all, whatever biases and signs."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    net = nn.Sequential(nn.Identity(), body)
    shapes = {"1.1.weight": (2, 2), "1.3.weight": (1, 2)}
    room = SimpleNamespace(
        model=lambda: net, shapes=shapes, info=SimpleNamespace(shape=(1, 1, 2)), device=torch.device("cpu")
    )
    weights = {"1.1.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0]]), "1.3.weight": torch.tensor([[-1.0, 2.0]])}
    scores = flow(room, weights)
    assert scores["1.1.weight"].tolist() == [[1.0, 2.0], [6.0, 0.0]] and scores["1.3.weight"].tolist() == [[3.0, 6.0]]


def check_conservation(scores_of, room):
    """In a chain of layers every layer's scores sum to R, dense or masked, and are not negative."""
    start = room.initial()
    masks = draw(room.shapes, erk(room.shapes, room.keep), torch.Generator().manual_seed(0))
    totals = []
    for weights in (start, masked(start, masks)):
        scores = scores_of(room, weights)
        sums = [float(score.sum()) for score in scores.values()]
        assert sums == pytest.approx([sums[0]] * 4, rel=1e-9) and sums[0] > 0
        assert all((score >= 0).all() and score.dtype == torch.float64 for score in scores.values())
        assert all(not scores[name][weights[name] == 0].any() for name in SIZES)
        totals.append(sums[0])
    assert totals[1] < totals[0]


def test_every_layer_carries_the_same_flow(tmp_path):
    check_conservation(flow, lab(tmp_path, RULES))


def test_twin_scores_without_the_weight(tmp_path):
    """dR/d|w| alone is not conserved."""
    with pytest.raises(AssertionError):
        check_conservation(
            lambda room, weights: {n: s / weights[n].abs().clamp_min(1e-9) for n, s in flow(room, weights).items()},
            lab(tmp_path, RULES),
        )


def check_synflow(tmp_path):
    """At .99 of 38,160 weights 381 stay; after k of 20 cuts, round(38160 * d^(k/20)); nested; no layer is empty."""
    room, state = use(SynFlow(iterations=20), tmp_path, sparsity=0.99)
    (asked,) = room.asked
    assert room.keep == 381 and sum(kept(asked.masks).values()) == 381
    steps = [*room.searches["search"], asked.masks]
    assert [sum(kept(step).values()) for step in steps] == [
        round(WHOLE * (381 / WHOLE) ** (done / 20)) for done in range(21)
    ]
    start = room.initial()
    for before, after in pairwise(steps):
        assert all((before[name] | ~after[name]).all() for name in SIZES)
        scores = flow(room, masked(start, before))
        stay, go = (torch.cat([scores[n][before[n] & (after[n] == kind)] for n in SIZES]) for kind in (True, False))
        assert stay.min() >= go.max()
    assert all(kept(asked.masks).values())
    assert is_mask_of(asked.masks, state) and same(asked.start, masked(start, asked.masks))


def test_synflow_cuts_by_its_schedule_and_leaves_no_layer_empty(tmp_path):
    check_synflow(tmp_path)


@pytest.mark.parametrize("twin", ["magnitude", "all at once", "fresh masks"])
def test_synflow_twin(twin, tmp_path, monkeypatch):
    if twin == "magnitude":  # empties the layer with the smallest initial weights
        real = at_init.flow
        monkeypatch.setattr(
            at_init, "flow", lambda room, weights: {name: weights[name].abs().double() for name in real(room, weights)}
        )
    elif twin == "all at once":
        monkeypatch.setattr(at_init, "keep_largest", lambda scores, keep, among: keep_largest(scores, 381, among))
    else:
        dense = lab(tmp_path, RULES).initial()
        monkeypatch.setattr(at_init, "masked", lambda state, masks: dense)  # scores of the dense net in every round
    with pytest.raises((AssertionError, PrunebenchError)):
        check_synflow(tmp_path)


def test_synflow_sees_no_image(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("it looked at data")

    monkeypatch.setattr(Lab, "sample", refuse)
    monkeypatch.setattr(Lab, "attack", refuse)
    use(SynFlow(iterations=3), tmp_path)
    with pytest.raises(AssertionError, match="looked at data"):
        use(SNIP(), tmp_path)


# All three


@pytest.mark.parametrize("kind", PRUNERS)
def test_the_search_is_charged_and_the_rest_trains(kind, tmp_path):
    """An epoch is two batches of 64 at 12 passes; an attack 9, a gradient 3, a product with H 3 + 6, a flow 3."""
    room, _ = use(PRUNERS[kind], tmp_path)
    granted, epoch, images = 6 * 128 * 12, 128 * 12, 2 * 64
    searches = {
        "snip": [("calibrate", images), ("gradient", images * 12)],
        "grasp": [("calibrate", images), ("gradient", images * 12), ("curvature", images * 18)],
        "synflow": [("search", 20 * 3)],
    }[kind]
    rest = (granted - sum(passes for _, passes in searches)) // epoch
    assert [(s.name, s.passes) for s in room.meter.stages] == [*searches, ("train", rest * epoch)]
    assert room.meter.granted - room.meter.spent < epoch and room.asked[0].options == {"epochs": rest}


@pytest.mark.parametrize("kind", PRUNERS)
def test_shuffle_moves_weights_inside_their_layers(kind, tmp_path):
    plain, _ = use(PRUNERS[kind], tmp_path)
    moved, state = use(replace(PRUNERS[kind], shuffle=True), tmp_path)
    (before,), (after,) = plain.asked, moved.asked
    assert kept(before.masks) == kept(after.masks) and is_mask_of(after.masks, state)
    partly = [name for name, size in SIZES.items() if 0 < kept(before.masks)[name] < size]
    assert len(partly) >= 3 and not any(torch.equal(before.masks[name], after.masks[name]) for name in partly)
    assert same(after.start, rescaled(moved.initial(), after.masks))
    assert plain.searches.keys() == moved.searches.keys()
    assert all(len(states) == 1 for states in moved.searches.values())  # the same search: none of its steps ran again


@pytest.mark.parametrize("kind", PRUNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_stop_before_training(kind, bad, tmp_path):
    room = lab(tmp_path, RULES, kind=Searching)
    start = room.initial() | {"1.9.weight": torch.full((10, 64), bad)}
    room.initial = lambda: start
    room.attack = lambda model, images, labels, *, name: images
    with pytest.raises(PrunebenchError, match=r"with NaN or infinite values in .*1\.\d\.weight"):
        PRUNERS[kind](room.job, room)
    assert not hasattr(room, "asked")


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_mask_without_a_path_stops_before_training(kind, tmp_path):
    """Three weights for a chain of four layers."""
    room = lab(tmp_path, RULES, sparsity=1 - 3.5 / WHOLE, kind=Searching)
    assert room.keep == 3
    with pytest.raises(PrunebenchError, match=r"keeps 3 of 38,160 weights, but the shortest path .* has 4, so no"):
        PRUNERS[kind](room.job, room)
    assert "train" not in {stage.name for stage in room.meter.stages}


def test_synflow_keeps_a_path_with_one_weight_for_each_layer(tmp_path):
    room = lab(tmp_path, RULES, sparsity=1 - 4.5 / WHOLE, kind=Searching)
    SynFlow()(room.job, room)
    assert kept(room.asked[0].masks) == dict.fromkeys(SIZES, 1)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (SNIP, {"batches": 0}, "batches = 0"),
        (GraSP, {"batches": -1}, "batches = -1"),
        (GraSP, {"temperature": 0.0}, "temperature = 0.0"),
        (SynFlow, {"iterations": 0}, "iterations = 0"),
        (SynFlow, {"start": "dense"}, "start = 'dense'"),
        (SNIP, {"start": "dense"}, "start = 'dense'"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_a_budget_that_the_scores_eat_is_refused(tmp_path):
    with pytest.raises(PrunebenchError, match=r"'train' would have 0 of the 6 epochs .* or lower batches"):
        use(SNIP(batches=12), tmp_path)
