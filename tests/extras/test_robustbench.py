"""robustbench in an environment of its own: with the stand-in for `autoattack` its `benchmark()` runs and is right."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.extras import provide_autoattack

EPS = 0.1
CLASSES = 10


def stripes(margins: list[float]) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear model with grey images and labels whose distance to the border is `margin / 2` in Linf, each.

    Class k sees the mean of block k of the pixels. The block of an image's label is brighter by `margin` than all
    the others, and w_y - w_k has the L1 norm 2, so eps moves the difference of two logits by at most 2 eps.
    """
    shape = (3, 10, 10)
    size = 300 // CLASSES
    weight = torch.eye(CLASSES).repeat_interleave(size, dim=1) / size
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, CLASSES, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    labels = torch.arange(len(margins)) % CLASSES
    images = torch.full((len(margins), CLASSES, size), 0.4)
    for image, label, margin in zip(images, labels, margins, strict=True):
        image[label] += margin
    return model, images.reshape(-1, *shape), labels


@pytest.mark.filterwarnings("ignore")  # robustbench and the timm it pins are old, and warn of themselves by the dozen
def test_benchmark_finds_the_accuracy_that_the_margins_give(monkeypatch):
    provide_autoattack()
    import robustbench.eval

    margins = [0.3, 0.1, 0.25, -0.1, 0.15, 0.28, 0.05, 0.3]
    model, images, labels = stripes(margins)
    logits = model(images)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).max(dim=1, keepdim=True).values
    torch.testing.assert_close((own - others).flatten(), torch.tensor(margins), msg="premise: the margins are these")
    assert images.min() >= EPS, "premise: [0, 1] does not stand in the attack's way"
    assert images.max() <= 1 - EPS, "premise: [0, 1] does not stand in the attack's way"
    monkeypatch.setattr(robustbench.eval, "load_clean_dataset", lambda *_: (images, labels))

    clean, robust = robustbench.eval.benchmark(model, n_examples=8, dataset="cifar10", threat_model="Linf", eps=EPS)

    assert clean == sum(margin > 0 for margin in margins) / 8 == 7 / 8
    assert robust == sum(margin > 2 * EPS for margin in margins) / 8 == 4 / 8


def test_without_the_stand_in_robustbench_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", "import robustbench"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "No module named 'autoattack'" in done.stderr


def test_its_package_tests_is_there_and_is_not_this_one():
    """Why pytest runs with importmode=importlib: the wheel installs a top-level `tests`."""
    carried = next(file for file in files("robustbench") if file.as_posix() == "tests/__init__.py")
    assert Path(carried.locate()).parent != Path(__file__).resolve().parents[1]
    assert "tests" not in sys.modules or sys.modules["tests"].__file__ != str(carried.locate())
