"""The compiled net trains as the plain one does, takes no gradient that nobody wants, and is not believed unseen.

`aot_eager` takes a net apart into its forward and backward graphs as inductor does, and runs them with torch's own
kernels: it compiles in a moment. Inductor itself is tried in a slow test.
"""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._inductor import config

import prunebench.bench.lab.train
import prunebench.bench.lab.trainer
from prunebench.bench.datasets import Info
from prunebench.bench.lab import compiled as compiling
from prunebench.bench.lab.compiled import TRIES, agree, captured, distance
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.still import Still
from prunebench.bench.lab.train import fit
from prunebench.bench.mask import attach_scores, draw
from prunebench.bench.models import build
from tests.support.nets import STORE, changed

RULES = changed(train=128, epochs=2, validate_every=100)
TRAIN, VALIDATION = STORE.training("digits", validation=32, train=128)
IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _afresh():
    torch.compiler.reset()
    compiling._MADE.clear()


def net():
    return build("digits-cnn", info=STORE.info("digits"), seed=1)


def masks():
    shapes = {name: tuple(p.shape) for name, p in net().named_parameters() if p.dim() > 1}
    return draw(shapes, {name: torch.Size(shape).numel() // 5 for name, shape in shapes.items()}, torch.Generator())


def trained(monkeypatch, *, compiled, backend="aot_eager", **changes):
    monkeypatch.setattr(prunebench.bench.lab.trainer, "captured", partial(captured, backend=backend))
    rules = changed(RULES, **changes)
    plan = TrainingPlan(rules.training, rules.threat, 2)
    return fit(net(), plan, TRAIN, VALIDATION, seed=5, masks=masks(), compiled=compiled)


def near(compiled, plain):
    assert compiled.weights.keys() == plain.weights.keys()
    for name, tensor in plain.last.items():
        torch.testing.assert_close(compiled.last[name], tensor, rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in result.curve] for result in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_compiling_is_part_of_the_first_epoch(monkeypatch):
    """The clock moves by 100 s while the net is compiled, and not otherwise."""
    now = [0.0]
    monkeypatch.setattr(prunebench.bench.lab.train.time, "perf_counter", lambda: now[0])

    def slowly(*_, **how):
        now[0] += 100.0

    monkeypatch.setattr(prunebench.bench.lab.trainer, "captured", slowly)
    plan = TrainingPlan(RULES.training, RULES.threat, 2)
    assert fit(net(), plan, TRAIN, VALIDATION, seed=5, compiled=True).times == [100.0, 0.0]
    assert fit(net(), plan, TRAIN, VALIDATION, seed=5, compiled=False).times == [0.0, 0.0]


@pytest.fixture
def calls(monkeypatch):
    """What went through compiled nets: (training mode, whether the weights could have gradients, the images', too)."""
    seen = []
    compile_ = torch.compile

    def watched(module, **options):
        compiled = compile_(module, **options)

        def call(images):
            weights = any(parameter.requires_grad for parameter in module.parameters())
            seen.append(("attack" if isinstance(module, Still) else "train", weights, images.requires_grad))
            return compiled(images)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    return seen


@pytest.mark.parametrize("objective", ["pgd", "trades", "fgsm-rs"])
def test_a_compiled_training_is_the_plain_one(objective, monkeypatch, calls):
    """Step by step the same weights to float32's rounding, masks held; every attack and every loss went through it."""
    # Both attack the same copy of the net: signs hang on last bits.
    monkeypatch.setattr(prunebench.bench.lab.trainer, "_quick", lambda model, *_: Still(model.eval(), torch.float32))
    compiled = trained(monkeypatch, compiled=True, objective=objective)
    batches = 4  # two epochs of two batches
    clean = {"pgd": 0, "trades": 1, "fgsm-rs": 0}[objective]  # looks of an attack without a gradient
    steps, losses = {"pgd": (3, 1), "trades": (3, 2), "fgsm-rs": (1, 1)}[objective]
    assert calls.count(("attack", False, True)) == TRIES + batches * steps
    assert calls.count(("attack", False, False)) == clean * (TRIES + batches)  # such a graph is made for TRADES alone
    assert calls.count(("train", True, False)) == TRIES + batches * losses
    assert len(calls) == TRIES * (2 + clean) + batches * (steps + clean + losses)
    near(compiled, trained(monkeypatch, compiled=False, objective=objective))
    pruned = sum(int((~mask).sum()) for mask in masks().values())
    assert sum(int((compiled.weights[name] == 0).sum()) for name in masks()) >= pruned


def test_the_comparison_would_see_another_training(monkeypatch):
    """The twin: a step more in the attack."""
    with pytest.raises(AssertionError):
        near(trained(monkeypatch, compiled=False, steps=4), trained(monkeypatch, compiled=False))


def test_nothing_is_compiled_on_the_cpu_unless_it_is_asked_for(monkeypatch, calls):
    trained(monkeypatch, compiled=None)
    assert calls == []


def test_the_net_is_left_as_it_was():
    plain = net().train()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    assert captured(plain, IMAGES, backend="aot_eager") is not None
    assert plain.training and all(p.requires_grad and p.grad is None for p in plain.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_weights_are_shared():
    plain = net().eval()
    quick = captured(plain, IMAGES, backend="aot_eager")
    last = [module for module in plain.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        assert not torch.equal(quick.attack(IMAGES), last.bias.expand(16, 10))  # not yet read
        torch.testing.assert_close(quick.attacked()(IMAGES), last.bias.expand(16, 10))
        torch.testing.assert_close(quick.trained(IMAGES), last.bias.expand(16, 10))


def test_a_process_compiles_a_shape_once_and_weights_are_copied_in(calls):
    """The second net has other weights; its functions are the first one's, and give what it gives itself."""
    first, other = net(), build("digits-cnn", info=STORE.info("digits"), seed=2)
    made, rehearsed = captured(first, IMAGES, backend="eager"), len(calls)
    again = captured(other, IMAGES, backend="eager")
    assert again is made and again.net is first and len(calls) == rehearsed
    with torch.no_grad():
        assert torch.equal(again.trained(IMAGES), other(IMAGES))
        torch.testing.assert_close(again.attacked()(IMAGES), other.eval()(IMAGES))
        assert not torch.equal(net().eval()(IMAGES), other(IMAGES))  # the twin: the first one's own weights


@pytest.mark.parametrize("difference", ["batch", "dtype", "clean", "graphs", "fill", "structure", "frozen"])
def test_other_shapes_and_uses_are_compiled_anew(difference):
    made, images, options = captured(net(), IMAGES, backend="eager"), IMAGES, {}
    other = net()
    if difference == "batch":
        images = IMAGES[:8]
    elif difference == "dtype":
        options = {"autocast": torch.autocast("cpu", torch.bfloat16)}
    elif difference == "clean":
        options = {"clean": True}
    elif difference == "graphs":
        options = {"graphs": False}
    elif difference == "fill":
        options = {"fill": 8}
    elif difference == "structure":
        next(module for module in other.modules() if isinstance(module, nn.BatchNorm2d)).momentum = 0.5
    else:
        next(other.parameters()).requires_grad_(False)
    found = captured(other, images, backend="eager", **options)
    assert found is not None and found is not made and found.net is other
    assert captured(net(), IMAGES, backend="eager") is made


def test_two_trainings_at_a_time_have_a_net_each():
    """What is trained is not overwritten; when the first training is over, its place is free."""

    class Training:
        pass

    one, two = Training(), Training()
    made = captured(net(), IMAGES, backend="eager", user=one)
    other = captured(net(), IMAGES, backend="eager", user=two)
    assert other.net is not made.net
    del two
    assert captured(net(), IMAGES, backend="eager") is other


def test_a_training_after_another_begins_afresh(monkeypatch, calls):
    """The second one in a process takes over the compiled net and ends in the same weights as the first."""
    first, before = trained(monkeypatch, compiled=True), len(calls)
    second = trained(monkeypatch, compiled=True)
    assert len(calls) - before == before - 2 * TRIES  # no rehearsals
    assert all(torch.equal(second.last[name], tensor) for name, tensor in first.last.items())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (lambda compiled, images: compiled(images) * 1.5, "gradients are off by"),
        (lambda compiled, images: compiled(images) * float("nan"), "gradients are off by nan"),
        (lambda compiled, images: 1 / 0, "uncompiled: ZeroDivisionError"),
    ],
)
def test_what_does_not_agree_or_fails_is_said_and_training_goes_on_without(fault, sentence, monkeypatch, caplog):
    compile_ = torch.compile

    def wrong(module, **options):
        compiled = compile_(module, **options)
        return lambda images: fault(compiled, images)

    monkeypatch.setattr(torch, "compile", wrong)
    with caplog.at_level(logging.WARNING, "prunebench.compiled"):
        found = trained(monkeypatch, compiled=True)
    assert sentence in caplog.text
    monkeypatch.setattr(torch, "compile", compile_)
    plain = trained(monkeypatch, compiled=False)
    assert all(torch.equal(found.last[name], plain.last[name]) for name in plain.last)


@pytest.mark.parametrize(
    ("found", "verdict"), [((1.0, 0.3), True), ((1.0, 0.33), False), ((1.0, float("nan")), False), ((1.3, 0.0), True)]
)
def test_what_compiled_code_finds_may_be_half_as_far_again_from_float32(found, verdict):
    """Torch's own rounding is .2 away, so .32 is allowed; nothing is said about the distance between the two."""
    exact, eager = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.2])
    assert distance(eager, exact) == pytest.approx(0.2)
    assert agree(torch.tensor(found), eager, exact) is verdict
    assert agree(exact + torch.tensor([0.0, 0.019]), exact, exact)
    assert not agree(exact + torch.tensor([0.0, 0.021]), exact, exact)


class Unfused(nn.Module):
    """A layer's result in float32 behind a layer in bfloat16: what a kernel that fuses the two keeps in registers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(images).float()


def image_gradient(net, images, autocast=False):
    at = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return torch.autograd.grad(net(at).float().square().sum(), at)[0].flatten()


def test_fused_bfloat16_is_not_taken_for_a_fault():
    """ResNet-18, emulated: fused kernels keep norms, ReLUs and sums in float32, torch rounds each to bfloat16.

    Two roundings of one gradient differ as much as one differs from float32, so a bound on their difference that the
    rounding itself reaches would refuse sound kernels. A gradient of half as much again is refused.
    """
    shape = (3, 16, 16)
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    plain = build("resnet18", info=Info(10, shape, (0.5,) * 3, (0.25,) * 3), seed=0).eval()
    exact, eager = image_gradient(plain, images), image_gradient(plain, images, autocast=True)
    fused = copy.deepcopy(plain)
    for owner in [*fused.modules()]:
        for name, layer in owner.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                setattr(owner, name, Unfused(layer))
    found = image_gradient(fused, images)
    assert distance(eager, exact) > 0.01  # bfloat16 is coarse
    assert distance(found, eager) > 0.5 * distance(eager, exact)  # and rounds otherwise
    assert agree(found, eager, exact)
    assert not agree(1.5 * found, eager, exact)
    assert not agree(image_gradient(plain.train(), images, autocast=True), eager, exact)  # another mode of the norms


def test_a_net_made_of_scores_is_trained_as_it_is(calls):
    scored = net()
    names = [name for name, p in scored.named_parameters() if p.dim() > 1]
    scores = {name: p.detach().clone() for name, p in scored.named_parameters() if name in names}
    attach_scores(scored, scores, dict.fromkeys(names, 5))
    assert captured(scored, IMAGES, backend="aot_eager") is None and calls == []


def compilations(nets, monkeypatch):
    """How many graphs each of so many nets of one class was compiled to, and how many more its later use took."""
    calls, found = [], []
    compile_ = torch.compile

    def counted(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module, **options: compile_(module, **options | {"backend": counted}))
    for number in range(nets):
        plain, before, images = net(), len(calls), IMAGES[number:]  # another batch: nothing compiled before will do
        compiled = captured(plain, images)
        after = len(calls)
        if compiled is not None:
            compiled.trained(images)
            plain.eval()
            compiled.attacked()(images.clone().requires_grad_())
        found.append((compiled is not None, after - before, len(calls) - after))
    return found


def test_many_nets_of_one_class_are_compiled_each(monkeypatch):
    """Dynamo gives up on code that it compiled eight times; the twin, with its own limits, is believed unseen."""
    found = compilations(5, monkeypatch)
    assert all(trusted and graphs > 0 and more == 0 for trusted, graphs, more in found), found
    torch.compiler.reset()
    monkeypatch.undo()
    monkeypatch.setattr("prunebench.bench.lab.compiled._limits", nullcontext)
    assert (True, 0, 0) in compilations(5, monkeypatch)


def test_where_the_compiler_gives_up_it_is_said(monkeypatch, caplog):
    limits = torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
    monkeypatch.setattr("prunebench.bench.lab.compiled._limits", lambda: limits)
    assert captured(net(), IMAGES, clean=True, backend="eager") is None  # two graphs of the net under attack
    assert "Training continues uncompiled" in caplog.text


@pytest.mark.slow
def test_inductor_trains_as_torch_does(monkeypatch, caplog):
    compiled = trained(monkeypatch, compiled=True, backend="inductor")
    assert "uncompiled" not in caplog.text
    near(compiled, trained(monkeypatch, compiled=False))


def test_inductor_starts_few_threads_though_torchvision_imported_it(monkeypatch):
    """The environment alone, which inductor read at its import, is the twin: it comes too late."""
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(config, "compile_threads", 32)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    assert config.compile_threads == 32
    with compiling._limits():
        assert config.compile_threads == 3  # the caller's
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(compiling, "THREADS", 1)
    with compiling._limits():
        assert config.compile_threads == 1
