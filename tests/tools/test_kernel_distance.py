"""AWT and its controls: the same search under fixed masks ends farther from the dense net; the measure itself."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tools.kernel_distance
from prunebench.bench.data import Split
from prunebench.pruners.awt import AWT
from tests.support.nets import changed, lab
from tools.kernel_distance import KINDS, Row, Watching, compare, plot, read, search, searched, table, write_rows

# The measure, on a linear net: d f_c / d W_cp = x_p, so (K v)_ic = sum_j (x_i . x_j) v_jc whatever W is, and when only
# the weights under the mask M can move, sum_j sum_p M_cp x_ip x_jp v_jc.

CLASSES, PIXELS = 3, 4
NOISE = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (6, 1, 2, 2), generator=NOISE, dtype=torch.uint8)
MASK = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def linear(state):
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES, bias=False))
    net.load_state_dict(state)
    return net


LINEAR = SimpleNamespace(
    model=linear,
    validation=Split(IMAGES, torch.zeros(6, dtype=torch.int64)),
    info=SimpleNamespace(classes=CLASSES),
    attack=lambda net, images, labels, *, name: images,
)


def check_compare(monkeypatch, masks):
    monkeypatch.setattr(tools.kernel_distance, "BATCH", 3)
    monkeypatch.setattr(tools.kernel_distance, "BATCHES", 2)
    dense, student = ({"1.weight": torch.randn(CLASSES, PIXELS, generator=NOISE)} for _ in range(2))
    far_all, far_kept, alignment = compare(LINEAR, dense, student, {"1.weight": masks})

    draws = torch.Generator().manual_seed(0)
    k_t, k_s = [], []
    for part in (IMAGES[:3], IMAGES[3:]):
        x = part.flatten(1).double() / 255
        for _ in range(tools.kernel_distance.VECTORS):
            v = torch.randn(3, CLASSES, generator=draws).double()
            k_t.append(torch.einsum("ip,jp,jc->ic", x, x, v).flatten())
            k_s.append(torch.einsum("cp,ip,jp,jc->ic", MASK.double(), x, x, v).flatten())
    whole, kept = torch.cat(k_t), torch.cat(k_s)
    assert far_all < 1e-10
    assert far_kept == pytest.approx(float((kept - whole).square().sum() / whole.square().sum()), rel=1e-4)
    assert alignment == pytest.approx(float(kept @ whole / kept.norm() / whole.norm()), rel=1e-4)


def test_the_measure_is_the_formula(monkeypatch):
    check_compare(monkeypatch, MASK)


def test_the_measure_twin(monkeypatch):
    """Another mask is another kernel."""
    with pytest.raises(AssertionError):
        check_compare(monkeypatch, ~MASK)


# The search. What counts is the kernel over the weights that are kept: the others do not move in training.

RULES = changed(units=7.0)


def end(tmp_path: Path, kind: str, seed: int, **options) -> float:
    """How far the search under that kind of mask ends from the dense net."""
    room = lab(tmp_path, RULES, sparsity=0.9, kind=Watching)
    room.job = room.job.model_copy(update={"seed": seed})
    dense, student, masks = search(room, AWT(batch=32, batches=4, lr=2e-3, **options), kind)
    return compare(room, dense, student, masks)[1]


def check_controls(tmp_path, seeds, **options):
    """Over `seeds`: .59 against .65 (random) and .70 (magnitude)."""
    ends = {kind: mean(end(tmp_path, kind, seed, **options) for seed in seeds) for kind in KINDS}
    assert ends["awt"] < 0.97 * min(ends["magnitude"], ends["random"]), ends


@pytest.mark.slow
def test_the_moving_mask_ends_nearer_to_the_dense_net_than_fixed_ones(tmp_path):
    check_controls(tmp_path, seeds=(0, 1), search=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"search": 0.01}, {"search": 0.1, "settle": 0.0}])
def test_controls_twin(options, tmp_path):
    """A search of one step, or whose mask never moves, is the fixed magnitude mask's."""
    with pytest.raises(AssertionError):
        check_controls(tmp_path, seeds=(0,), **options)


def test_the_three_searches_have_the_same_steps_price_and_densities(tmp_path):
    seen = []
    for kind in KINDS:
        room = lab(tmp_path, RULES, sparsity=0.9, kind=Watching)
        dense, _, masks = search(room, AWT(search=0.1, batches=1, every=1, lr=0.01), kind)
        seen.append((room.searched, room.meter.spent, {name: int(mask.sum()) for name, mask in masks.items()}))
        moments = searched(room, dense)
        moved = any(not torch.equal(moments[0.0][1][name], masks[name]) for name in masks)
        assert moved == (kind == "awt")
        assert all(torch.equal(state[name] != 0, m[name]) for state, m in moments.values() for name in masks)
    assert seen[0] == seen[1] == seen[2] and seen[0][0] > 10


# The page


def rows() -> list[Row]:
    return [
        Row("p", 0.95, seed, kind, phase, done / 2, done, 0.5 + seed, 2.0 * 4**seed, 0.25, "code")
        for seed in (0, 1)
        for kind in KINDS
        for phase in ("search", "training")
        for done in (1, 2)
    ]


def test_rows_survive_the_file_and_tables_average_over_seeds(tmp_path):
    write_rows(tmp_path, rows())
    assert read(tmp_path / "kernel-distance.csv") == rows() and read(tmp_path / "none.csv") == []
    lines = table(rows(), "training").splitlines()
    assert lines[0] == "| p, 0.95, seeds 0 1 | epoch 1 | epoch 2 |"
    assert lines[2] == "| AWT's moving mask | 4.00 (0.25) | 4.00 (0.25) |"  # the geometric mean of 2 and 8
    assert table(rows(), "search").splitlines()[3].endswith("| 1.000 / 5.000 |")


def test_the_plot_is_the_same_bytes_each_time():
    drawn = plot(rows())
    assert drawn == plot(rows()) and drawn.count(b"<svg") == 1 and b"epochs of training" in drawn
