"""What stops a stage, and what is only said: no path through a net, NaN, and accuracy near chance."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.collapse import warnings
from prunebench.bench.errors import NoRanking, PrunebenchError
from prunebench.bench.facts import StageCost
from prunebench.bench.lab import backend, checks
from prunebench.bench.lab import lab as lab_file
from prunebench.bench.lab.checks import collapsed, near_chance, refuse_blind, refuse_infinite
from prunebench.bench.lab.train import fit
from prunebench.bench.mask import keep_largest, scaled_scores
from prunebench.pruners.baselines import Magnitude
from tests.support.nets import changed, job, lab

RULES = changed(train=128, units=3.0, validate_every=100, validation=50)


def ones(room):
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in room.shapes.items()}


def half_fed(room):
    """Masks without a path: the first half of the hidden units is fed, and the other half is read."""
    masks = ones(room)
    masks["1.7.weight"][32:] = False
    masks["1.9.weight"][:, :32] = False
    return masks


def without(name):
    def made(room):
        return ones(room) | {name: torch.zeros(room.shapes[name], dtype=torch.bool)}

    return made


# masks -> what is said of them; 1 - kept / 38,160
BLIND = {
    "last layer": (without("1.9.weight"), r"sparsity 0.0167715, its mask leaves no weight in 1\.9\.weight; ask"),
    "first layer": (without("1.0.weight"), r"sparsity 0.00377358, its mask leaves no weight in 1\.0\.weight; ask"),
    "no path": (half_fed, r"sparsity 0.437736, its mask leaves no path of kept weights from an image to a logit; ask"),
}


@pytest.mark.parametrize("masks", BLIND)
def test_masks_under_which_a_net_is_blind_are_refused_before_training(masks, tmp_path):
    make, said = BLIND[masks]
    room = lab(tmp_path, RULES)
    with pytest.raises(PrunebenchError, match=f"Stage 'tune' would train a net that cannot see .*{said}"):
        room.fit("tune", room.initial(), epochs=1, masks=make(room))
    assert room.meter.spent == 0 and not list(tmp_path.rglob("*.safetensors"))


def test_masks_that_leave_one_path_are_not(tmp_path):
    room = lab(tmp_path, RULES)
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in room.shapes.items()}
    masks["1.0.weight"][3, 0, 1, 1] = True
    masks["1.3.weight"][5, 3, 1, 1] = True
    masks["1.7.weight"][7, 5 * 16] = True  # the first of 16 pixels of channel 5
    masks["1.9.weight"][2, 7] = True
    refuse_blind("one path", room.model(), masks, (1, 8, 8))
    masks["1.7.weight"] = masks["1.7.weight"].roll(1, 0)
    with pytest.raises(PrunebenchError, match="no path"):
        refuse_blind("none", room.model(), masks, (1, 8, 8))


def test_a_sparsity_at_which_no_net_can_see_is_refused_before_the_first_training(tmp_path):
    """Four layers in a chain: 4 of 38,160 weights can be a path (1 - 4 / 38,160 = .999895...), 3 cannot."""
    room = lab(tmp_path, RULES, sparsity=0.999896)
    said = "^Sparsity 0.999896 keeps 3 of 38,160 weights, but the .* has 4, so .* a sparsity of at most 0.999895\\.$"
    with pytest.raises(PrunebenchError, match=said):
        room.fit("dense", room.initial(), epochs=1)
    assert room.meter.spent == 0
    assert lab(tmp_path, RULES, sparsity=0.999895).fit("dense", room.initial(), epochs=1).weights


def test_a_sparsity_at_which_no_net_can_see_twin(tmp_path, monkeypatch):
    """Without the check, half of magnitude's budget is spent before its mask is refused."""
    monkeypatch.setattr(lab_file, "refuse_hopeless", lambda *_: None)
    room = lab(tmp_path, RULES, sparsity=0.999896)
    with pytest.raises(PrunebenchError, match="cannot see its images"):
        Magnitude()(room.job, room)
    assert [stage.name for stage in room.meter.stages] == ["dense"]


def test_scores_that_keep_nothing_in_a_layer_are_refused(tmp_path):
    room = lab(tmp_path, RULES)
    scores = scaled_scores({name: room.initial()[name] for name in room.shapes})
    keeps = {name: 0 if name == "1.3.weight" else 10 for name in room.shapes}
    with pytest.raises(PrunebenchError, match=r"Stage 'search' would .* no weight in 1\.3\.weight"):
        room.fit_scores("search", room.initial(), scores, keeps, epochs=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_finite_is_refused_by_stage_and_layer(value, tmp_path, monkeypatch):
    def broken(model, *arguments, **options):
        trained = fit(model, *arguments, **options)
        trained.weights["1.3.weight"][0, 0, 0, 0] = value
        return trained

    monkeypatch.setattr(backend, "fit", broken)
    room = lab(tmp_path, RULES)
    with pytest.raises(PrunebenchError, match=r"Stage 'search 2' ended with NaN or infinite values in 1\.3\.weight;"):
        room.fit("search 2", room.initial(), epochs=1)
    assert room.meter.spent == 0 and not list(tmp_path.rglob("done.safetensors"))


def test_a_search_that_ends_in_nan_is_refused(tmp_path):
    room = lab(tmp_path, RULES)

    def step(state, index):
        return {"value": state["value"] / 0.0}

    with pytest.raises(PrunebenchError, match="Stage 'search' ended with NaN or infinite values in value; lower"):
        room.loop("search", {"value": torch.zeros(2)}, step, steps=2, passes=1, facts=[])


def test_divergence_names_its_stage(tmp_path):
    room = lab(tmp_path, RULES)
    with pytest.raises(PrunebenchError, match="Stage 'dense': Training diverged: the loss of epoch 1 is nan"):
        room.fit("dense", room.initial() | {"1.9.bias": torch.full((10,), float("nan"))}, epochs=1)


def test_finite_tensors_pass_whatever_their_type():
    refuse_infinite("a", {"count": torch.tensor(3), "mask": torch.ones(2, dtype=torch.bool), "value": torch.zeros(1)})


def test_nan_scores_are_named_by_layer():
    scores = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}
    with pytest.raises(NoRanking, match="Scores of b are NaN, so the largest are not defined; lower"):
        keep_largest(scores, 1)


def test_chance_on_paper():
    assert near_chance(torch.arange(10).repeat(3)) == pytest.approx(0.145)  # .1 + .1 * .9 / 2
    assert near_chance(torch.tensor([0, 1])) == pytest.approx(0.625)
    assert near_chance(torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(0.88)


def check_collapsed(rule):
    labels = torch.arange(10).repeat(20)
    for clean, near in ((0.1, True), (0.145, True), (0.15, False), (0.9, False)):
        rows = [{"epoch": 1, "clean": 0.9}, {"epoch": 2, "clean": clean}]
        assert rule(rows, labels) == (clean if near else None)
    assert rule([{"epoch": 1, "loss": 2.0}], labels) is None  # not validated
    assert rule([], labels) is None


def test_the_last_validated_accuracy_decides():
    check_collapsed(collapsed)


@pytest.mark.parametrize("twin", ["exactly one class", "the first row", "twice the share"])
def test_collapsed_twin(twin, monkeypatch):
    if twin == "the first row":
        with pytest.raises(AssertionError):
            check_collapsed(lambda rows, labels: collapsed(rows[:1], labels))
        return
    factor = 1.0 if twin == "exactly one class" else 2.0
    monkeypatch.setattr(checks, "near_chance", lambda labels: factor * 0.1)
    with pytest.raises(AssertionError):
        check_collapsed(collapsed)


def dead(room):
    """The net that answers class 0 to everything, and stays so for some steps."""
    return room.initial() | {"1.9.bias": torch.tensor([50.0] + [0.0] * 9)}


def test_a_collapsed_stage_is_marked_said_and_changes_no_weight(tmp_path, caplog, monkeypatch):
    room = lab(tmp_path, RULES)
    share = float((room.validation.labels == 0).float().mean())
    with caplog.at_level(logging.WARNING, "prunebench.lab"):
        marked = room.fit("search 1", dead(room), epochs=1, lr=1e-6)
    assert marked.collapsed == room.meter.stages[0].collapsed == pytest.approx(share)
    said = f"any-s0.9-seed0: Stage 'search 1' ended near chance, with {100 * share:.1f} % of the clean validation"
    assert [said in record.getMessage() for record in caplog.records] == [True]
    assert room.fit("again, from the store", dead(room), epochs=1, lr=1e-6).collapsed == marked.collapsed

    monkeypatch.setattr(backend, "collapsed", lambda curve, labels: None)  # as if nobody looked
    other = lab(tmp_path / "other", RULES)
    unmarked = other.fit("search 1", dead(other), epochs=1, lr=1e-6)
    assert unmarked.collapsed is None and other.meter.stages[0].collapsed is None
    assert all(torch.equal(marked.last[name], unmarked.last[name]) for name in marked.last)


def test_a_stage_that_stops_before_the_end_of_its_schedule_is_not(tmp_path):
    room = lab(tmp_path, RULES)
    assert room.fit("to the rewind point", dead(room), epochs=2, stop=1, lr=1e-6).collapsed is None


def test_a_ticket_hands_its_mark_on(tmp_path):
    class Inside:
        def __call__(self, job, lab):
            return lab.fit("inside", dead(lab), epochs=1, lr=1e-6).weights

    room = lab(tmp_path, RULES, resolve=lambda name: Inside())
    room.run("inside", name="ticket", sparsity=0.5, epochs=1)
    (stage,) = room.meter.stages
    assert stage.name == "ticket: inside" and stage.collapsed is not None


def test_a_net_file_says_so_and_is_the_same_file_as_ever_where_there_is_nothing_to_say(tmp_path):
    plain = StageCost(name="a", passes=1, seconds=None)
    assert json.loads(plain.model_dump_json()) == {"name": "a", "passes": 1, "seconds": None}
    stages = (plain, StageCost(name="search 2", passes=1, seconds=None, collapsed=0.1))
    room = lab(tmp_path, RULES)
    header = Header(
        arch=RULES.model,
        classes=10,
        shape=(1, 8, 8),
        protocol=RULES,
        job=job(),
        source=None,
        train_sha256=None,
        stages=stages,
    )
    seal(tmp_path / "net", room.initial(), header, passes_granted=2)
    opened = open_net(tmp_path / "net")
    assert opened.header.stages == stages
    (said,) = warnings(opened)
    assert said == (
        "Stage 'search 2' ended near chance, with 10.0 % of the clean validation images correct; give it more epochs, "
        "with a larger budget or fewer stages, or ask for a lower sparsity."
    )
