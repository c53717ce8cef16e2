"""Rounds follow the budget, and a budget or a sparsity that a pruner cannot use is refused before any training."""

from __future__ import annotations

import re

import pytest
import torch

import prunebench.bench.lab.lab
from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab import meter
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.protocol import PROTOCOLS
from prunebench.pruners.at_init import SNIP, GraSP, SynFlow
from prunebench.pruners.awt import AWT
from prunebench.pruners.baselines import Magnitude
from prunebench.pruners.hydra import HYDRA
from prunebench.pruners.imp import IMP
from prunebench.pruners.iwi import IWI, IWIDense
from tests.pruners.test_pruners import RULES
from tests.support.nets import changed, lab

# Budget and steps per epoch, then rounds and epochs per round of IMP's defaults, on paper: half of the budget less the
# rewind epoch, divided by the rounds and rounded down, in rounds of at least 68 steps.
BUDGETS = {
    "digits": (80, 17, (4, 9)),  # 1,097 images in batches of 64; 39 / 4 = 9.75 epochs, 153 steps
    "digits, IWI's ticket": (40, 17, (4, 4)),  # half of it: 19 / 4 = 4.75 epochs, 68 steps
    "MNIST": (20, 429, (4, 2)),  # 55,000 images in batches of 128; 9 / 4 = 2.25 epochs, 858 steps
    "MNIST, IWI's ticket": (10, 429, (4, 1)),  # 4 / 4 epochs, 429 steps
    "CIFAR-10": (60, 191, (4, 7)),  # 49,000 images in batches of 256; 29 / 4 = 7.25 epochs
    "MNIST-4k": (16, 32, (2, 3)),  # 4,096 images: 7 / 4 and 7 / 3 epochs are 32 and 64 steps, 7 / 2 are 96
    "MNIST-4k, IWI's ticket": (8, 32, (1, 3)),  # 3 / 2 epochs are 32 steps, 3 are 96
    "a few steps": (12, 2, (1, 5)),  # no number of rounds has 68 steps: one round of all there is
    "an epoch": (1, 2, (1, 1)),
}


def check_rounds(divided):
    for budget, steps, expected in BUDGETS.values():
        assert divided(budget, steps) == expected


def test_rounds_follow_the_budget():
    check_rounds(IMP().divided)
    assert IMP(rounds=2).divided(80, 17) == (2, 19)  # never more than asked for
    assert IMP(least=1).divided(12, 2) == (4, 1)


@pytest.mark.parametrize(
    "twin",
    [
        lambda budget, steps: (4, max(1, int((0.5 * budget - 1) / 4))),  # four, whatever the budget
        IMP(least=64).divided,  # 64 steps on MNIST-4k would do
        IMP(least=69).divided,  # the ticket of IWI on digits would change
        IMP(rewind=0).divided,
    ],
)
def test_rounds_twin(twin):
    with pytest.raises(AssertionError):
        check_rounds(twin)


class Sized(Lab):
    """A lab with so many training images that trains nothing."""

    images = 1097

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        empty = torch.zeros(self.images, 1, 1, 1, dtype=torch.uint8)
        self.train = Split(empty, torch.zeros(self.images, dtype=torch.int64))
        self.asked = []

    def fit(self, stage, start, *, epochs, masks=None, first=0, stop=None, **options):
        """Note how many epochs each stage has, and change no weight."""
        self.asked.append((stage, (epochs if stop is None else stop) - first))
        return Trained(start, start, [], [])


def test_the_digits_have_the_stages_that_their_records_show(tmp_path):
    room = lab(tmp_path, PROTOCOLS["digits-linf"], sparsity=0.95, kind=Sized)
    assert (room.epochs, room.steps) == (80, 17)
    IMP()(room.job, room)
    searches = [(f"search {cut}", 9) for cut in (1, 2, 3, 4)]
    assert room.asked == [("to the rewind point", 1), *searches, ("train the ticket", 43)]


def test_steps_are_whole_batches(tmp_path):
    assert lab(tmp_path, RULES).steps == 2
    assert lab(tmp_path, changed(RULES, batch=60)).steps == 2
    assert lab(tmp_path, changed(RULES, batch=500)).steps == 1  # a batch is never larger than the images


# pruner -> epochs in the budget, the stage that has none, and the options to change
SHORT = {
    Magnitude(): (1, "fine-tune", "lower dense"),
    HYDRA(): (2, "fine-tune", "lower dense or search"),
    AWT(batch=8): (1, "train", "lower search or batches"),
    IMP(): (2, "train the ticket", "lower rewind or search"),
    IMP(rewind=3): (4, "train the ticket", "lower rewind or search"),
    IWI(): (1, "ticket", "share and large"),
    IWI(large=0.45): (3, "fine-tune", "share and large"),
    IWI(tune=0.4): (4, "train the ticket", "lower rewind or search"),  # of the ticket, which has two epochs
    IWIDense(): (1, "ticket", "another value of share"),
    SNIP(): (1, "train", "lower batches"),
    GraSP(): (1, "train", "lower batches"),
    SynFlow(): (1, "train", "lower iterations"),
}


def check_short(pruner, tmp_path):
    epochs, stage, way_out = SHORT[pruner]
    rules = changed(RULES, units=1.0, epochs=epochs)
    room = lab(tmp_path, rules, resolve=lambda name: IMP())
    said = (
        rf"Stage '{stage}' would have 0 of the \d+ epochs in the budget \(of 2 steps each\), but .*{re.escape(way_out)}"
    )
    with pytest.raises(PrunebenchError, match=said):
        pruner(room.job, room)
    assert room.meter.spent == 0 and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("pruner", SHORT, ids=repr)
def test_a_budget_too_small_is_refused_before_any_training(pruner, tmp_path):
    check_short(pruner, tmp_path)


@pytest.mark.parametrize("pruner", SHORT, ids=repr)
def test_short_twin(pruner, tmp_path, monkeypatch):
    for module in (prunebench.bench.lab.lab, meter):
        monkeypatch.setattr(module, "refuse_short", lambda stages, **options: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_short(pruner, tmp_path)


def test_a_global_cut_that_empties_a_layer_is_refused_by_layer_and_sparsity(tmp_path, monkeypatch):
    """The first layer's weights are made the smallest, so that a global cut leaves none of them."""
    real = Lab.fit

    def fit(self, stage, start, **options):
        trained = real(self, stage, start, **options)
        trained.weights["1.0.weight"].mul_(1e-6)
        return trained

    monkeypatch.setattr(Lab, "fit", fit)
    for pruner, stage in ((Magnitude(), "fine-tune"), (IMP(), "train the ticket")):
        room = lab(tmp_path, RULES, sparsity=0.99)
        said = rf"Stage '{stage}' would .* sparsity 0.990016, its mask leaves no weight in 1\.0\.weight.*; ask for"
        with pytest.raises(PrunebenchError, match=said):
            pruner(room.job, room)
