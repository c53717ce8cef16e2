"""The compiled net trains as the plain one does, takes no gradient that nobody wants, and is not believed unseen.

`aot_eager` takes a net apart into its forward and backward graphs as inductor does, and runs them with torch's own
kernels: it compiles in a moment. Inductor itself is tried in a slow test.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import prunebench.bench.lab.train
import prunebench.bench.lab.trainer
from prunebench.bench.lab.compiled import captured, frozen
from prunebench.bench.lab.schedule import TrainingPlan
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


def net():
    return build("digits-cnn", info=STORE.info("digits"), seed=1)


def masks():
    shapes = {name: tuple(p.shape) for name, p in net().named_parameters() if p.dim() > 1}
    return draw(shapes, {name: torch.Size(shape).numel() // 5 for name, shape in shapes.items()}, torch.Generator())


def trained(monkeypatch, *, compiled, backend="aot_eager", **changes):
    monkeypatch.setattr(prunebench.bench.lab.trainer, "captured", lambda *args: captured(*args, backend=backend))
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

    def slowly(*_):
        now[0] += 100.0

    monkeypatch.setattr(prunebench.bench.lab.trainer, "captured", slowly)
    plan = TrainingPlan(RULES.training, RULES.threat, 2)
    assert fit(net(), plan, TRAIN, VALIDATION, seed=5, compiled=True).times == [100.0, 0.0]
    assert fit(net(), plan, TRAIN, VALIDATION, seed=5, compiled=False).times == [0.0, 0.0]


@pytest.fixture
def calls(monkeypatch):
    """What went through compiled nets: (training mode, whether the weights could have gradients)."""
    seen = []
    compile_ = torch.compile

    def watched(module, **options):
        compiled = compile_(module, **options)

        def call(images):
            seen.append((module.training, next(module.parameters()).requires_grad))
            return compiled(images)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    return seen


@pytest.mark.parametrize("objective", ["pgd", "trades", "fgsm-rs"])
def test_a_compiled_training_is_the_plain_one(objective, monkeypatch, calls):
    """Step by step the same weights to float32's rounding, masks held; every attack and every loss went through it."""
    monkeypatch.setattr(
        prunebench.bench.lab.trainer, "_quick", lambda *_: None
    )  # both attack the net itself: signs hang on last bits
    compiled = trained(monkeypatch, compiled=True, objective=objective)
    rehearsed, batches = 3 + 2 * 3, 4  # two epochs of two batches
    forwards = {"pgd": (3, 1), "trades": (1 + 3, 2), "fgsm-rs": (1, 1)}[objective]  # of the attack, of the loss
    assert len(calls) == rehearsed + batches * sum(forwards)
    assert calls.count((False, False)) == 2 * 3 + batches * forwards[0]  # weights frozen under attack
    assert calls.count((True, True)) == 3 + batches * forwards[1]
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
        torch.testing.assert_close(quick(IMAGES), last.bias.expand(16, 10))


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
            plain.train()
            compiled(images)
            plain.eval()
            with frozen(plain):
                compiled(images)
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
    assert captured(net(), IMAGES, backend="aot_eager") is None
    assert "Training continues uncompiled" in caplog.text


def test_frozen_parameters_come_back_as_they_were():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)


@pytest.mark.slow
def test_inductor_trains_as_torch_does(monkeypatch, caplog):
    compiled = trained(monkeypatch, compiled=True, backend="inductor")
    assert "uncompiled" not in caplog.text
    near(compiled, trained(monkeypatch, compiled=False))
