"""The common training against formulas, hand computations and itself."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import prunebench.bench.lab.train
import prunebench.bench.lab.trainer
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.checkpoint import pack
from prunebench.bench.data import Split, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import Fast
from prunebench.bench.executor.compiled import Compiled
from prunebench.bench.executor.folded import Folded
from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit, refuse_collapse
from prunebench.bench.lab.trainer import Trainer, _attacking
from prunebench.bench.mask import attach_scores, draw
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import Threat
from tests.support.nets import STORE, changed, lab

RULES = changed(train=128, epochs=4, validate_every=100)
TRAIN, VALIDATION = STORE.training("digits", validation=32, train=128)
CPU = torch.device("cpu")


def plan(epochs=4, start=0, stop=None, **changes):
    return TrainingPlan(changed(RULES, **changes).training, RULES.threat, epochs, start, stop)


def net(seed=0):
    return build("digits-cnn", info=STORE.info("digits"), seed=seed)


def trained(how=None, **options):
    return fit(net(), how or plan(), TRAIN, VALIDATION, seed=5, **options)


def content(result):
    """All that a training leaves but its seconds, as bytes."""
    weights = {f"w/{k}": v for k, v in result.weights.items()} | {f"l/{k}": v for k, v in result.last.items()}
    return pack(weights, result.curve)


def some_masks():
    shapes = {name: tuple(p.shape) for name, p in net().named_parameters() if p.dim() > 1}
    return draw(shapes, {name: math.prod(shape) // 5 for name, shape in shapes.items()}, torch.Generator())


class Ramp(nn.Module):
    """Logits (0, w * pixel) of one-pixel images: every attack and loss can be written down."""

    def __init__(self, w=2.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, images):
        pixel = images.flatten(1)
        return torch.cat([torch.zeros_like(pixel), self.w * pixel], dim=1)


def trainer(model, rules=RULES, **changes):
    rules = changed(rules, **changes)
    return Trainer(model, TrainingPlan(rules.training, rules.threat, 4), {}, CPU)


PIXELS = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7]).view(-1, 1, 1, 1)
EPS = RULES.threat.radius


def softplus(x):
    return math.log1p(math.exp(x))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loss_of(it, seed):
    labels, noise = torch.zeros(5, dtype=torch.long), torch.Generator().manual_seed(seed)
    objective = OBJECTIVES[it.recipe.objective]
    return objective.loss(it, PIXELS, objective.attack(it, PIXELS, labels, noise), labels)


def probabilities(pixel, w=2.0):
    up = 1 / (1 + math.exp(-w * pixel))
    return 1 - up, up


def test_pgd_loss_by_hand():
    """Label 0: the loss rises with the pixel, so four steps of half eps end at the upper edge from wherever."""
    assert 4 * float(RULES.training.step_size) >= 2 * EPS
    loss = loss_of(trainer(Ramp(), steps=4), 0)
    assert loss.item() == pytest.approx(sum(softplus(2 * (p + EPS)) for p in PIXELS.flatten().tolist()) / 5, abs=1e-5)


def test_fgsm_rs_loss_by_hand():
    """One step of 1.25 eps from a uniform start, brought back into the ball: min(start + 1.25 eps, eps)."""
    start = torch.empty_like(PIXELS).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(1)).flatten().tolist()
    assert any(d < -0.25 * EPS for d in start) and any(d > -0.25 * EPS for d in start)
    moved = [p + min(d + 1.25 * EPS, EPS) for p, d in zip(PIXELS.flatten().tolist(), start, strict=True)]
    loss = loss_of(trainer(Ramp(), objective="fgsm-rs"), 1)
    assert loss.item() == pytest.approx(sum(softplus(2 * p) for p in moved) / 5, abs=1e-5)


def test_trades_loss_by_hand():
    """The divergence grows away from the image, so a step of eps goes to the edge on the side of the first nudge."""
    nudge = torch.empty_like(PIXELS).normal_(generator=torch.Generator().manual_seed(2)).sign().flatten().tolist()
    assert len(set(nudge)) == 2
    pixels = PIXELS.flatten().tolist()
    by_hand = 0.0
    for pixel, side in zip(pixels, nudge, strict=True):
        by_hand += softplus(2 * pixel) + 6 * kl(probabilities(pixel), probabilities(pixel + side * EPS))
    loss = loss_of(trainer(Ramp(), objective="trades", steps=1, step_size="0.15"), 2)
    assert loss.item() == pytest.approx(by_hand / 5, abs=1e-5)
    no_beta = loss_of(trainer(Ramp(), objective="trades", beta=0.0), 2)
    assert no_beta.item() == pytest.approx(sum(softplus(2 * pixel) for pixel in pixels) / 5, abs=1e-6)


def test_the_gradient_is_taken_at_the_clipped_image():
    """Black pixels whose start lies below 0: through the clipping their gradient would vanish and they would stay."""
    black, threat = torch.zeros(64, 1, 1, 1), Threat(norm="Linf", eps="0.1")
    start = torch.empty_like(black).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    assert 10 < int((start < 0).sum()) < 54
    labels = torch.zeros(64, dtype=torch.long)
    found = pgd(Ramp(), black, labels, threat, generator=torch.Generator().manual_seed(0), steps=1, step_size=0.02)
    expected = (start.clamp(0, 1) + 0.02).clamp(max=0.1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    raw = start.clone().requires_grad_()  # the twin
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(Ramp()(raw.clamp(0, 1)), labels), raw)
    through = (start + 0.02 * gradient.sign()).clamp(0, 0.1)
    assert not torch.allclose(through, expected, atol=1e-3)


@pytest.mark.parametrize(("objective", "forwards"), [("pgd", 1), ("fgsm-rs", 1), ("trades", 2)])
def test_attacks_leave_batch_norm_alone(objective, forwards, monkeypatch):
    """Its counter moves once for every forward of the loss and never for one of the attack or of the validation."""
    steps = 2 * 2  # epochs of two batches
    counter = "1.1.num_batches_tracked"
    left = trained(plan(2, objective=objective)).last
    assert left[counter].item() == forwards * steps
    monkeypatch.setattr(prunebench.bench.lab.trainer, "_attacking", lambda model: nullcontext())  # the twin
    monkeypatch.setattr(prunebench.bench.lab.trainer, "_quick", lambda *_: None)
    assert trained(plan(2, objective=objective)).last[counter].item() > forwards * steps


def test_under_attack_the_net_is_in_eval_mode_and_afterwards_as_before():
    model = net().train()
    with _attacking(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
    with pytest.raises(KeyError), _attacking(model):
        raise KeyError
    assert model.training


def sparse_trainer(density=0.1, fill=None):
    """A net at random masks, its kept weights all `fill` where that is given."""
    model = net().train()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    masks = draw(shapes, {name: round(density * math.prod(shape)) for name, shape in shapes.items()}, torch.Generator())
    for name in shapes if fill is not None else ():
        model.state_dict()[name].fill_(fill)
    return Trainer(model, plan(), masks, CPU)


def attacked(model):
    """What PGD makes of training images by a net."""
    images, noise = as_float(TRAIN.images[:64]), torch.Generator().manual_seed(1)
    return pgd(model, images, TRAIN.labels[:64], RULES.threat, generator=noise, steps=3, step_size=0.05)


def apart_after_a_step(it):
    """The share of pixels where the attack on the quick net ends elsewhere than on the net, before and after a step."""
    shares = []
    for number in range(2):
        with it.attacked() as model:
            assert isinstance(model, Fast)
            found = attacked(model)
            shares.append(float((found != attacked(it.model)).float().mean()))
        it.step(as_float(TRAIN.images[:64]), TRAIN.labels[:64], 0.0, torch.Generator().manual_seed(number))
        assert it.model.training
    return shares


@pytest.mark.usefixtures("dense_on_torch")
@pytest.mark.parametrize(("density", "kind"), [(0.1, Compiled), (0.9, Folded)])
def test_the_attack_runs_quickly_on_the_weights_of_now(density, kind, monkeypatch):
    it = sparse_trainer(density)
    assert max(apart_after_a_step(it)) < 0.01  # the sign of a gradient may hang on its last bit
    assert kinds(it) == {kind}
    monkeypatch.setattr(Fast, "refresh", lambda self: None)  # the twin
    assert apart_after_a_step(sparse_trainer(density))[1] > 0.05


def kinds(it):
    with it.attacked() as model:
        model(as_float(TRAIN.images[:2]))
    return {type(piece) for pieces in it.quick.pieces.values() for piece in pieces}


@pytest.mark.usefixtures("dense_on_torch")
@pytest.mark.parametrize(("density", "kind"), [(0.1, Compiled), (0.9, Folded)])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_masks_alone_decide_how_the_attack_runs(density, kind, fill):
    """So a training that goes on from a file, where other weights happen to be zero, runs as it would have."""
    assert kinds(sparse_trainer(density, fill)) == {kind}


def test_a_net_whose_masks_change_every_step_is_attacked_as_it_is():
    model = net()
    scores = {name: weight.detach().abs() for name, weight in prunable(model).items()}
    attach_scores(model, scores, dict.fromkeys(scores, 9))
    it = Trainer(model, plan(), {}, CPU)
    with it.attacked() as lent:
        assert lent is model
    assert it.quick is None and Trainer(net(), plan(), {}, CPU).quick is not None


def test_the_attack_on_the_quick_net_trains_as_the_attack_on_the_net_itself(monkeypatch):
    masks = some_masks()
    ours = trained(plan(1), masks=masks).last
    with monkeypatch.context() as patch:
        patch.setattr(prunebench.bench.lab.trainer, "_quick", lambda *_: None)
        stock = trained(plan(1), masks=masks).last
    for name, weight in stock.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(Fast, "refresh", lambda self: None)  # the twin
    stale = trained(plan(1), masks=masks).last
    assert any((stale[name] - weight).abs().max() > 1e-3 for name, weight in stock.items())


def rates(how, monkeypatch):
    """The learning rate of every step of a training, as the step had it."""
    seen = []
    real = Trainer._descend

    def step(self):
        seen.append(self.rate)
        return real(self)

    monkeypatch.setattr(Trainer, "_descend", step)
    trained(how)
    monkeypatch.undo()
    return seen


def test_the_cosine_schedule(monkeypatch):
    whole = rates(plan(), monkeypatch)
    assert whole == pytest.approx([0.1 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])
    assert rates(plan(start=1, stop=3), monkeypatch) == whole[2:6]  # a part of the same schedule


def test_the_step_schedule(monkeypatch):
    assert rates(plan(schedule="step"), monkeypatch) == pytest.approx([0.1] * 6 + [0.01] * 2)


def test_the_average_by_hand():
    """Decays 1/10, 2/11, 3/12, ... up to the recipe's 0.25: of 0 and then 10, 20, 30 and 40."""
    it = trainer(Ramp(0.0), ema=0.25)
    by_hand = 0.0
    for step, (value, decay) in enumerate([(10, 1 / 10), (20, 2 / 11), (30, 0.25), (40, 0.25)], start=1):
        with torch.no_grad():
            it.model.w.fill_(value)
        it.turn(0.0)
        it._follow()
        by_hand = decay * by_hand + (1 - decay) * value
        assert it.steps == step and it.average["w"].item() == pytest.approx(by_hand)


def test_counters_are_copied_into_the_average_not_averaged():
    result = trained(plan(2))
    assert result.weights["1.1.num_batches_tracked"].item() == result.last["1.1.num_batches_tracked"].item() == 4
    assert not torch.equal(result.weights["1.0.weight"], result.last["1.0.weight"])


def test_sgd_by_hand():
    """One step of a Ramp with nesterov momentum: v = g, then g + m v, with weight decay in g."""
    it = trainer(Ramp(2.0), weight_decay=0.1, momentum=0.5, lr=0.2, steps=1)
    loss = trainer(Ramp(2.0), steps=1)
    value = loss_of(loss, 0)
    (gradient,) = torch.autograd.grad(value, loss.model.w)
    it.step(PIXELS, torch.zeros(5, dtype=torch.long), 0.0, torch.Generator().manual_seed(0))
    g = gradient.item() + 0.1 * 2.0
    assert it.model.w.item() == pytest.approx(2.0 - 0.2 * (g + 0.5 * g), abs=1e-6)


def watch_masks(masks, monkeypatch):
    """Train under `masks`; whether every pruned weight was zero after every step, and the result."""
    real, clean = Trainer.step, []

    def step(self, *arguments):
        loss = real(self, *arguments)
        tensors = (self.live, self.average)
        clean.append(all(not state[name][~mask].any() for state in tensors for name, mask in masks.items()))
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    result = trained(masks=masks)
    assert len(clean) == 8
    return all(clean), result


def test_pruned_weights_are_zero_after_every_step_and_at_the_end(monkeypatch):
    masks = some_masks()
    clean, result = watch_masks(masks, monkeypatch)
    assert clean
    for state in (result.weights, result.last):
        assert all(torch.equal(state[name] != 0, mask) for name, mask in masks.items())
    monkeypatch.setattr(prunebench.bench.lab.trainer, "enforce", lambda model, masks: None)  # the twin
    assert not watch_masks(masks, monkeypatch)[0]


def test_the_same_training_is_the_same_bytes():
    torch.manual_seed(1)
    first = content(trained())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert content(trained()) == first
    assert torch.equal(torch.get_rng_state(), state)  # neither read nor moved
    assert content(fit(net(), plan(), TRAIN, VALIDATION, seed=6)) != first
    assert content(fit(net(1), plan(), TRAIN, VALIDATION, seed=5)) != first


@pytest.mark.parametrize("before", [False, True])
def test_engines_are_timed_while_a_net_is_trained_and_not_afterwards(before, monkeypatch):
    """Attacks on a net to be scored ask for many batch sizes, each of which would be timed anew."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    seen = []
    trained(report=lambda *_: seen.append(torch.backends.cudnn.benchmark))
    assert seen == [True] * 4 and torch.backends.cudnn.benchmark is before


def test_a_part_trained_after_a_part_goes_on_in_the_schedule():
    """As IMP does: the raw weights of the first part, without its momentum, at the learning rates of the second."""
    first = trained(plan(stop=2)).last
    model = net()
    model.load_state_dict(first)
    second = fit(model, plan(start=2), TRAIN, VALIDATION, seed=5)
    assert [row["epoch"] for row in second.curve] == [3, 4]
    assert second.curve[-1]["lr"] == trained().curve[-1]["lr"]


@pytest.mark.parametrize("partial", [None, "partial.safetensors"])
def test_a_training_that_diverges_is_stopped(partial, tmp_path):
    where = None if partial is None else tmp_path / partial
    for _ in range(2):  # also when it is started again
        with pytest.raises(PrunebenchError, match=r"Training diverged: the loss of epoch 1 is (nan|inf); lower"):
            trained(plan(lr=1e30), partial=where)


def curve(*robust):
    return [{"epoch": i + 1, "robust": rate} for i, rate in enumerate(robust)]


def test_catastrophic_overfitting_is_stopped():
    with pytest.raises(PrunebenchError, match="fell from 44% to 20% in epoch 3; train with the objective pgd"):
        refuse_collapse(curve(0.3, 0.44, 0.20))
    for harmless in ((0.3, 0.44, 0.23), (0.1, 0.19, 0.0), (0.44,), (0.05, 0.2, 0.11)):
        refuse_collapse(curve(*harmless))


@pytest.fixture
def falling(monkeypatch):
    """PGD accuracy on validation is 50 %, and 10 % in every later epoch."""
    rates = iter([0.5, 0.1, 0.1, 0.1])
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"clean": 1.0, "robust": next(rates)})


@pytest.mark.usefixtures("falling")
def test_a_collapsed_training_is_refused_again_when_it_is_started_again(tmp_path):
    for _ in range(2):
        room = lab(tmp_path, changed(RULES, objective="fgsm-rs", lr=0.001))
        with pytest.raises(PrunebenchError, match=r"Catastrophic.* fell from 50% to 10% in epoch 2"):
            room.fit("train", room.initial(), epochs=2)
    assert not list(tmp_path.rglob("done.safetensors"))


@pytest.mark.usefixtures("falling")
def test_many_steps_may_collapse_and_so_may_a_training_outside_the_lab(tmp_path):
    """Whoever times trainings has no use for what they leave."""
    room = lab(tmp_path, changed(RULES, validate_every=1))
    assert [row["robust"] for row in room.fit("train", room.initial(), epochs=2).curve] == [0.5, 0.1]
    trained(plan(2, objective="fgsm-rs", lr=0.001))


def test_robust_accuracy_on_validation_each_few_epochs():
    told = [(row["epoch"], "robust" in row) for row in trained(plan(4, validate_every=3)).curve]
    assert told == [(1, False), (2, False), (3, True), (4, True)]
    assert all("robust" in row for row in trained(plan(2, objective="fgsm-rs")).curve)


def test_validation_measures_the_average_and_leaves_the_net_as_it_was():
    it = trainer(Ramp(2.0))
    it.average = {"w": torch.tensor(-2.0)}
    bright = Split(torch.full((10, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(10, dtype=torch.long))
    assert it.validate(bright, 0) == {"clean": 1.0, "robust": 1.0}  # the average says 0, the raw net would say 1
    assert it.model.w.item() == 2.0


def test_the_price_of_a_plan():
    assert plan().batches(128) == 2 and plan().batches(130) == 2 and plan().batches(10) == 1
    assert plan().passes(130) == 4 * 128 * (3 * 3 + 3)
    assert plan(6, start=2, stop=3).passes(128) == 128 * 12
    assert plan(objective="trades").passes(128) == 4 * 128 * (3 * 3 + 7)
    assert plan(objective="fgsm-rs").passes(128) == 4 * 128 * 6


def test_in_mixed_precision_the_perturbation_stays_float32():
    autocast, seen = torch.autocast("cpu", torch.bfloat16), []

    class Watch(nn.Linear):
        def forward(self, images):
            logits = super().forward(images.flatten(1))
            seen.append((images.dtype, logits.dtype))
            return logits

    images = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    moved = pgd(
        Watch(4, 3),
        images,
        torch.zeros(4, dtype=torch.long),
        RULES.threat,
        generator=torch.Generator(),
        steps=3,
        step_size=1e-4,
        autocast=autocast,
        start=images,
    )
    assert seen == [(torch.float32, torch.bfloat16)] * 3
    assert moved.dtype == torch.float32
    offsets = (moved - images).abs()[(images > 0.01) & (images < 0.99)]
    torch.testing.assert_close(offsets, torch.full_like(offsets, 3e-4), atol=1e-6, rtol=0)
    assert not torch.equal(images.bfloat16().float() + 3e-4, images + 3e-4)  # bfloat16 would lose such steps


@pytest.mark.parametrize("objective", ["pgd", "trades"])
def test_a_step_in_mixed_precision_moves_float32_weights(objective):
    it = Trainer(net(), plan(objective=objective), {}, CPU)
    it.autocast = torch.autocast("cpu", torch.bfloat16)
    before = it.model[1][0].weight.detach().clone()
    part = TRAIN.take(slice(0, 32))
    loss = it.step(part.images / 255, part.labels, 0.0, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.dtype == torch.float32 for p in it.model.parameters())
    assert not torch.equal(it.model[1][0].weight, before)
