"""R-ADMM is right: on paper it projects and pulls, without a pull it is magnitude pruning, and the residual falls."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid import dry_run
from prunebench.bench.grid.dry_run import Dry, pruned
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import keep_largest, keep_largest_by_layer, layer_counts, masked
from prunebench.pruners import r_admm
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.r_admm import ADMM, RADMM, projection
from tests.lab.test_resume import Cut
from tests.lab.test_train import CPU, content, plan, trained
from tests.lab.test_train import RULES as TRAINED
from tests.pruners.test_pruners import ERK, RULES, SIZES, is_mask_of, kept, same, use
from tests.support.nets import STORE, changed, job, lab

THIRDS = RADMM(dense=1 / 3, admm=1 / 3, rho=1.0)  # three epochs for each stage


class Two(nn.Module):
    """Logits (w, v) . pixel of one-pixel images by two linear layers of two weights each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.a.weight.data = torch.tensor([[3.0], [-1.0]])
        self.b.weight.data = torch.tensor([[0.5, 0.0], [2.0, -4.0]])

    def forward(self, images):
        """Logits (n, 2)."""
        return self.b(self.a(images.flatten(1)))


A, B = "a.weight", "b.weight"


def two(scheme):
    rules = changed(TRAINED, momentum=0.0, weight_decay=0.0, lr=0.1, objective="trades", beta=0.0, steps=1)
    return Trainer(Two(), TrainingPlan(rules.training, rules.threat, 4, scheme=scheme), {}, CPU)


def test_projections_on_paper():
    """Of 3, -1 | .5, 0, 2, -4 stay three. Uniform gives 1 and 2; ERK shares are 3/2 and 4/4, so 1.29 and 1.71."""
    weights = {name: weight.detach() for name, weight in Two().named_parameters()}
    by = {kind: projection(weights, kind, 3) for kind in ("uniform", "erk", "global")}
    assert all(by[kind][A].tolist() == [[True], [False]] for kind in by)
    assert all(by[kind][B].tolist() == [[False, False], [True, True]] for kind in by)
    assert kept(projection(weights, "global", 2)) == {A: 1, B: 1}
    weights[A] *= 0.1
    assert kept(projection(weights, "global", 3)) == {A: 0, B: 3} and kept(projection(weights, "uniform", 3))[A] == 1
    weights[A][0] = torch.nan
    with pytest.raises(PrunebenchError, match=r"a\.weight are NaN"):
        projection(weights, "global", 3)


def check_admm():
    """Three of six weights, as above. Z keeps 3, 2, -4; the rest, -1, .5 and 0, is pulled with rho = 2."""
    it = two(ADMM(2.0, "global", 3))
    assert it.held["z/" + A].tolist() == [[3.0], [0.0]] and it.held["z/" + B].tolist() == [[0.0, 0.0], [2.0, -4.0]]
    assert not it.held["u/" + A].any() and not it.held["u/" + B].any()
    pull = it.scheme.penalty(it)
    assert pull.item() == pytest.approx(2 / 2 * (1 + 0.25))
    pull.backward()
    assert it.model.b.weight.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]  # 2 * .5

    # The weights move: W + U = W. Now 1.5, 3 and -4 are the largest; U = W - Z is what is left.
    with torch.no_grad():
        it.model.a.weight.copy_(torch.tensor([[1.5], [-1.0]]))
        it.model.b.weight.copy_(torch.tensor([[0.5, 3.0], [0.0, -4.0]]))
    it.scheme.after_epoch(it)
    assert it.held["z/" + A].tolist() == [[1.5], [0.0]] and it.held["z/" + B].tolist() == [[0.0, 3.0], [0.0, -4.0]]
    assert it.held["u/" + A].tolist() == [[0.0], [-1.0]] and it.held["u/" + B].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert it.scheme.penalty(it).item() == pytest.approx(2 / 2 * (2.0**2 + 1.0**2))  # W - Z + U: -2 and 1

    # Unmoved: W + U = 1.5, -2 | 1, 3, 0, -4. So -2 replaces 1.5, and U takes 1.5 and 1 from it.
    it.scheme.after_epoch(it)
    assert it.held["z/" + A].tolist() == [[0.0], [-2.0]] and it.held["z/" + B].tolist() == [[0.0, 3.0], [0.0, -4.0]]
    assert it.held["u/" + A].tolist() == [[1.5], [0.0]] and it.held["u/" + B].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_z_and_u_on_paper():
    check_admm()


@pytest.mark.parametrize("twin", ["U ignored in Z", "U never grows", "one too many", "no half"])
def test_admm_twin(twin, monkeypatch):
    held, penalty, project = r_admm._held, ADMM.penalty, projection
    if twin == "U ignored in Z":
        monkeypatch.setattr(
            r_admm, "projection", lambda w, kind, keep: project(dict(zip(w, FIRST, strict=True)), kind, keep)
        )
    elif twin == "U never grows":
        monkeypatch.setattr(r_admm, "_held", lambda z, u: held(z, {name: torch.zeros_like(t) for name, t in u.items()}))
    elif twin == "one too many":
        monkeypatch.setattr(r_admm, "projection", lambda w, kind, keep: project(w, kind, keep + 1))
    else:
        monkeypatch.setattr(ADMM, "penalty", lambda self, run: 2 * penalty(self, run))
    with pytest.raises(AssertionError):
        check_admm()


FIRST = [weight.detach() for weight in Two().parameters()]


def stages(tmp_path, pruner, **options):
    room, state = use(pruner, tmp_path, **options)
    return room, room.asked, state


def check_radmm(tmp_path):
    room, (dense, admm, tuned), state = stages(tmp_path, THIRDS)
    assert [asked.stage for asked in room.asked] == ["dense", "admm", "fine-tune"]
    assert same(dense.start, room.initial()) and dense.options == {"epochs": 3} and dense.masks is None
    assert same(admm.start, dense.trained.weights) and admm.masks is None
    assert admm.options == {"epochs": 3, "scheme": ADMM(1.0, "global", 1908)}
    found = admm.trained.weights
    assert tuned.options == {"epochs": 3, "lr": 0.5 * RULES.training.lr}
    assert same(tuned.masks, keep_largest({name: found[name].abs() for name in SIZES}, 1908))
    assert same(tuned.start, masked(found, tuned.masks)) and is_mask_of(tuned.masks, state)
    assert room.meter.spent == room.meter.granted

    def residual(weights):
        """The share of the weights' length that a cut takes away."""
        prunable = {name: weights[name] for name in SIZES}
        cut = [
            w[~mask] for w, mask in zip(prunable.values(), projection(prunable, "global", 1908).values(), strict=True)
        ]
        return float(torch.cat(cut).norm() / torch.cat([w.flatten() for w in prunable.values()]).norm())

    before, after = residual(dense.trained.weights), residual(found)
    assert after < 0.8 * before


def test_the_residual_falls_and_the_cut_is_a_projection(tmp_path):
    check_radmm(tmp_path)


@pytest.mark.parametrize("twin", ["no pull", "pushed away", "layer by layer"])
def test_radmm_twin(twin, tmp_path, monkeypatch):
    penalty = ADMM.penalty
    if twin == "layer by layer":
        monkeypatch.setattr(r_admm, "projection", lambda weights, kind, keep: projection(weights, "uniform", keep))
    else:
        monkeypatch.setattr(
            ADMM, "penalty", lambda self, run: (0.0 if twin == "no pull" else -0.1) * penalty(self, run)
        )
    with pytest.raises(AssertionError):
        check_radmm(tmp_path)


def test_without_a_pull_it_is_magnitude_bit_for_bit(tmp_path):
    _, state = use(RADMM(dense=0, admm=2 / 3, rho=0), tmp_path)
    assert same(state, use(Magnitude(dense=2 / 3), tmp_path)[1])
    assert not same(state, use(RADMM(dense=0, admm=2 / 3, rho=0.1), tmp_path)[1])  # the twin


@pytest.mark.parametrize("layers", ["uniform", "erk"])
def test_without_a_pull_it_is_magnitude_with_those_counts(layers, tmp_path):
    room, (dense, admm, tuned), _ = stages(tmp_path, replace(THIRDS, rho=0.0, layers=layers))
    how = TrainingPlan(RULES.training, RULES.threat, 3)
    plain = fit(room.model(dense.trained.weights), how, room.train, room.validation, seed=0).weights
    assert same(admm.trained.weights, plain)
    weights = {name: plain[name].abs() for name in SIZES}
    assert same(tuned.masks, keep_largest_by_layer(weights, layer_counts(layers, weights, 1908)))
    assert layers == "uniform" or kept(tuned.masks) == ERK


def test_shuffle_keeps_the_counts(tmp_path):
    _, (_, admm, tuned), _ = stages(tmp_path, replace(THIRDS, shuffle=True))
    plain = projection({name: admm.trained.weights[name] for name in SIZES}, "global", 1908)
    assert kept(tuned.masks) == kept(plain) and not same(tuned.masks, plain)
    assert same(tuned.start, masked(admm.trained.weights, tuned.masks))


@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_resumed_it_ends_in_the_same_bytes(after, tmp_path):
    how, partial = replace(plan(), scheme=ADMM(1.0, "global", 1908)), tmp_path / "partial"

    def report(what, done, of):
        if done == after:
            raise Cut

    with pytest.raises(Cut):
        trained(how, partial=partial, report=report)
    seen = []
    resumed = trained(how, partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == list(range(after + 1, 5)) and content(resumed) == content(trained(how))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dense": -0.1}, "dense = -0.1"),
        ({"admm": 0.0}, "admm = 0.0"),
        ({"dense": 0.5, "admm": 0.5}, "their sum below 1"),
        ({"rho": -1.0}, "rho = -1.0"),
        ({"rho": math.nan}, "rho = nan"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"layers": "hare"}, "layers = 'hare' must be one of uniform, erk, global"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RADMM(**options)


def test_a_budget_too_small_for_its_stages_is_refused_before_it_is_touched(tmp_path):
    room = lab(tmp_path, changed(RULES, units=1.0))
    with pytest.raises(PrunebenchError, match="Of 3 epochs r-admm would spend 1 on the dense net, 1 on ADMM and 1"):
        RADMM()(room.job, room)
    assert not room.meter.stages


@pytest.mark.parametrize(
    ("layers", "spent", "said"), [("erk", 0, "No weights would be left in"), ("global", 2, "cannot see")]
)
def test_a_layer_without_weights_is_refused_before_fine_tuning(layers, spent, said, tmp_path):
    room = lab(tmp_path, RULES, sparsity=0.9998)  # 8 weights are left
    with pytest.raises(PrunebenchError, match=said):
        replace(THIRDS, layers=layers)(room.job, room)
    assert len(room.meter.stages) == spent


def test_a_rehearsal_whose_untrained_weights_leave_a_layer_empty_passes(tmp_path, monkeypatch):
    """The largest of 8 initial weights lie in other layers than the widest, whose initial weights are smallest."""
    monkeypatch.setattr(dry_run, "training_pace", lambda *_: (3.0, 1e-6))
    lab = Lab(job("random", 0.9998), RULES, STORE, Dry(0.01))
    net, meter = pruned(lab, "prunebench.pruners.r_admm:RADMM", job("random", 0.9998))
    assert not net.get_submodule("1.7").weight.any() and meter.spent == meter.granted
