"""HYDRA is right: it starts from magnitude pruning, learns scores and nothing else, and brings pruned weights back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parametrize

import prunebench.bench.lab.schemes
import prunebench.bench.lab.trainer
from prunebench.bench import mask, pattern
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.dry_run import Dry
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import LAYERS, attach_scores, keep_largest, keep_largest_by_layer, layer_counts
from prunebench.pruners import hydra
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.harp import HARP
from prunebench.pruners.hydra import HYDRA
from tests.lab.test_lab import PASSES, counting
from tests.pruners.test_pruners import RULES, SIZES, Watched, is_mask_of, kept, same
from tests.support.nets import STORE, changed, job, lab

THIRDS = HYDRA(dense=1 / 3, search=1 / 3, search_lr=0.5, lr=0.25)  # nine epochs: three for each stage
THIRDS_GLOBAL = HYDRA(dense=1 / 3, search=1 / 3, layers="global")
# Of 38,160 weights 3,816 stay: 14.4, 460.8, 3276.8 and 64 round down to 3,814, and the two largest remainders get one.
COUNTS = {"1.0.weight": 14, "1.3.weight": 461, "1.7.weight": 3277, "1.9.weight": 64}


class Scoring(Watched):
    """A lab that writes down the searches, too."""

    def fit_scores(self, stage, weights, scores, keeps, **options):
        """As Lab.fit_scores."""
        result = super().fit_scores(stage, weights, scores, keeps, **options)
        self.searched = (stage, weights, scores, keeps, options, result)
        return result


def use(pruner, tmp_path, rules=RULES):
    room = lab(tmp_path, rules, sparsity=0.9, kind=Scoring)
    return room, pruner(room.job, room)


def magnitude_by_layer(weights):
    """The places of the COUNTS[name] largest |weights| in each layer."""
    return {name: set(weights[name].abs().flatten().topk(COUNTS[name]).indices.tolist()) for name in COUNTS}


def places(masks):
    return {name: set(mask.flatten().nonzero().flatten().tolist()) for name, mask in masks.items()}


def check_hydra(tmp_path):
    """The three stages, each against what it was given and what it left."""
    room, state = use(THIRDS, tmp_path)
    dense, tuned = room.asked
    stage, weights, scores, keeps, options, (found, after) = room.searched
    rate = RULES.training.lr

    assert dense.stage == "dense" and same(dense.start, room.initial()) and dense.masks is None
    assert dense.options == {"epochs": 3, "objective": None}
    trained = dense.trained.weights

    # the search begins at layer-wise magnitude, in exact counts
    scheme = {"rho": 0.0, "by_four": False}
    assert stage == "search" and options == {"epochs": 3, "lr": 0.5 * rate, "objective": None} | scheme
    assert same(weights, trained) and keeps == COUNTS and sum(COUNTS.values()) == room.keep == 3816
    net = room.model(weights)
    attach_scores(net, scores, keeps)
    seen = {name: net.get_submodule(name.removesuffix(".weight")).weight != 0 for name in SIZES}
    assert places(seen) == magnitude_by_layer(trained)

    # it moves the scores; of the net, batch norm's statistics alone
    statistics = {name for name in trained if "running" in name or "tracked" in name}
    assert len(statistics) == 6
    for name in trained:
        assert torch.equal(after[name], trained[name]) is (name not in statistics)

    # it has learnt something: pruned weights have come back
    masks = tuned.masks
    assert kept(masks) == COUNTS
    for name in ("1.3.weight", "1.7.weight"):
        assert places(masks)[name] - magnitude_by_layer(trained)[name]
    for name in COUNTS:
        inside, outside = found[name][masks[name]].abs(), found[name][~masks[name]].abs()
        assert inside.min() >= outside.max()

    # fine-tuning under the mask, from the frozen weights and the statistics of the pruned net
    assert tuned.options == {"epochs": 3, "lr": 0.25 * rate, "objective": None}
    assert is_mask_of(masks, tuned.start) and same(tuned.start, after, where=masks)
    assert is_mask_of(masks, state) and same(state, tuned.trained.weights) and not same(state, after, where=masks)


def test_hydra_is_three_stages_from_layer_wise_magnitude(tmp_path):
    check_hydra(tmp_path)


def thawed(model, scores, keeps, **how):
    """The scores attached, and everything trained."""
    attach_scores(model, scores, keeps, **how)
    model.requires_grad_(True)


def statistics_of_the_dense(real):
    def fit_scores(self, stage, weights, *arguments, **options):
        found, after = real(self, stage, weights, *arguments, **options)
        return found, after | {name: weights[name] for name in after if "running" in name or "tracked" in name}

    return fit_scores


TWINS = {
    "one weight too many": (
        pattern,
        "keep_largest_by_layer",
        lambda scores, keeps, among: keep_largest_by_layer(scores, {name: keep + 1 for name, keep in keeps.items()}),
    ),
    "rounded up in each layer": (
        hydra,
        "layer_counts",
        lambda kind, weights, keep: {name: -(-size // 10) for name, size in SIZES.items()},
    ),
    "one threshold for all layers": (
        pattern,
        "keep_largest_by_layer",
        lambda scores, keeps, among: keep_largest(scores, sum(keeps.values())),
    ),
    "from random scores": (
        hydra,
        "scaled_scores",
        lambda weights: {name: torch.rand(w.shape, generator=torch.Generator()) for name, w in weights.items()},
    ),
    "from the smallest": (
        hydra,
        "scaled_scores",
        lambda weights: {name: 1 / (1 + w.abs()) for name, w in weights.items()},
    ),
    "weights move in the search": (prunebench.bench.lab.schemes, "attach_scores", thawed),
    "statistics of the dense net": (Lab, "fit_scores", statistics_of_the_dense(Lab.fit_scores)),
    "no gradient for the scores": (
        mask._TopK,
        "backward",
        staticmethod(lambda ctx, gradient: (torch.zeros_like(gradient), None)),
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_hydra_twin(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(*TWINS[twin])
    with pytest.raises(AssertionError):
        check_hydra(tmp_path)


def check_gradient(room):
    """The gradient of the loss with respect to the scores of a real net, against (dL/dW_eff * W) * sign(s)."""
    start = room.initial()
    noise = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(start[name].shape, generator=noise) for name in SIZES}
    masks = keep_largest_by_layer({name: score.abs() for name, score in scores.items()}, COUNTS)
    images, labels = room.sample("a", 32)
    net = room.model(start).eval()
    attach_scores(net, scores, COUNTS)
    torch.nn.functional.cross_entropy(net(images), labels).backward()
    plain = room.model(mask.masked(start, masks)).eval()
    torch.nn.functional.cross_entropy(plain(images), labels).backward()
    for name, parameter in plain.named_parameters():
        if name in SIZES:
            module = net.get_submodule(name.removesuffix(".weight"))
            given = module.parametrizations.weight[0].scores.grad
            wanted = parameter.grad * start[name] * scores[name].sign()
            assert wanted[~masks[name]].any()  # pruned entries have a gradient
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-9)
            assert module.parametrizations.weight.original.grad is None


def test_the_gradient_of_the_scores_is_the_formula(tmp_path):
    check_gradient(lab(tmp_path, RULES))


def kept_alone(ctx, gradient):
    (scores,) = ctx.saved_tensors
    keep = COUNTS[next(name for name, size in SIZES.items() if size == scores.numel())]
    return gradient * scores.sign() * keep_largest({"": scores.abs()}, keep)[""], None


@pytest.mark.parametrize(
    "backward", [lambda ctx, gradient: (gradient, None), kept_alone], ids=["no sign", "kept alone"]
)
def test_gradient_twin(backward, tmp_path, monkeypatch):
    monkeypatch.setattr(mask._TopK, "backward", staticmethod(backward))
    with pytest.raises(AssertionError):
        check_gradient(lab(tmp_path, RULES))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_both_losses_use_the_budget_and_stay_inside_it(loss, shuffle, tmp_path):
    """Nine epochs of PGD at 12 passes an image, or six of TRADES at 16."""
    room, state = use(HYDRA(dense=1 / 3, search=1 / 3, loss=loss, shuffle=shuffle), tmp_path)
    epochs = {"pgd": 9, "trades": 6}[loss]
    assert room.meter.spent == epochs * 128 * PASSES[loss] <= room.meter.granted < (epochs + 1) * 128 * PASSES[loss]
    assert [stage.name for stage in room.meter.stages] == ["dense", "search", "fine-tune"]
    assert len({stage.passes for stage in room.meter.stages}) == 1
    assert all(asked.options["objective"] == loss for asked in room.asked)
    header = Header(
        arch=RULES.model,
        classes=10,
        shape=(1, 8, 8),
        protocol=RULES,
        job=job("random", 0.9),
        source=None,
        train_sha256=room.train_sha256,
        stages=tuple(room.meter.stages),
    )
    seal(tmp_path / "net", state, header, passes_granted=room.meter.granted)
    assert open_net(tmp_path / "net").id.nonzero == 3816


@pytest.mark.parametrize("pruner", [THIRDS, HARP(dense=1 / 3, search=1 / 3)], ids=["hydra", "harp"])
def test_without_an_option_all_stages_have_the_loss_of_the_protocol(pruner, tmp_path, monkeypatch):
    """The twin: a loss that is named is that of all stages, whatever the protocol's."""
    plans, rules = counting(monkeypatch), changed(RULES, objective="trades", beta=6.0)
    use(pruner, tmp_path, rules)
    assert [plan.recipe.objective for plan in plans] == ["trades"] * 3
    use(replace(pruner, loss="pgd"), tmp_path, rules)
    assert [plan.recipe.objective for plan in plans[3:]] == ["pgd"] * 3


def test_shuffle_keeps_the_counts_of_the_layers_and_moves_the_places(tmp_path):
    plain, _ = use(THIRDS, tmp_path)
    moved, state = use(HYDRA(**vars(THIRDS) | {"shuffle": True}), tmp_path)
    before, after = plain.asked[-1].masks, moved.asked[-1].masks
    assert kept(before) == kept(after) == COUNTS and is_mask_of(after, state)
    assert not any(torch.equal(before[name], after[name]) for name in COUNTS)
    assert same(moved.asked[-1].start, moved.searched[-1][1], where=after)


@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_the_dense_training_is_shared_with_magnitude(loss, tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    room = lab(tmp_path, RULES)
    Magnitude(dense=1 / 3)(room.job, room)
    assert len(plans) == 2  # dense, fine-tune
    use(HYDRA(dense=1 / 3, search=1 / 3, loss=loss), tmp_path)
    assert len(plans) == (4 if loss == "pgd" else 5)  # another loss is another training


def test_the_mask_is_made_once_a_step(tmp_path, monkeypatch):
    """Not at each of the forwards of a step: nothing moves in between."""
    asked, cached = [], parametrize.cached
    monkeypatch.setattr(prunebench.bench.lab.trainer.parametrize, "cached", lambda: asked.append(1) or cached())
    room = lab(tmp_path, RULES)
    start, keeps = room.initial(), COUNTS
    room.fit_scores("search", start, {name: start[name] for name in SIZES}, keeps, epochs=2)
    assert len(asked) == 2 * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dense": 0.0}, "dense"),
        ({"search": 0.0}, "search"),
        ({"dense": 0.6, "search": 0.4}, "sum to less than 1"),
        ({"lr": 0.0}, "lr"),
        ({"search_lr": -1.0}, "search_lr"),
        ({"loss": "fgsm-rs"}, "protocol, pgd or trades"),
        ({"rho": -0.1}, "rho = -0.1 must be at least 0"),
        ({"layers": "globl"}, "layers = 'globl' must be one of uniform, erk, global"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HYDRA(**options)


def test_a_budget_too_small_for_three_stages_is_refused(tmp_path):
    """Three epochs: 1.5 round to 2 for the dense net, 1 for the search. Nothing is trained."""
    room = lab(tmp_path, changed(RULES, units=1.0), kind=Scoring)
    with pytest.raises(PrunebenchError, match="Stage 'fine-tune' would have 0 of the 3 epochs"):
        HYDRA()(room.job, room)
    assert not room.meter.stages
    use(HYDRA(dense=0.3), tmp_path, changed(RULES, units=1.0))  # one epoch each


# ERK at .9: a layer's share is the sum of its dimensions (16+1+3+3, 32+16+3+3, 64+512, 10+64) of 727. Of 3,816 weights
# that is 120.73, 283.45, 3023.43 and 388.42, all below the sizes; the two largest remainders get the two weights left.
ERK = {"1.0.weight": 121, "1.3.weight": 284, "1.7.weight": 3023, "1.9.weight": 388}


def check_layers(tmp_path, kind):
    """The search and the fine-tuning keep, in each layer, what the name says; under global, what magnitude keeps."""
    room, state = use(HYDRA(dense=1 / 3, search=1 / 3, layers=kind), tmp_path)
    dense = room.asked[0].trained.weights
    ranked = sorted(((float(w), name) for name in SIZES for w in dense[name].abs().flatten()), reverse=True)[:3816]
    by_hand = {name: sum(owner == name for _, owner in ranked) for name in SIZES}
    wanted = {"uniform": COUNTS, "erk": ERK, "global": by_hand}[kind]
    assert sum(wanted.values()) == 3816 and len({str(c) for c in (COUNTS, ERK, by_hand)}) == 3
    assert room.searched[3] == wanted == kept(room.asked[-1].masks) and is_mask_of(room.asked[-1].masks, state)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind, tmp_path):
    check_layers(tmp_path, kind)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_twin(kind, tmp_path, monkeypatch):
    """Another division of the weights is found."""
    other = LAYERS[LAYERS.index(kind) - 1]
    monkeypatch.setattr(hydra, "layer_counts", lambda _, weights, keep: layer_counts(other, weights, keep))
    with pytest.raises(AssertionError):
        check_layers(tmp_path, kind)


@pytest.mark.parametrize("layers", ["uniform", "erk"])
def test_a_layer_that_keeps_no_weight_is_refused_before_any_training(layers, tmp_path):
    """Sparsity .9998 leaves 7 weights: the first layer's share is 7 * 144 / 38,160 = .03, by ERK 7 * 23 / 727 = .2."""
    room = lab(tmp_path, RULES, sparsity=0.9998)
    with pytest.raises(PrunebenchError, match=r"^No weights would be left in 1\.0\.weight"):
        replace(THIRDS, layers=layers)(room.job, room)
    assert not room.meter.stages


def test_a_layer_that_keeps_no_weight_twin(tmp_path, monkeypatch):
    """Without the check, half of the budget is spent before the search is refused."""
    monkeypatch.setattr(hydra, "refuse_empty_layers", lambda *_: None)
    room = lab(tmp_path, RULES, sparsity=0.9998)
    with pytest.raises(PrunebenchError, match=r"no weight in 1\.0\.weight, 1\.9\.weight;"):
        THIRDS(room.job, room)
    assert [stage.name for stage in room.meter.stages] == ["dense"]


def test_a_rehearsal_with_untrained_weights_is_not_refused():
    """A global cut of them at .98 empties the third layer, which says nothing about the trained net."""
    room = Lab(job("hydra", 0.98), RULES, STORE, Dry(0.01))
    assert layer_counts("global", {name: room.initial()[name] for name in SIZES}, room.keep)["1.7.weight"] == 0
    THIRDS_GLOBAL(room.job, room)
    assert [stage.name for stage in room.meter.stages] == ["dense", "search", "fine-tune"]


def test_scores_that_are_nan_are_refused_at_the_start_and_on_the_way(tmp_path, monkeypatch):
    room = lab(tmp_path, RULES)
    start, keeps = room.initial(), COUNTS
    scores = {name: start[name] for name in SIZES}
    wrong = scores | {"1.9.weight": torch.full_like(start["1.9.weight"], torch.nan)}
    with pytest.raises(PrunebenchError, match=r"Scores of 1\.9\.weight are NaN"):
        room.fit_scores("search", start, wrong, keeps, epochs=2)
    nan = staticmethod(lambda ctx, gradient: (gradient * torch.nan, None))
    monkeypatch.setattr(mask._TopK, "backward", nan)
    with pytest.raises(PrunebenchError, match=r"Scores of a mask in training are NaN.*lower the learning rate"):
        room.fit_scores("search", start, scores, keeps, epochs=2)
