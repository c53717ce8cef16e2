"""AWT is right: kernel products without the kernel, a search that nears the dense net, masks fixed before training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import prunebench.bench.lab.backend
from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import erk, keep_largest_by_layer, masked, rescaled
from prunebench.pruners import awt
from prunebench.pruners.awt import AWT, PRODUCTS, kernel_product
from tests.pruners.test_pruners import RULES, SIZES, Watched, is_mask_of, kept, same
from tests.support.nets import changed, lab

# The kernel product against the kernel


def small_net():
    """A net of 33 parameters in double precision, its batch norm in eval mode with statistics of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double().eval()
    norm = net.get_submodule("1")
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.7]))
        norm.bias.copy_(torch.tensor([0.1, 0.2]))
    return net.requires_grad_(False)


NET = small_net()
TEACHER = dict(NET.named_parameters())
STUDENT = TEACHER | {"0.weight": TEACHER["0.weight"] * 0.5, "4.weight": TEACHER["4.weight"] * (TEACHER["4.weight"] > 0)}
NOISE = torch.Generator().manual_seed(1)
IMAGES = torch.rand(3, 1, 3, 3, generator=NOISE, dtype=torch.float64)
ADVERSARIAL = IMAGES + 0.3 * torch.randn(3, 1, 3, 3, generator=NOISE, dtype=torch.float64)
V = torch.randn(3, 2, generator=NOISE, dtype=torch.float64)


def jacobian(parameters, images):
    """All logits at `images` by all parameters, as a matrix of 6 rows: one derivative after the other."""
    blocks = jacrev(lambda values: functional_call(NET, values, (images,)))(dict(parameters))
    return torch.cat([block.reshape(6, -1) for block in blocks.values()], dim=1)


def kernel(parameters):
    """The mixed kernel itself, J(x) J(x~)^T."""
    return jacobian(parameters, IMAGES) @ jacobian(parameters, ADVERSARIAL).T


def check_product(product):
    for parameters in (TEACHER, STUDENT):
        logits, given = product(NET, parameters, IMAGES, ADVERSARIAL, V)
        torch.testing.assert_close(logits, functional_call(NET, parameters, (ADVERSARIAL,)), rtol=1e-12, atol=0)
        torch.testing.assert_close(given.flatten(), kernel(parameters) @ V.flatten(), rtol=1e-9, atol=1e-12)


def test_the_premises_of_the_kernel():
    mixed = kernel(TEACHER)
    assert jacobian(TEACHER, IMAGES).shape == (6, sum(p.numel() for p in TEACHER.values())) and mixed.shape == (6, 6)
    assert (mixed - mixed.T).norm() > 0.01 * mixed.norm()  # a transpose forgotten would be seen
    assert not any(module.training for module in NET.modules())
    # One image's logits do not depend on the others: otherwise this were no kernel of images.
    alone = torch.cat([NET(image[None]) for image in IMAGES])
    torch.testing.assert_close(alone, NET(IMAGES), rtol=1e-12, atol=1e-12)


def test_the_kernel_product_is_the_explicit_one():
    check_product(kernel_product)


def swapped(net, parameters, images, adversarial, v):
    """K^T v: the transpose at the wrong factor."""
    logits = functional_call(net, parameters, (adversarial,))
    return logits, kernel_product(net, parameters, adversarial, images, v)[1]


def clean_alone(net, parameters, images, adversarial, v):
    """J(x) J(x)^T v: the vjp at the wrong images."""
    logits = functional_call(net, parameters, (adversarial,))
    return logits, kernel_product(net, parameters, images, images, v)[1]


def weights_alone(net, parameters, images, adversarial, v):
    """A kernel of the weights, without biases and batch norm."""
    weights = {name: value for name, value in parameters.items() if name in ("0.weight", "4.weight")}
    held = net.state_dict()
    net.load_state_dict(held | dict(parameters))
    try:
        return kernel_product(net, weights, images, adversarial, v)
    finally:
        net.load_state_dict(held)


@pytest.mark.parametrize("twin", [swapped, clean_alone, weights_alone])
def test_kernel_product_twin(twin):
    with pytest.raises(AssertionError):
        check_product(twin)


# The kernel over the kept weights

MASKS = {"0.weight": TEACHER["0.weight"].abs() > 0.2, "4.weight": TEACHER["4.weight"] > 0}
PRUNED = masked(TEACHER, MASKS)


def check_kept(product):
    """J M J^T, and the dynamics under the mask: a small step down the adversarial loss, pruned weights held at zero.

    The step moves w by -h M J(x~)^T g with g the gradient by the logits at x~; so f(x) moves by -h J(x) M J(x~)^T g.
    """
    assert all(0 < int(mask.sum()) < mask.numel() for mask in MASKS.values())
    m = torch.cat([MASKS[name].flatten() if name in MASKS else torch.ones(p.numel()) for name, p in PRUNED.items()])
    logits, given = product(NET, PRUNED, IMAGES, ADVERSARIAL, V, MASKS)
    explicit = jacobian(PRUNED, IMAGES) @ torch.diag(m.double()) @ jacobian(PRUNED, ADVERSARIAL).T
    torch.testing.assert_close(logits, functional_call(NET, PRUNED, (ADVERSARIAL,)), rtol=1e-12, atol=0)
    torch.testing.assert_close(given.flatten(), explicit @ V.flatten(), rtol=1e-9, atol=1e-12)

    labels, h = torch.tensor([0, 1, 1]), 1e-6
    leaves = {name: p.clone().requires_grad_() for name, p in PRUNED.items()}
    at = functional_call(NET, leaves, (ADVERSARIAL,))
    loss = nn.functional.cross_entropy(at, labels)
    (g,) = torch.autograd.grad(loss, at, retain_graph=True)
    slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    after = {name: PRUNED[name] - h * slope * MASKS.get(name, torch.tensor(1.0)) for name, slope in slopes.items()}
    moved = (functional_call(NET, after, (IMAGES,)) - functional_call(NET, PRUNED, (IMAGES,))) / h
    torch.testing.assert_close(-product(NET, PRUNED, IMAGES, ADVERSARIAL, g, MASKS)[1], moved, rtol=1e-4, atol=1e-7)


def test_the_kernel_of_masked_training_is_that_over_the_kept_weights():
    check_kept(kernel_product)


@pytest.mark.parametrize(
    "twin",
    [
        lambda net, parameters, x, near, v, masks: kernel_product(net, parameters, x, near, v),
        lambda net, parameters, x, near, v, masks: kernel_product(
            net, parameters, x, near, v, {name: ~mask for name, mask in masks.items()}
        ),
        lambda net, parameters, x, near, v, masks: kernel_product(
            net, parameters, x, near, v, masks | {name: torch.tensor(0.0) for name in parameters if name not in masks}
        ),
    ],
    ids=["all weights", "the pruned ones", "without biases and batch norm"],
)
def test_kept_twin(twin):
    with pytest.raises(AssertionError):
        check_kept(twin)


DRAWS = 300


def check_expectation(draw):
    """The mean of |(K_s - K_t) v|^2 over v ~ N(0, I) is |K_s - K_t|_F^2.

    For D = K_s - K_t, |D v|^2 has the mean tr(D^T D) and the variance 2 tr((D^T D)^2); five standard errors may pass.
    """
    difference = kernel(STUDENT) - kernel(TEACHER)
    gram = difference.T @ difference
    exact, error = gram.trace().item(), math.sqrt(2 * (gram @ gram).trace().item() / DRAWS)
    assert 5 * error < 0.7 * exact  # so that the twins are outside
    noise = torch.Generator().manual_seed(2)
    squares = []
    for _ in range(DRAWS):
        v = draw(noise)
        k_s, k_t = (kernel_product(NET, each, IMAGES, ADVERSARIAL, v)[1] for each in (STUDENT, TEACHER))
        squares.append((k_s - k_t).square().sum().item())
    assert abs(sum(squares) / DRAWS - exact) < 5 * error


def test_a_random_vector_estimates_the_frobenius_norm_without_bias():
    check_expectation(lambda noise: torch.randn(3, 2, generator=noise, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_expectation_twin(scale):
    """A vector of another variance gives another mean."""
    with pytest.raises(AssertionError):
        check_expectation(lambda noise: scale * torch.randn(3, 2, generator=noise, dtype=torch.float64))


# The method

LONG = changed(RULES, units=6.0)  # eighteen epochs: 27,648 passes
SHORT = dict(search=0.6, batch=8, batches=2, every=3, lr=0.004)
BRIEF = SHORT | {"search": 0.2}  # with RULES ten steps, where what they find does not matter
PRICE = 8 * (
    3 * 3 + 24
)  # of a step: the attack's three steps, then the products of teacher and student and the way back
# ERK shares are 23 : 54 : 576 : 74 of 727: of 3,816 weights 120.73, 283.45, 3023.41 and 388.42.
COUNTS = {"1.0.weight": 121, "1.3.weight": 284, "1.7.weight": 3023, "1.9.weight": 388}


def copied(state):
    return {name: tensor.clone() for name, tensor in state.items()}


class Searching(Watched):
    """A lab that writes down what its loop began with and came to."""

    def loop(self, stage, start, step, **options):
        """As Lab.loop."""
        self.states = [copied(start)]

        def watched(state, index):
            self.states.append(copied(step(copied(state), index)))
            return self.states[-1]

        self.searched = (stage, options)
        return super().loop(stage, start, watched, **options)

    def calibrated(self, stage, state, *, batches):
        """As Lab.calibrated."""
        self.dense = super().calibrated(stage, state, batches=batches)
        return self.dense


def use(pruner, tmp_path, rules=RULES, **options):
    room = lab(tmp_path, rules, sparsity=0.9, kind=Searching, **options)
    return room, pruner(room.job, room)


def begun(room):
    """What the search begins with: the largest weights of each layer."""
    masks = keep_largest_by_layer({name: room.dense[name].abs() for name in SIZES}, erk(room.shapes, room.keep))
    return masked(room.dense, masks)


def distance(room, state):
    """|K_s v - K_t v|^2 / |K_t v|^2 for a few v, on training images and those with noise."""
    net = room.model(room.dense).eval().requires_grad_(False)
    teacher = dict(net.named_parameters())
    student = {name: state[name] for name in teacher}
    noise = torch.Generator().manual_seed(5)
    images = room.train.images[:32].float() / 255
    near = (images + 0.15 * torch.randn(images.shape, generator=noise).sign()).clamp(0, 1)
    above = below = 0.0
    for _ in range(10):
        v = torch.randn(32, 10, generator=noise)
        k_s, k_t = (kernel_product(net, each, images, near, v)[1] for each in (student, teacher))
        above, below = above + (k_s - k_t).square().sum().item(), below + k_t.square().sum().item()
    return above / below


def check_awt(tmp_path, variant):
    """The mask is exact, fixed before training and held by it; statistics are the dense net's."""
    room, state = use(AWT(variant=variant, **BRIEF), tmp_path)
    (asked,) = room.asked
    masks, start = asked.masks, asked.start
    assert kept(masks) == COUNTS and sum(COUNTS.values()) == room.keep == 3816
    assert is_mask_of(masks, start) and is_mask_of(masks, state) and same(state, asked.trained.weights)
    assert not same(state, start, where=masks)  # it was trained

    others = room.dense.keys() - SIZES.keys()
    assert all(torch.equal(start[name], room.dense[name]) for name in others)  # biases, batch norm, its statistics
    fresh = room.initial()
    assert not torch.equal(room.dense["1.1.running_mean"], fresh["1.1.running_mean"])  # which are not the initial ones
    assert same({name: room.dense[name] for name in SIZES}, {name: fresh[name] for name in SIZES})


def check_nearer(tmp_path, variant):
    """After the search, the student's kernel is nearer to the dense net's."""
    room, _ = use(AWT(variant=variant, **SHORT), tmp_path, LONG)
    start, masks = room.asked[0].start, room.asked[0].masks
    near, far = distance(room, start), distance(room, begun(room))
    assert near < 0.9 * far and near < 0.9, f"{near:.3f} against {far:.3f}"  # a net without a kernel is at 1
    return room, start, masks


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_the_mask_is_exact_and_fixed_before_training(variant, tmp_path):
    check_awt(tmp_path, variant)


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_the_search_nears_the_dense_net(variant, tmp_path):
    room, start, masks = check_nearer(tmp_path, variant)
    for name, mask in masks.items():
        given = start[name][mask]
        if variant == "mask":  # the weights are those of the beginning
            assert torch.equal(given, room.dense[name][mask])
        else:
            assert (given - room.dense[name][mask]).abs().max() > 0.01 * room.dense[name].abs().max()
    before = keep_largest_by_layer({name: room.dense[name].abs() for name in SIZES}, COUNTS)
    assert not torch.equal(masks["1.7.weight"], before["1.7.weight"])  # magnitude at the beginning is not the answer


def away(self, now, values, loss, *, refresh, keeps):
    """Climb instead of going down."""
    return UPDATE(self, now, values, -loss, refresh=refresh, keeps=keeps)


def unmoved(*arguments):
    """A product that does not depend on the student."""
    logits, product = kernel_product(*arguments)
    return 0 * logits, 0 * product + 1


UPDATE, FIT = AWT._update, Lab.fit
FARTHER = {
    "the search goes the wrong way": (AWT, "_update", away),
    "there is nothing to match": (awt, "kernel_product", lambda *arguments: unmoved(*arguments)),
}
TWINS = {
    "one weight too many": (
        awt,
        "layer_counts",
        lambda kind, weights, keep: COUNTS | {"1.9.weight": COUNTS["1.9.weight"] + 1},
    ),
    "the mask is not held": (
        Lab,
        "fit",
        lambda self, stage, start, *, masks, **options: FIT(self, stage, start, **options),
    ),
    "statistics of another net": (
        Searching,
        "fit",
        lambda self, stage, start, **options: Watched.fit(
            self, stage, Lab.calibrated(self, "anew", start, batches=1), **options
        ),
    ),
    "statistics of the beginning": (Lab, "calibrated", lambda self, stage, state, *, batches: state),
}


@pytest.mark.parametrize("twin", FARTHER)
def test_search_twin(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(*FARTHER[twin])
    with pytest.raises(AssertionError):
        check_nearer(tmp_path, "weights")


@pytest.mark.parametrize("twin", TWINS)
def test_awt_twin(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(*TWINS[twin])
    with pytest.raises(AssertionError):
        check_awt(tmp_path, "weights")


def test_masks_change_on_the_schedule_and_settle(tmp_path):
    """Every third step until half of the search is done, each time to the largest of the weights then."""
    room, _ = use(AWT(**SHORT | {"settle": 0.5}), tmp_path, LONG)
    stage, options = room.searched
    steps = options["steps"]
    assert stage == "search" and steps == len(room.states) - 1 == int(0.6 * room.meter.granted / PRICE)
    due = [done for done in range(1, steps + 1) if done % 3 == 0 and done <= steps / 2]
    assert len(due) == 10
    seen = [{name: state[f"mask/{name}"] for name in SIZES} for state in room.states]
    moved = [done for done in range(1, steps + 1) if not same(seen[done - 1], seen[done])]
    assert moved and set(moved) <= set(due)
    for done in due:
        largest = keep_largest_by_layer({name: room.states[done][f"value/{name}"].abs() for name in SIZES}, COUNTS)
        assert same(seen[done], largest)
    assert same(seen[-1], room.asked[0].masks)  # and into the training


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_statistics_are_frozen_in_the_search(variant, tmp_path, monkeypatch):
    nets = []

    def watched(net, *arguments):
        result = kernel_product(net, *arguments)
        assert not any(module.training for module in net.modules())
        nets.append(copied(dict(net.named_buffers())))
        return result

    monkeypatch.setattr(awt, "kernel_product", watched)
    room, _ = use(AWT(variant=variant, **BRIEF), tmp_path)
    assert len(nets) == 2 * room.searched[1]["steps"]
    dense = {name: room.dense[name] for name in nets[0]}
    assert "1.1.running_var" in dense and all(same(seen, dense) for seen in nets)


class Blind(Searching):
    """A lab whose attack does not look at labels: a step in the direction of noise."""

    def attack(self, model, images, labels, *, name):
        """A stand-in for Lab.attack."""
        noise = torch.rand(images.shape, generator=self.generator(f"blind {name}"))
        return (images + 0.15 * (noise - 0.5).sign()).clamp(0, 1)


def found_under(labels, tmp_path, kind, variant):
    """What the training would begin with, and under which masks, when images have these labels."""
    room = lab(tmp_path, RULES, sparsity=0.9, kind=kind)
    room.train = Split(room.train.images, labels(room.train.labels))
    AWT(variant=variant, **BRIEF)(room.job, room)
    return room.asked[0].start, room.asked[0].masks


def check_blind(tmp_path, kind, variant):
    true = found_under(lambda labels: labels, tmp_path / "true", kind, variant)
    false = found_under(lambda labels: labels.roll(1), tmp_path / "false", kind, variant)
    assert all(same(one, other) for one, other in zip(true, false, strict=True))


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_the_search_sees_labels_through_the_attack_alone(variant, tmp_path):
    check_blind(tmp_path, Blind, variant)


def test_twin_an_attack_that_sees_labels(tmp_path):
    with pytest.raises(AssertionError):
        check_blind(tmp_path, Searching, "weights")


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_the_search_is_charged_and_the_rest_trains(variant, tmp_path):
    """A forward costs 1, a backward 2, a jvp 2: a product 6 for each net, and 12 for the way back through one."""
    assert PRODUCTS == 6 + 6 + 2 * 6
    room, _ = use(AWT(variant=variant, **BRIEF), tmp_path)
    granted, epoch = 9 * 128 * 12, 128 * 12
    steps = granted // 5 // PRICE
    rest = (granted - 2 * 64 - steps * PRICE) // epoch
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [
        ("calibrate", 2 * 64),
        ("search", steps * PRICE),
        ("train", rest * epoch),
    ]
    assert room.meter.granted - room.meter.spent < epoch and room.asked[0].options["epochs"] == rest == 7


class Killed(BaseException):
    """The end of a process, as far as the code under test can tell."""


def check_resumes(tmp_path, monkeypatch, variant):
    """Killed after five steps of the search, then run again: on from there, to the same bytes."""
    monkeypatch.setattr(prunebench.bench.lab.backend, "SAVE_EVERY", -1.0)
    told = []

    def report(what, done, of):
        if what.startswith("search"):
            told.append(done)
            if len(told) == 5:
                raise Killed

    with pytest.raises(Killed):
        use(AWT(variant=variant, **BRIEF), tmp_path / "cut", report=report)
    cut, state = use(AWT(variant=variant, **BRIEF), tmp_path / "cut", report=report)
    assert told == list(range(1, cut.searched[1]["steps"] + 1))
    whole, other = use(AWT(variant=variant, **BRIEF), tmp_path / "whole")
    assert same(cut.asked[0].masks, whole.asked[0].masks)
    assert same(cut.asked[0].start, whole.asked[0].start) and same(state, other)
    assert [stage.passes for stage in cut.meter.stages] == [stage.passes for stage in whole.meter.stages]


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_a_killed_search_goes_on(variant, tmp_path, monkeypatch):
    check_resumes(tmp_path, monkeypatch, variant)


def test_twin_a_search_that_forgets_its_momentum(tmp_path, monkeypatch):
    load = prunebench.bench.lab.backend.load_stage

    def forgetful(path):
        kept = load(path)
        if kept is None:
            return None
        return {name: 0 * t if name.startswith("first/") else t for name, t in kept[0].items()}, kept[1]

    monkeypatch.setattr(prunebench.bench.lab.backend, "load_stage", forgetful)
    with pytest.raises(AssertionError):
        check_resumes(tmp_path, monkeypatch, "weights")


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_shuffle_keeps_the_counts_and_begins_with_the_initial_weights(variant, tmp_path):
    plain, _ = use(AWT(variant=variant, **BRIEF), tmp_path)
    moved, state = use(AWT(variant=variant, shuffle=True, **BRIEF), tmp_path)
    (before,), (after,) = plain.asked, moved.asked
    assert kept(before.masks) == kept(after.masks) == COUNTS and is_mask_of(after.masks, state)
    assert not any(torch.equal(before.masks[name], after.masks[name]) for name in SIZES)
    assert same(after.start, rescaled(moved.dense, after.masks))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("start", ["searched", "initial", "rescaled"])
def test_the_start_is_what_was_asked_for(start, shuffle, tmp_path):
    """The same search and mask; each start is the twin of the others, for no two are the same weights."""
    plain, _ = use(AWT(**BRIEF), tmp_path)
    other, _ = use(AWT(start=start, shuffle=shuffle, **BRIEF), tmp_path)
    (before,), (after,) = plain.asked, other.asked
    assert same(before.masks, after.masks) != shuffle
    wanted = {"initial": masked(plain.dense, after.masks), "rescaled": rescaled(plain.dense, after.masks)}
    wanted["searched"] = wanted["rescaled"] if shuffle else before.start
    assert same(after.start, wanted[start])
    assert shuffle or sum(same(after.start, each) for each in wanted.values()) == 1


def check_kept_search(tmp_path, variant, monkeypatch):
    """The student's kernel is summed over its kept weights in every step, the teacher's over all; the mask is exact."""
    seen = []

    def watched(net, parameters, images, near, v, masks=None):
        seen.append((parameters, masks))
        return kernel_product(net, parameters, images, near, v, masks)

    monkeypatch.setattr(awt, "kernel_product", watched)
    room, state = use(AWT(variant=variant, kernel="kept", **BRIEF), tmp_path)
    assert len(seen) == 2 * room.searched[1]["steps"]
    for (_, none), (student, masks) in zip(seen[::2], seen[1::2], strict=True):
        assert none is None and masks.keys() == SIZES.keys()
        assert kept(masks) == COUNTS and is_mask_of({name: masks[name] != 0 for name in masks}, student)
    (asked,) = room.asked
    assert kept(asked.masks) == COUNTS and is_mask_of(asked.masks, state)
    if variant == "mask":
        assert all(masks[name].requires_grad for _, masks in seen[1::2] for name in SIZES)


@pytest.mark.parametrize("variant", ["weights", "mask"])
def test_the_search_over_kept_weights(variant, tmp_path, monkeypatch):
    check_kept_search(tmp_path, variant, monkeypatch)


def test_twin_the_search_over_all_weights(tmp_path, monkeypatch):
    post = AWT.__post_init__
    monkeypatch.setattr(AWT, "__post_init__", lambda self: post(self) or object.__setattr__(self, "kernel", "all"))
    with pytest.raises(AttributeError, match="keys"):  # no masks
        check_kept_search(tmp_path, "weights", monkeypatch)


def test_layers_divide_the_weights(tmp_path):
    """Uniform: 14.4, 460.8, 3276.8 and 64. Global: the counts of the cut of a net trained for .1 of 9 epochs."""
    room, _ = use(AWT(layers="uniform", **BRIEF), tmp_path)
    assert kept(room.asked[0].masks) == {"1.0.weight": 14, "1.3.weight": 461, "1.7.weight": 3277, "1.9.weight": 64}

    room, state = use(AWT(layers="global", **BRIEF), tmp_path)
    scout, asked = room.asked
    assert scout.stage == "layers" and scout.options == {"epochs": 1} and same(scout.start, room.initial())
    sizes = torch.cat([scout.trained.weights[name].abs().flatten() for name in SIZES])
    counts = kept(dict(zip(SIZES, (sizes >= sizes.sort().values[-3816]).split(list(SIZES.values())), strict=True)))
    assert kept(asked.masks) == counts and is_mask_of(asked.masks, state) and counts != COUNTS
    assert same(room.dense, room.dense | {name: room.initial()[name] for name in SIZES})  # the counts are all it took
    assert [stage.name for stage in room.meter.stages] == ["layers", "calibrate", "search", "train"]
    assert room.meter.granted - room.meter.spent < 128 * 12


def test_a_search_that_cannot_pay_for_a_step_stops_before_it(tmp_path):
    """A step of b images costs (3 * steps + 24) b sample passes."""
    room = lab(tmp_path, RULES, kind=Searching)
    most = int(0.1 * room.meter.granted / (3 * RULES.training.steps + 24))
    assert AWT(search=0.1, batch=most)._steps(room) == 1
    with pytest.raises(PrunebenchError, match=rf"search = 0\.1 of the budget does not pay for .* = {most + 1} images"):
        AWT(search=0.1, batch=most + 1)(room.job, room)
    assert not room.meter.stages


def test_a_layer_without_weights_stops_before_the_search(tmp_path):
    """At .999 the first of 144 weights keeps .14 of one: none."""
    room = lab(tmp_path, RULES, sparsity=0.999, kind=Searching)
    with pytest.raises(PrunebenchError, match=r"^No weights would be left in 1\.0\.weight"):
        AWT(layers="uniform", **BRIEF)(room.job, room)
    assert not room.meter.stages


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "some"},
        {"layers": "both"},
        {"scout": 0.0},
        {"scout": 0.8, "layers": "global"},
        {"variant": "neither"},
        {"search": 0.0},
        {"search": 1.0},
        {"settle": 1.1},
        {"batch": 0},
        {"every": 0},
        {"batches": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AWT(**options)


@pytest.mark.parametrize(
    ("units", "options"),
    [
        (3.0, {"batches": 1000}),  # the calibration
        (1.0, {"search": 0.5, "layers": "global", "batches": 2}),  # a third of three epochs for the counts, half for it
    ],
)
def test_a_budget_without_an_epoch_of_training_is_refused_before_it_is_touched(units, options, tmp_path):
    room = lab(tmp_path, changed(RULES, units=units), sparsity=0.9, kind=Searching)
    with pytest.raises(PrunebenchError, match=f"Stage 'train' would have 0 of the {3 * units:.0f} epochs"):
        AWT(**BRIEF | options)(room.job, room)
    assert not room.meter.stages


@pytest.mark.parametrize(
    ("options", "steps", "due"),
    [
        ({}, 10, [2, 4, 6, 8]),  # every = 2 until settle = .8 of the search is done
        ({"every": 8}, 10, [8]),
        ({"every": 100}, 10, [8]),  # never, by the letter, which would leave the mask of the largest initial weights
        ({}, 1, [1]),
        ({"settle": 0.0}, 10, []),  # the twins: no update is asked for
        ({"variant": "mask"}, 10, []),
    ],
)
def test_every_search_updates_its_mask(options, steps, due):
    assert [done for done in range(1, steps + 1) if AWT(**options)._due(done, steps)] == due


def test_a_search_whose_loss_is_nan_stops_there(tmp_path, monkeypatch):
    """Two products a step, of teacher and student: the sixth is the student's of the third step."""
    calls, real = [], kernel_product

    def broken(*arguments):
        calls.append(None)
        logits, product = real(*arguments)
        return logits, product * math.nan if len(calls) == 6 else product

    monkeypatch.setattr(awt, "kernel_product", broken)
    with pytest.raises(PrunebenchError, match=r"AWT's search is nan at step 3 of 10; lower lr = 0\.004"):
        use(AWT(**BRIEF), tmp_path)
    assert len(calls) == 6
