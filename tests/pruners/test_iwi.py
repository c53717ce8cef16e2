"""IWI is right: the large net begins as the small one, trains all its weights, and is pruned again or stays dense."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from prunebench.bench import spec
from prunebench.bench.checkpoint import open_net
from prunebench.bench.errors import BudgetExceeded, PrunebenchError
from prunebench.bench.grid.run import job_of
from prunebench.bench.grid.task import train
from prunebench.bench.mask import draw, masked
from prunebench.pruners import imp, iwi, resolve
from prunebench.pruners.imp import IMP
from prunebench.pruners.iwi import IWI, IWIDense, inherit
from tests.lab.test_lab import counting
from tests.pruners.test_pruners import RULES, SIZES, Watched, is_mask_of, kept, same
from tests.support.nets import STORE, changed, job, lab

WIDE = changed(RULES, units=5.0, batch=16)  # fifteen epochs of eight batches: the ticket is a net that has learnt
KEEP = 7632  # of 38,160 at sparsity 0.8
PARTS = dict(share=0.4, large=0.2, lr=0.25)  # six, three and six of them


class Inheriting(Watched):
    """A lab that writes down the tickets, too."""

    def run(self, pruner, **options):
        """As Lab.run."""
        state = super().run(pruner, **options)
        self.ticket = (pruner, options, {name: tensor.clone() for name, tensor in state.items()})
        return state


def use(pruner, tmp_path, sparsity=0.8, rules=WIDE):
    """The lab that `pruner` was let work in, and what it returned."""
    sparsity = 0.0 if isinstance(pruner, IWIDense) else sparsity
    room = lab(tmp_path, rules, sparsity=sparsity, kind=Inheriting, resolve=lambda spec: resolve(spec).pruner)
    return room, pruner(room.job, room)


def small_and_initial(room):
    """A small net that has been trained, as far as anybody can see, and the weights of the beginning."""
    masks = draw(room.shapes, dict.fromkeys(SIZES, 100), torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    initial = room.initial()
    moved = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=noise) if tensor.is_floating_point() else tensor + 3
        for name, tensor in initial.items()
    }
    return masked(moved, masks), initial, masks


# The inheritance by itself


def check_remainder(room, remainder, factor):
    """The kept weights, biases and batch norm as the small net has them; the others `factor` of the beginning's."""
    small, initial, masks = small_and_initial(room)
    large = inherit(small, initial, list(SIZES), remainder)
    assert is_mask_of(masks, small) and same(large, small, where=masks)
    for name in SIZES:
        rest = ~masks[name]
        assert initial[name][rest].all()  # that a zero here comes from nowhere else
        assert torch.equal(large[name][rest], factor * initial[name][rest])


@pytest.mark.parametrize(("remainder", "factor"), [("zero", 0.0), ("init", 1.0), ("small", 0.001)])
def test_the_remainder_is_exactly_what_it_is_called(remainder, factor, tmp_path):
    check_remainder(lab(tmp_path, WIDE), remainder, factor)


@pytest.mark.parametrize(
    ("remainder", "factor"), [("zero", 1.0), ("zero", 0.001), ("init", 0.0), ("init", 0.001), ("small", 0.0)]
)
def test_remainder_twin(remainder, factor, tmp_path):
    with pytest.raises(AssertionError):
        check_remainder(lab(tmp_path, WIDE), remainder, factor)


@pytest.mark.parametrize("remainder", ["zero", "init", "small"])
def test_from_a_small_net_without_zeros_the_large_one_inherits_everything(remainder, tmp_path):
    room = lab(tmp_path, WIDE)
    whole = {name: tensor + 0.5 for name, tensor in room.initial().items()}
    assert all(whole[name].all() for name in SIZES)  # a mask of all ones
    assert same(inherit(whole, room.initial(), list(SIZES), remainder), whole)


# In its place


def check_iwi(tmp_path, remainder="zero"):
    """Ticket, inheritance, all weights trained, one global cut, fine-tuning."""
    room, state = use(IWI(remainder=remainder, **PARTS), tmp_path)
    spec, lent, small = room.ticket
    large, tuned = room.asked[-2:]
    rate, tuning = 0.25 * RULES.training.lr, 0.5 * RULES.training.lr

    assert spec == "imp" and lent == {"name": "ticket", "sparsity": 0.8, "epochs": 6}
    assert sum(int(small[name].count_nonzero()) for name in SIZES) == room.keep == KEEP

    # 2: the large net is the small one, to the bit
    assert large.options == {"epochs": 3, "lr": rate} and large.masks is None
    images = room.train.images.float() / 255
    before, after = (room.model(each).eval()(images) for each in (small, large.start))
    assert torch.equal(before, after) and before.std(0).mean() > 0.1
    assert same(large.start, small)

    # 3: all of its weights are trained; those that stay are at units that are always off
    for name in SIZES:
        outside = small[name] == 0
        assert large.trained.weights[name][outside].count_nonzero() > 0.4 * outside.sum()

    # ours: the globally largest, tuned under their mask
    masks, weights = tuned.masks, large.trained.weights
    assert tuned.options == {"epochs": 6, "lr": tuning} and sum(kept(masks).values()) == KEEP
    inside = torch.cat([weights[name][masks[name]].abs() for name in SIZES])
    assert inside.min() >= torch.cat([weights[name][~masks[name]].abs() for name in SIZES]).max()
    assert is_mask_of(masks, tuned.start) and same(tuned.start, weights, where=masks)
    assert is_mask_of(masks, state) and same(state, tuned.trained.weights) and not same(state, tuned.start)
    return room


def test_iwi_inherits_the_function_and_trains_all_weights(tmp_path):
    room = check_iwi(tmp_path)
    steps = 15 * 8 * 16 * (3 * RULES.training.steps + 3)
    assert room.meter.spent == room.meter.granted == steps
    names = [stage.name for stage in room.meter.stages]
    assert names[-2:] == ["large", "fine-tune"] and len(names) > 3
    assert all(name.startswith("ticket: ") for name in names[:-2])
    assert sum(stage.passes for stage in room.meter.stages[:-2]) == steps * 6 // 15


@pytest.mark.parametrize("remainder", ["init", "small"])
def test_with_another_remainder_the_function_is_another(remainder, tmp_path):
    with pytest.raises(AssertionError):
        check_iwi(tmp_path, remainder)
    use(IWI(remainder=remainder, **PARTS), tmp_path)


def without_batch_norm(small, initial, names, remainder):
    """Inherit the weights, and begin batch norm's statistics anew."""
    return inherit(small, initial, names, remainder) | {name: initial[name] for name in initial if "running" in name}


def off_by_one(small, initial, names, remainder):
    """Inherit all of the weights but one."""
    large = inherit(small, initial, names, remainder)
    first = large[names[-1]].clone()
    first.view(-1)[first.view(-1).nonzero()[0]] = 0.0
    return large | {names[-1]: first}


@pytest.mark.parametrize("twin", [without_batch_norm, off_by_one])
def test_iwi_twin_that_inherits_too_little(twin, tmp_path, monkeypatch):
    monkeypatch.setattr(iwi, "inherit", twin)
    with pytest.raises(AssertionError):
        check_iwi(tmp_path)


@pytest.mark.parametrize("twin", ["the mask is kept", "one weight too many"])
def test_iwi_twin(twin, tmp_path, monkeypatch):
    fit, choose = Watched.fit, iwi.keep_largest

    def under(self, stage, start, *, masks=None, **options):
        if stage != "large":
            return fit(self, stage, start, masks=masks, **options)
        trained = fit(self, stage, start, masks={name: start[name] != 0 for name in SIZES}, **options)
        self.asked[-1] = type(self.asked[-1])(stage, self.asked[-1].start, None, options, trained)
        return trained

    if twin == "the mask is kept":
        monkeypatch.setattr(Watched, "fit", under)
    else:
        monkeypatch.setattr(iwi, "keep_largest", lambda scores, keep: choose(scores, keep + 1))
    with pytest.raises(AssertionError):
        check_iwi(tmp_path)


def test_iwi_dense_stops_before_the_cut(tmp_path):
    room, state = use(IWIDense(sparsity=0.8, share=0.4, lr=0.25), tmp_path)
    _, lent, small = room.ticket
    large = room.asked[-1]
    assert lent == {"name": "ticket", "sparsity": 0.8, "epochs": 6}
    assert large.options == {"epochs": 9, "lr": 0.25 * RULES.training.lr} and large.masks is None
    assert same(large.start, small) and same(state, large.trained.weights)
    assert sum(int(small[name].count_nonzero()) for name in SIZES) == KEEP
    assert sum(int(state[name].count_nonzero()) for name in SIZES) > 2 * KEEP
    assert room.meter.spent == room.meter.granted


def test_iwi_dense_is_run_at_sparsity_0_alone():
    resolved = resolve("iwi-dense")
    assert not resolved.prunes and resolve("iwi").prunes
    assert job_of(resolved, None, 0).sparsity == 0.0
    with pytest.raises(PrunebenchError, match=r"'iwi-dense' does not prune, so sparsity 0\.9"):
        job_of(resolved, 0.9, 0)


def test_shuffle_permutes_the_last_mask(tmp_path):
    plain, _ = use(IWI(**PARTS), tmp_path)
    moved, state = use(IWI(shuffle=True, **PARTS), tmp_path)
    before, after = plain.asked[-1].masks, moved.asked[-1].masks
    partly = [name for name, size in SIZES.items() if kept(before)[name] < size]
    assert kept(before) == kept(after) and len(partly) >= 3
    assert not any(torch.equal(before[name], after[name]) for name in partly)
    assert same(moved.asked[-1].start, moved.asked[-2].trained.weights, where=after)
    assert not any(state[name][~after[name]].any() for name in SIZES)  # a weight that never moved may stay zero inside
    assert same(plain.ticket[-1], moved.ticket[-1])  # the ticket is not shuffled


# The control, the budget and the store


def test_the_control_with_a_random_ticket_runs_from_the_command_line_to_a_net(tmp_path):
    stages = tmp_path / "stages"
    spec = "iwi:ticket=random,share=0.4,large=0.2"
    asked = job(spec, 0.8)
    assert asked.options == {"ticket": "random", "share": 0.4, "large": 0.2}
    path = train(spec, asked, WIDE, tmp_path / "net", stages, STORE, device="cpu")
    net = open_net(path)
    assert net.id.nonzero == KEEP and len(list(stages.glob("*/done.safetensors"))) == 3
    assert [stage.name for stage in net.header.stages] == ["ticket: train", "large", "fine-tune"]
    assert [stage.passes // (128 * 12) for stage in net.header.stages] == [6, 3, 6]
    alone = changed(WIDE, units=2.0)  # `random` by itself, with six epochs
    train("random", job("random", 0.8), alone, tmp_path / "alone", stages, STORE, device="cpu")
    assert len(list(stages.glob("*/done.safetensors"))) == 3  # has the training of that ticket


@pytest.mark.parametrize("pruner", [IWI(ticket="dense"), IWIDense(ticket="dense")], ids=["iwi", "iwi-dense"])
def test_a_ticket_that_does_not_prune_is_refused_before_it_is_trained(pruner, tmp_path):
    """All weights would be inherited, and what remains is magnitude pruning under another name."""
    room = lab(tmp_path, WIDE, sparsity=0.8, resolve=lambda spec: resolve(spec).pruner)
    with pytest.raises(PrunebenchError, match=r"^dense does not prune, but sparsity 0\.[89] is asked of it"):
        pruner(room.job, room)
    assert not room.meter.stages


def test_a_ticket_that_imp_has_drawn_is_not_drawn_again(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    _, ticket = use(IMP(), tmp_path, rules=changed(WIDE, units=2.0))  # six epochs
    drawn = len(plans)
    assert drawn > 2
    room, _ = use(IWI(**PARTS), tmp_path)
    assert len(plans) == drawn + 2  # large, fine-tune
    assert same(room.ticket[-1], ticket)
    use(IWIDense(sparsity=0.8, share=0.4), tmp_path)
    assert len(plans) == drawn + 3
    use(IWI(**PARTS | {"share": 0.6}), tmp_path)  # the twin: another ticket
    assert len(plans) > drawn + 3 + 2


def test_a_ticket_cannot_cost_more_than_it_was_lent(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    room, _ = use(IWI(ticket="random", **PARTS), tmp_path)
    with pytest.raises(BudgetExceeded, match="'ticket' costs"):
        IWI(ticket="random", **PARTS)(room.job, room)  # the budget is spent
    assert len(plans) == 3


def test_a_mended_ticket_makes_another_source(tmp_path, monkeypatch):
    mended = tmp_path / "imp.py"
    mended.write_text(Path(imp.__file__).read_text() + "\n# mended\n")
    asked = ("imp", "iwi", "iwi-dense", "iwi:ticket=random", "hydra")
    before = {one: spec.source_of(one) for one in asked}
    assert before["iwi"] == resolve("iwi").source and before["iwi"] != before["iwi:ticket=random"]
    points = dict(spec.registered()) | {"imp": EntryPoint("imp", f"{mended}:IMP", spec.GROUP)}
    monkeypatch.setattr(spec, "registered", lambda: points)
    after = {one: spec.source_of(one) for one in asked}
    assert {one for one in asked if before[one] != after[one]} == {"imp", "iwi", "iwi-dense"}


def test_an_unknown_ticket_lists_the_choices(tmp_path):
    with pytest.raises(PrunebenchError, match=r"pruner 'impp'.*imp"):
        use(IWI(ticket="impp", **PARTS), tmp_path)


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        (IWI, {"ticket": "mine.py:Mine"}),
        (IWI, {"ticket": "imp:rounds=2"}),
        (IWIDense, {"ticket": "package.module:Mine"}),
        (IWI, {"share": 0.0}),
        (IWI, {"large": 0.0}),
        (IWI, {"share": 0.6, "large": 0.4}),
        (IWI, {"remainder": "one"}),
        (IWI, {"lr": 0.0}),
        (IWIDense, {"share": 1.0}),
        (IWIDense, {"sparsity": 0.0}),
        (IWIDense, {"sparsity": 1.0}),
    ],
)
def test_options_that_make_no_sense_are_refused(pruner, options):
    with pytest.raises(ValueError, match=r"must|leave nothing"):
        pruner(**options)
