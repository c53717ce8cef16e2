"""A scheme changes a training at its moments, is resumed in the same bytes, and pays for its gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import resume
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.schemes import Scheme
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import draw, enforce
from tests.lab.test_lab import PASSES
from tests.lab.test_resume import Cut
from tests.lab.test_train import CPU, PIXELS, Ramp, content, net, plan, trained
from tests.support.nets import TINY, changed, lab

LABELS = torch.zeros(5, dtype=torch.long)


def noise():
    return torch.Generator().manual_seed(0)


def stepped(scheme, w=2.0, **changes):
    """A Ramp after one step at rate .1 without momentum, weight decay or attack."""
    rules = changed(TINY, momentum=0.0, weight_decay=0.0, lr=0.1, objective="trades", beta=0.0, steps=1, **changes)
    it = Trainer(Ramp(w), TrainingPlan(rules.training, rules.threat, 4, scheme=scheme), {}, CPU)
    it.step(PIXELS, LABELS, 0.0, noise())
    return it


@dataclass(frozen=True)
class Decay(Scheme):
    """Adds strength / 2 * w^2 to the loss."""

    strength: float = 1.0

    def penalty(self, run):
        return self.strength / 2 * run.model.w.square()


def test_the_gradient_of_a_penalty_is_added_to_that_of_the_loss():
    """d(w^2 / 2)/dw = w, so at w = 2 and rate .1 the step goes .2 further down."""
    plain, penalised = stepped(Scheme()).model.w.item(), stepped(Decay()).model.w.item()
    assert penalised == pytest.approx(plain - 0.1 * 2.0, abs=1e-6)
    assert stepped(Decay(0.0)).model.w.item() == pytest.approx(plain, abs=1e-7)  # the twin


@dataclass(frozen=True)
class Ahead(Scheme):
    """Descends along the gradient found at w + ahead."""

    ahead: float = 1.0
    gradients = 2

    def after_gradient(self, run, again):
        with torch.no_grad():
            run.model.w += self.ahead
        again()
        with torch.no_grad():
            run.model.w -= self.ahead


def test_a_second_gradient_is_taken_where_the_net_then_is():
    """The loss log(1 + e^(wp)) has the derivative p / (1 + e^(-wp)) at each pixel p."""

    def slope(w):
        return sum(p / (1 + torch.tensor(-w * p).exp().item()) for p in PIXELS.flatten().tolist()) / 5

    assert stepped(Ahead()).model.w.item() == pytest.approx(2 - 0.1 * slope(3.0), abs=1e-5)
    assert stepped(Ahead(0.0)).model.w.item() == pytest.approx(2 - 0.1 * slope(2.0), abs=1e-5)  # the twin
    assert abs(slope(3.0) - slope(2.0)) > 0.01


def test_gradients_and_extra_passes_are_charged(tmp_path):
    """128 images an epoch: PGD costs 3 a step and 3 for the gradient, so a second gradient adds 3 to each image."""

    @dataclass(frozen=True)
    class Dear(Ahead):
        def after_gradient(self, run, again):
            again()

        def extra_passes(self, epochs, steps, images):
            return 1000 * epochs + 10 * steps

    rules = changed(TINY, train=128, units=9.0)
    room = lab(tmp_path, rules)
    room.fit("plain", room.initial(), epochs=2)
    room.fit("dear", room.initial(), epochs=2, scheme=Dear())
    plain, dear = (stage.passes for stage in room.meter.stages)
    assert plain == 2 * 128 * PASSES["pgd"] and dear == plain + 2 * 128 * 3 + 2 * 1000 + 4 * 10


@dataclass(frozen=True)
class Wandering(Scheme):
    """Draws new masks after every epoch, and counts its steps in `held`."""

    density: float = 0.2

    def begin(self, net):
        return {"count": torch.zeros(())}

    def after_step(self, run):
        run.held["count"] = run.held["count"] + 1

    def after_epoch(self, run):
        run.remask(masks_of(run.model, int(run.held["count"]), self.density))


def masks_of(model, seed, density=0.2):
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    keeps = {name: int(density * weight.numel()) for name, weight in weights.items()}
    return draw({name: tuple(p.shape) for name, p in weights.items()}, keeps, torch.Generator().manual_seed(seed))


def cut_off(how, masks, partial, after):
    def report(what, done, of):
        if done == after:
            raise Cut

    with pytest.raises(Cut):
        trained(how, masks=masks, partial=partial, report=report)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_masks_that_change_and_tensors_held_are_resumed_in_the_same_bytes(after, tmp_path):
    how, partial = replace(plan(), scheme=Wandering()), tmp_path / "partial"
    masks = masks_of(net(), 99)
    cut_off(how, masks, partial, after)
    seen = []
    resumed = trained(how, masks=masks, partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == list(range(after + 1, 5))
    assert content(resumed) == content(trained(how, masks=masks))


@pytest.mark.parametrize("part", ["mask/", "held/"])
def test_a_resume_that_forgets_them_is_found(part, tmp_path, monkeypatch):
    how, partial, real = replace(plan(), scheme=Wandering()), tmp_path / "partial", resume.load_stage
    masks = masks_of(net(), 99)
    cut_off(how, masks, partial, 2)

    def forgetful(path):
        if (kept := real(path)) is None:
            return None
        fresh = {"mask/" + name: mask for name, mask in masks.items()} | {"held/count": torch.zeros(())}
        return {name: fresh[name] if name.startswith(part) else t for name, t in kept[0].items()}, kept[1]

    monkeypatch.setattr(resume, "load_stage", forgetful)
    assert content(trained(how, masks=masks, partial=partial)) != content(trained(how, masks=masks))


def check_remask():
    """After a change of masks: pruned weights and averages are zero, weights that enter have no momentum."""
    before, after = masks_of(net(), 1), masks_of(net(), 2)
    it = Trainer(net(), plan(), before, CPU)
    it.step(torch.rand(4, 1, 8, 8, generator=noise()), LABELS[:4], 0.0, noise())
    it.remask(after)
    for name, mask in after.items():
        weight = dict(it.model.named_parameters())[name]
        assert not weight[~mask].any() and not it.average[name][~mask].any()
        assert not it.momentum[name][~(mask & before[name])].any() and it.momentum[name][mask & before[name]].any()
    with it.attacked() as quick, torch.no_grad():
        images = torch.rand(4, 1, 8, 8, generator=noise())
        torch.testing.assert_close(quick(images), it.model.eval()(images), rtol=1e-4, atol=1e-5)


def test_remask():
    check_remask()


def test_remask_twin(monkeypatch):
    def lazily(self, masks):
        self.masks = masks
        enforce(self.model, masks)

    monkeypatch.setattr(Trainer, "remask", lazily)
    with pytest.raises(AssertionError):
        check_remask()


def test_trainings_by_different_schemes_are_different_trainings(tmp_path):
    room = lab(tmp_path, changed(TINY, train=128, units=99.0))
    start = room.initial()
    runs = [room.fit("a", start, epochs=1, masks=masks_of(room.model(), 5), scheme=Wandering(d)) for d in (0.2, 0.1)]
    runs.append(room.fit("a", start, epochs=1, masks=masks_of(room.model(), 5)))
    assert len({tuple(run.last["1.7.weight"].flatten().tolist()) for run in runs}) == 3


def test_a_scheme_cannot_take_more_gradients_than_it_pays_for(tmp_path):
    @dataclass(frozen=True)
    class Greedy(Scheme):
        def after_gradient(self, run, again):
            again()

    with pytest.raises(PrunebenchError, match="more gradients per step than the 1 that it pays for"):
        stepped(Greedy())
    stepped(Ahead())  # the twin, which pays for two


@pytest.mark.parametrize(("gradients", "extra"), [(0, 0), (1, -1)])
def test_a_scheme_is_never_paid(gradients, extra, tmp_path):
    @dataclass(frozen=True)
    class Paid(Scheme):
        def extra_passes(self, epochs, steps, images):
            return extra

    Paid.gradients = gradients
    room = lab(tmp_path, changed(TINY, train=128))
    with pytest.raises(PrunebenchError, match=f"declares {gradients} gradients per step and {extra} extra"):
        room.fit("train", room.initial(), epochs=1, scheme=Paid())
    assert not room.meter.stages
