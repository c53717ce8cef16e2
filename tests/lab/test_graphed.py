"""A training whose steps are replayed is the training itself, to the last bit, also after a resume.

On the CPU a tape of torch's operations stands in for a CUDA graph; `tests/grid/test_gpu.py` has the graph itself.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.optim.sgd import sgd

import prunebench.bench.lab.train
import prunebench.bench.lab.trainer
from prunebench.bench.lab.graphed import LARGEST, WARM, Graphed, pays
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.schemes import Scheme
from prunebench.bench.lab.still import Still
from prunebench.bench.lab.train import fit
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.models import ARCHITECTURES, size
from tests.lab.test_compiled import TRAIN, VALIDATION, masks, net
from tests.support.nets import changed
from tests.support.recorded import Recorded

CPU = torch.device("cpu")
RULES = changed(train=128, epochs=4, validate_every=1)  # two steps an epoch


@pytest.fixture
def graphs(monkeypatch):
    """The tapes of all trainings; attacks query the folded net, of which everything can be recorded.

    Without a graph SGD takes its fused kernel as well, as on a card; torch's other one rounds otherwise.
    """
    made = []

    def tape(device):
        made.append(Recorded(device))
        return made[-1]

    monkeypatch.setattr(prunebench.bench.lab.train, "CardGraph", tape)
    monkeypatch.setattr(prunebench.bench.lab.trainer, "_quick", lambda model, *_: Still(model.eval(), torch.float32))
    monkeypatch.setattr(prunebench.bench.lab.trainer, "sgd", lambda *args, **how: sgd(*args, **how | {"fused": True}))
    return made


def trained(*, graphed, stop=None, partial=None, **changes):
    rules = changed(RULES, **changes)
    plan = TrainingPlan(rules.training, rules.threat, 4, stop=stop)
    return fit(net(), plan, TRAIN, VALIDATION, seed=5, masks=masks(), partial=partial, graphed=graphed)


def same(found, expected):
    for one, other in ((found.weights, expected.weights), (found.last, expected.last)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert found.curve == expected.curve


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "trades"}, {"objective": "fgsm-rs", "lr": 0.001}, {"augment": "crop-flip"}, {"momentum": 0.0}],
    ids=lambda changes: "-".join(map(str, changes.values())) or "pgd",
)
def test_a_replayed_training_is_the_training(graphs, changes):
    """Weights, their average, losses and validation accuracies are the same bits; eight steps, of which five replay."""
    replayed = trained(graphed=True, **changes)
    (tape,) = graphs
    assert tape.warm == WARM and len(tape.tape.calls) > 100
    same(replayed, trained(graphed=False, **changes))
    assert len(graphs) == 1


def test_the_comparison_would_see_numbers_that_stay_as_they_were_recorded(graphs, monkeypatch):
    """The twin: rate and share as numbers of Python, which a graph repeats."""

    def turn(trainer, progress, real=Trainer.turn):
        trainer.rate = trainer.pull = 0.0
        real(trainer, progress)

    monkeypatch.setattr(Trainer, "turn", turn)
    replayed = trained(graphed=True)
    with pytest.raises(AssertionError):
        same(replayed, trained(graphed=False))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_cut_off_and_resumed_it_ends_in_the_same_bits(graphs, stop, tmp_path):
    """After one epoch nothing was recorded, after three there was; the second run records anew."""
    trained(graphed=True, stop=stop, partial=tmp_path / "partial")
    same(trained(graphed=True, partial=tmp_path / "partial"), trained(graphed=False))
    assert len(graphs) == 2


def trainer():
    return Trainer(net(), TrainingPlan(RULES.training, RULES.threat, 4), masks(), CPU)


def batch(images=64, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(images, 1, 8, 8, generator=chance), torch.randint(10, (images,), generator=chance)


def test_steps_are_counted_and_what_does_not_fit_runs_as_it_is(graphs):
    """A smaller batch, or another generator, changes neither the tape nor what it reads, and counts as a step."""
    it, noise = trainer(), torch.Generator().manual_seed(1)
    plain, other = trainer(), torch.Generator().manual_seed(1)
    step = Graphed(it, Recorded())
    sizes = [64, 64, 16, 64, 64, 64, 16, 64]
    for number, images in enumerate(sizes):
        given = batch(images, number)
        generators = (noise, other) if number != 4 else [torch.Generator().manual_seed(9) for _ in "ab"]
        losses = step(*given, number / 10, generators[0]), plain.step(*given, number / 10, generators[1])
        assert torch.equal(*losses)
    # The first three of 64 are warm-up, number 4 has its own generator: numbers 5 and 7 are replayed.
    assert (it.steps, step.replays) == (8, 2) and plain.steps == 8
    assert all(torch.equal(it.live[name], tensor) for name, tensor in plain.live.items())
    assert all(torch.equal(it.momentum[name], tensor) for name, tensor in plain.momentum.items())


def test_a_loss_is_its_callers_own(graphs):
    it, noise = trainer(), torch.Generator().manual_seed(1)
    step = Graphed(it, Recorded())
    losses = [step(*batch(64, number), 0.1, noise) for number in range(WARM + 3)]
    assert len({float(loss) for loss in losses}) == WARM + 3


class Refusing(Recorded):
    """A graph that cannot be begun."""

    def record(self, work, noise):
        """Fail."""
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Breaking(Recorded):
    """A graph that fails at the end of its recording, when Python has done the whole step and the card nothing."""

    def record(self, work, noise):
        """Record, then fail."""
        super().record(work, noise)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize("graph", [Refusing, Breaking])
def test_where_it_cannot_be_recorded_it_is_said_once_and_training_goes_on(graphs, graph, monkeypatch, caplog):
    monkeypatch.setattr(prunebench.bench.lab.train, "CardGraph", graph)
    with caplog.at_level(logging.WARNING, "prunebench.graphed"):
        found = trained(graphed=True)
    said = "without a graph of its steps: RuntimeError (operation not permitted when stream is capturing)."
    assert [record.getMessage() for record in caplog.records] == [f"Training continues {said}"]
    same(found, trained(graphed=False))


class Idle(Scheme):
    """A scheme of a pruner's own."""


@pytest.mark.parametrize(
    ("weights", "scheme", "device", "answer"),
    [
        (LARGEST, Scheme(), "cuda", True),
        (LARGEST + 1, Scheme(), "cuda", False),
        (LARGEST, Idle(), "cuda", False),
        (LARGEST, Scheme(), "cpu", False),
    ],
)
def test_it_pays_on_a_card_for_small_nets_without_a_scheme(weights, scheme, device, answer):
    it = trainer()
    it.model, it.scheme = nn.Linear(weights, 1, bias=False, device="meta"), scheme
    assert pays(it, torch.device(device)) is answer


def test_a_scheme_is_never_left_out_of_a_graph(graphs):
    plan = TrainingPlan(RULES.training, RULES.threat, 4, scheme=Idle())
    with pytest.raises(ValueError, match="a graph of the step would leave out"):
        fit(net(), plan, TRAIN, VALIDATION, seed=5, masks=masks(), graphed=True)
    assert not graphs


def test_the_nets_of_the_boards():
    small = [arch for arch, known in ARCHITECTURES.items() if size(arch, 10, known.shape) <= LARGEST]
    assert small == ["digits-cnn", "mnist-cnn", "resnet-small"]


def test_functions_of_a_step_that_is_replayed_have_no_graphs_of_their_own(graphs, monkeypatch):
    """A graph cannot be recorded while another is replayed."""
    seen = []
    monkeypatch.setattr(Trainer, "capture", lambda it, images, **options: seen.append(options))
    for graphed in (True, False):
        plan = TrainingPlan(RULES.training, RULES.threat, 1)
        fit(net(), plan, TRAIN, VALIDATION, seed=5, compiled=True, graphed=graphed, fill=8)
    assert seen == [{"graphs": False, "fill": 8}, {"graphs": True, "fill": 8}]
