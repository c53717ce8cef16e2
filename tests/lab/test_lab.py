"""What a pruner is lent: known prices, stages computed once, streams by name, and no way to the test images."""

from __future__ import annotations

import gc

import pytest
import torch

import prunebench.bench.lab.backend
from prunebench.bench.data import Split
from prunebench.bench.errors import BudgetExceeded, PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import draw
from prunebench.bench.seeds import derive
from tests.support.nets import STORE, changed, lab

RULES = changed(train=128, test=40, validate_every=100)  # two units of three epochs of two batches of 64
PASSES = {"pgd": 3 * 3 + 3, "trades": 3 * 3 + 7, "fgsm-rs": 6}  # with three steps of attack; forward 1, backward 2


def counting(monkeypatch):
    """The plans that were really trained from now on."""
    plans, real = [], prunebench.bench.lab.backend.fit

    def fit(model, plan, *arguments, **options):
        plans.append(plan)
        return real(model, plan, *arguments, **options)

    monkeypatch.setattr(prunebench.bench.lab.backend, "fit", fit)
    return plans


def reachable(root):
    """Every tensor that can be got at from `root`, through whatever attributes and containers there are."""
    seen, tensors, todo = set(), [], [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type) or type(thing).__name__ in ("module", "function"):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            tensors.append(thing)
        elif not isinstance(thing, str | bytes | int | float):
            todo += [part for part in gc.get_referents(thing) if part is not None]
    return tensors


def test_the_test_images_are_not_reachable(tmp_path):
    test = STORE.testing("digits", 40)
    train, validation = STORE.training("digits", validation=64, train=128)

    def holds(room, split):
        """Whether the first image of `split` lies in the memory of any tensor, be it outside of what that one shows."""
        first = split.images[0].flatten()
        memories = [torch.tensor([], dtype=t.dtype).set_(t.untyped_storage()) for t in reachable(room) if t.dim() == 4]
        pixels = [memory.view(-1, 64) for memory in memories if memory.dtype == torch.uint8]
        return any(bool((images == first).all(1).any()) for images in pixels)

    room = lab(tmp_path, RULES)
    assert holds(room, train) and holds(room, validation)  # so what is there would be found
    assert not holds(room, test)
    assert not any("store" in name.lower() or "test" in name.lower() for name in dir(room))
    room.leak = [{"deep": Split(test.images, test.labels)}]  # the twins
    assert holds(room, test)
    both = torch.cat([test.images, train.images])
    room.leak = both[40:]
    del both
    assert holds(room, test)


def test_train_and_validation_are_the_protocols(tmp_path):
    room = lab(tmp_path, RULES)
    train, validation = STORE.training("digits", validation=64, train=128)
    assert (room.train.sha256, room.validation.sha256) == (train.sha256, validation.sha256)
    assert room.train_sha256 == train.sha256


def test_the_budget_is_the_protocols_units(tmp_path):
    room = lab(tmp_path, RULES)
    assert room.epochs == 6 and room.meter.granted == 2 * 3 * 128 * PASSES["pgd"]
    assert lab(tmp_path, changed(RULES, units=0.5)).meter.granted == 3 * 128 * PASSES["pgd"] // 2
    ragged = lab(tmp_path, changed(RULES, train=150))  # 22 images are left over in every epoch
    assert ragged.meter.granted == 2 * 3 * 128 * PASSES["pgd"]


@pytest.mark.parametrize("objective", PASSES)
def test_prices(objective, tmp_path):
    room = lab(tmp_path, changed(RULES, units=9.0))
    room.fit("a", room.initial(), epochs=1, objective=objective)
    room.fit("b", room.initial(), epochs=5, first=2, stop=3, objective=objective)
    assert [(stage.name, stage.passes) for stage in room.meter.stages] == [
        ("a", 128 * PASSES[objective]),
        ("b", 128 * PASSES[objective]),
    ]
    assert room.meter.spent == 2 * 128 * PASSES[objective]


def test_the_whole_budget_can_be_spent_and_no_pass_more(tmp_path, monkeypatch):
    room = lab(tmp_path, RULES)
    plans = counting(monkeypatch)
    room.fit("most", room.initial(), epochs=5)
    with pytest.raises(BudgetExceeded, match=r"'too much' costs 3072 sample passes, but only 1536 of 9216 remain"):
        room.fit("too much", room.initial(), epochs=2)
    assert len(plans) == 1 and [stage.name for stage in room.meter.stages] == ["most"]  # nothing computed or charged
    room.fit("rest", room.initial(), epochs=1)
    assert room.meter.spent == room.meter.granted


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"epochs": 2, "first": 2}, {"epochs": 3, "first": 2, "stop": 1}, {"epochs": 2, "stop": 3}],
)
def test_a_stage_that_trains_nothing_is_refused(options, tmp_path, monkeypatch):
    room, plans = lab(tmp_path, RULES), counting(monkeypatch)
    with pytest.raises(PrunebenchError, match="Stage 'idle' would train from epoch"):
        room.fit("idle", room.initial(), **options)
    assert not plans and not room.meter.stages


def test_a_stage_two_pruners_share_is_computed_once_and_charged_to_each(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    rooms = [
        Lab(Job(pruner=p, sparsity=s, seed=0), RULES, STORE, Computed(tmp_path))
        for p, s in (("one", 0.5), ("two", 0.9))
    ]
    results = [room.fit(name, room.initial(), epochs=2) for room, name in zip(rooms, "ab", strict=True)]
    assert len(plans) == 1
    for room in rooms:
        assert room.meter.spent == 2 * 128 * PASSES["pgd"]
    assert rooms[0].meter.stages[0].seconds == rooms[1].meter.stages[0].seconds == results[0].seconds > 0
    for name, tensor in results[0].weights.items():
        assert torch.equal(tensor, results[1].weights[name])
        assert torch.equal(results[0].last[name], results[1].last[name])
    assert results[0].curve == results[1].curve


def test_a_charged_stage_keeps_the_validated_epochs_of_its_curve(tmp_path):
    """Of three epochs every second is validated, and the last; from the store they are the same."""
    rules = changed(RULES, validate_every=2)
    rooms = [Lab(Job(pruner="one", sparsity=0.5, seed=0), rules, STORE, Computed(tmp_path)) for _ in range(2)]
    results = [room.fit("train", room.initial(), epochs=3) for room in rooms]
    for room, result in zip(rooms, results, strict=True):
        (stage,) = room.meter.stages
        told = [(row["epoch"], row["clean"], row["robust"]) for row in result.curve if "robust" in row]
        kept = [(point.epoch, point.clean, point.robust) for point in stage.curve]
        assert [epoch for epoch, *_ in kept] == [2, 3]
        assert [value for row in kept for value in row] == pytest.approx(
            [value for row in told for value in row], abs=1e-6
        )


def test_any_other_stage_is_computed(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    rules = changed(RULES, units=99.0)
    room = lab(tmp_path, rules)
    start = room.initial()
    shapes = dict(room.shapes)
    masks = [draw(shapes, dict.fromkeys(shapes, 100), torch.Generator().manual_seed(k)) for k in (0, 1)]
    bent = {name: tensor.clone() for name, tensor in start.items()}
    bent["1.9.bias"][0] += 1e-6
    asked = [
        dict(start=start, epochs=1),
        dict(start=start, epochs=2),
        dict(start=start, epochs=2, stop=1),
        dict(start=start, epochs=2, first=1),
        dict(start=start, epochs=1, lr=0.05),
        dict(start=bent, epochs=1),
        dict(start=start, epochs=1, objective="trades"),
        dict(start=start, epochs=1, masks=masks[0]),
        dict(start=start, epochs=1, masks=masks[1]),
    ]
    for options in asked:
        room.fit("stage", **options)
    assert len(plans) == len(asked)
    room.fit("stage", start, epochs=1, lr=rules.training.lr, objective="pgd")  # the protocol's own, in other words
    assert len(plans) == len(asked)
    other_seed = Lab(Job(pruner="any", sparsity=0.9, seed=1), rules, STORE, Computed(tmp_path / "stages"))
    other_seed.fit("stage", start, epochs=1)
    other_data = lab(tmp_path, changed(rules, train=64))
    other_data.fit("stage", start, epochs=1)
    assert len(plans) == len(asked) + 2


def test_a_spoilt_stage_is_computed_again(tmp_path, monkeypatch):
    plans = counting(monkeypatch)
    first = lab(tmp_path, RULES).fit("a", lab(tmp_path, RULES).initial(), epochs=1)
    (done,) = tmp_path.rglob("done.safetensors")
    done.write_bytes(done.read_bytes()[:-1])
    again = lab(tmp_path, RULES).fit("a", lab(tmp_path, RULES).initial(), epochs=1)
    assert len(plans) == 2 and torch.equal(first.weights["1.0.weight"], again.weights["1.0.weight"])
    assert not list(tmp_path.rglob("partial.safetensors"))


@pytest.mark.parametrize("told_by", ["machine.training_code", "executor.identity"])
def test_other_code_and_other_kernels_are_another_stage(told_by, tmp_path, monkeypatch):
    """The attack of a training runs on the kernels, and other ones may round otherwise."""
    plans = counting(monkeypatch)
    for code in ("one", "one", "none"):
        monkeypatch.setattr(f"prunebench.bench.{told_by}", lambda code=code: code)
        lab(tmp_path, RULES).fit("a", lab(tmp_path, RULES).initial(), epochs=1)
    assert len(plans) == 2


def test_options_that_break_the_rules_are_refused(tmp_path):
    room = lab(tmp_path, RULES)
    for options in ({"lr": 0.0}, {"objective": "standard"}):
        with pytest.raises(ValueError, match="validation error"):
            room.fit("a", room.initial(), epochs=1, **options)
    assert room.meter.spent == 0


def test_streams_depend_on_seed_and_name_alone(tmp_path):
    def draws(seed, name, before=0):
        room = Lab(Job(pruner="any", sparsity=0.5, seed=seed), RULES, STORE, Computed(tmp_path))
        for _ in range(before):
            torch.rand(3, generator=room.generator("other"))
        return torch.rand(4, generator=room.generator(name))

    assert torch.equal(draws(0, "mask"), draws(0, "mask", before=2))
    assert not torch.equal(draws(0, "mask"), draws(0, "shuffle"))
    assert not torch.equal(draws(0, "mask"), draws(1, "mask"))
    stream = torch.Generator().manual_seed(derive(0, "pruner", "mask"))
    assert torch.equal(draws(0, "mask"), torch.rand(4, generator=stream))


def test_all_pruners_start_from_the_same_weights_of_the_seed(tmp_path):
    def start(pruner, sparsity, seed):
        return Lab(Job(pruner=pruner, sparsity=sparsity, seed=seed), RULES, STORE, Computed(tmp_path)).initial()[
            "1.0.weight"
        ]

    assert torch.equal(start("imp", 0.9, 0), start("dense", 0.0, 0))
    assert not torch.equal(start("imp", 0.9, 0), start("imp", 0.9, 1))


def test_a_net_is_fresh_or_holds_what_it_is_given(tmp_path):
    room = lab(tmp_path, RULES)
    state = {name: torch.ones_like(tensor) for name, tensor in room.initial().items()}
    assert all(bool((tensor == 1).all()) for tensor in room.model(state).state_dict().values())
    with pytest.raises(RuntimeError, match="Missing key"):
        room.model({name: tensor for name, tensor in state.items() if name != "1.9.bias"})
    room.model().state_dict()["1.0.weight"].zero_()
    assert room.initial()["1.0.weight"].any()


def test_the_global_random_state_is_neither_read_nor_moved(tmp_path):
    def work(folder):
        room = lab(tmp_path / folder, RULES)
        return room.fit("a", room.initial(), epochs=1).weights["1.0.weight"]

    torch.manual_seed(1)
    first = work("a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(work("b"), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_start_and_masks_are_left_as_they_were(tmp_path):
    room = lab(tmp_path, RULES)
    start = room.initial()
    copies = {name: tensor.clone() for name, tensor in start.items()}
    masks = draw(room.shapes, dict.fromkeys(room.shapes, 100), torch.Generator())
    room.fit("a", start, epochs=1, masks=masks)
    assert all(torch.equal(start[name], copies[name]) for name in start)
    assert all(int(mask.sum()) == 100 for mask in masks.values())


def test_a_killed_stage_leaves_its_partial_file_for_the_next(tmp_path):
    class Cut(BaseException):
        pass

    def report(what, done, of):
        told.append((what, done, of))
        if len(told) == 2:
            raise Cut

    told = []
    with pytest.raises(Cut):
        lab(tmp_path, RULES, report=report).fit("a", lab(tmp_path, RULES).initial(), epochs=3)
    assert told == [("a: epoch 1/3", 1, 3), ("a: epoch 2/3", 2, 3)]
    assert len(list(tmp_path.rglob("partial.safetensors"))) == 1
    resumed = lab(tmp_path, RULES, report=report).fit("a", lab(tmp_path, RULES).initial(), epochs=3)
    assert told[2:] == [("a: epoch 3/3", 3, 3)]
    whole = lab(tmp_path / "whole", RULES).fit("a", lab(tmp_path, RULES).initial(), epochs=3)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert list((tmp_path / "stages").rglob("done.safetensors")) and not list(tmp_path.rglob("partial.safetensors"))


def test_scores_come_in_the_given_order_fresh_or_from_the_store(tmp_path, monkeypatch):
    """A file of tensors is read in any order, and a shuffle of masks draws layer after layer."""
    room = lab(tmp_path, changed(train=64))
    start = room.initial()
    keeps = dict.fromkeys(reversed(list(room.shapes)), 10)
    scores = {name: start[name] for name in keeps}
    remember = prunebench.bench.lab.backend.StageStore.remember
    for reverse in (False, True):

        def sorted_by_name(self, key, compute, reverse=reverse):
            tensors, about = remember(self, key, compute)
            return dict(sorted(tensors.items(), reverse=reverse)), about

        monkeypatch.setattr(prunebench.bench.lab.backend.StageStore, "remember", sorted_by_name)
        found, _ = room.fit_scores("search", start, scores, keeps, epochs=1)
        assert list(found) == list(scores)
