"""Options are compared on validation images: a table on paper, no test image, no board seed, nothing done twice."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import tools.choose
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sole_user
from prunebench.bench.protocol import load
from tests.support.nets import SMALL
from tools.choose import Row, best_options, difference, keep, page, read, table


def row(pruner="imp", seed=100, robust=50, clean=80, sparsity=0.9, source="a" * 12, failed=""):
    return Row("p", "b" * 12, sparsity, pruner, seed, source, 100, clean, robust, failed)


def test_the_table_on_paper():
    """imp: 50, 54 and 52; awt: 40, 46 and 40, so -10, -8 and -12: mean -10, sd 2, t(2) = 4.303, 2 / sqrt(3) = 1.155."""
    rows = [row(seed=100), row(seed=101, robust=54, clean=89), row(seed=102, robust=52)]
    rows += [row("awt", 100, 40), row("awt", 101, 46), row("awt", 102, 40)]
    rows += [row("random", 103, 10), row("grasp", 100, failed="no path")]
    assert table(rows).splitlines() == [
        "| pruner | source | robust % | by seed | clean % | to the first |",
        "|---|---|---:|---|---:|---:|",
        "| `imp` | aaaaaaa | 52.0 (2.0) | 100: 50.0, 101: 54.0, 102: 52.0 | 83.0 |  |",
        "| `awt` | aaaaaaa | 42.0 (3.5) | 100: 40.0, 101: 46.0, 102: 40.0 | 80.0 | -10.0 [-15.0, -5.0] |",
        "| `random` | aaaaaaa | 10.0 | 103: 10.0 | 80.0 | no common seed |",
        "",
        "- `grasp`, aaaaaaa, seed 100: no path",
    ]
    assert difference({100: row()}, {100: row(robust=45), 7: row(robust=99)}) == "-5.0"


def test_the_best_options_of_a_method_on_paper():
    """imp:rounds=2 is 8, 11 and 14 above imp: mean 11, sd 3, t(2) = 4.303, 3 / sqrt(3) = 1.732."""
    rows = [row(seed=seed, robust=robust) for seed, robust in ((100, 50), (101, 54), (102, 52))]
    rows += [row("imp:rounds=2", seed, robust) for seed, robust in ((100, 58), (101, 65), (102, 66))]
    rows += [row("imp:shuffle=true", 100, 99), row("imp:rounds=3", 100, 99, failed="no epoch"), row("awt")]
    rows += [row("hydra", 100, 70), row("hydra:layers=erk", 100, 60), row("snip:batches=1"), row("snip:batches=2")]
    assert best_options(rows).splitlines()[2:] == [
        "| `hydra` | 2 | `hydra` | 70.0 |  |",
        "| `imp` | 2 | `imp:rounds=2` | 63.0 | +11.0 [+3.5, +18.5] |",
    ]
    assert best_options([row("awt"), row("imp")]) == ""
    lucky = [*rows, row("imp:rounds=4", 100, 90), row("imp", 100, 99, source="b" * 12)]  # one seed each
    assert "`imp:rounds=2` | 63.0 | +11.0" in best_options(lucky) and "| `imp` | 3 |" in best_options(lucky)
    assert best_options(rows) in page(rows)


def test_the_page_has_a_table_for_each_sparsity():
    text = page([row(), row(sparsity=0.98)])
    assert text.index("## p, sparsity 0.9\n") < text.index("## p, sparsity 0.98\n") and text.count("| `imp` |") == 2


def test_the_log_keeps_one_row_for_a_cell(tmp_path):
    for each in (row(), row(seed=101), row(robust=7), row(failed='a, "b"\nc')):
        keep(tmp_path, each)
    assert read(tmp_path / "choices.csv") == [row(failed='a, "b"\nc'), row(seed=101)]
    keep(tmp_path, row(sparsity=0.98))
    keep(tmp_path, row(source="b" * 12))  # new defaults under the old label: the evidence for them stays
    assert len(read(tmp_path / "choices.csv")) == 4
    assert (tmp_path / "choices.md").read_text() == page(read(tmp_path / "choices.csv"))


@pytest.fixture
def call(tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(SMALL)

    def call(*pruners, seeds=("100",)):
        places = "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--log", str(tmp_path / "log")
        words = [str(tmp_path / "small.toml"), "--sparsity", "0.9", "--seed", *seeds, "--pruner", *pruners, *places]
        monkeypatch.setattr(sys, "argv", ["choose", *words])
        tools.choose.main()
        return read(tmp_path / "log" / "choices.csv")

    return call


def test_a_net_is_measured_on_validation_images_alone(call, tmp_path, monkeypatch):
    def refuse(self, *arguments):
        raise AssertionError("test images were opened")

    monkeypatch.setattr(Store, "testing", refuse)
    found = call("random", "imp:rounds=2")  # the rounds do not fit into the one epoch of these rules
    assert [(each.pruner, each.seed, each.images, each.sparsity) for each in found] == [
        ("imp:rounds=2", 100, 10, 0.9),
        ("random", 100, 10, 0.9),
    ]
    assert "Stage" in found[0].failed and not found[1].failed
    rules = load(tmp_path / "small.toml")
    _, validation = Store(tmp_path / "data").training(rules.data, validation=rules.validation, train=rules.train)
    images, labels = as_float(validation.images), validation.labels
    net = open_net(tmp_path / "out" / "small" / "random-s0.9-seed100" / "net.safetensors").module
    noise = torch.Generator().manual_seed(0)
    right = net(images).argmax(1) == labels
    weak = net(pgd(net, images, labels, rules.threat, generator=noise, steps=10, step_size=0.05)).argmax(1) == labels
    assert found[1].clean == int(right.sum()) and found[1].robust <= int((right & weak).sum())


def test_what_is_in_the_log_is_not_measured_again(call, monkeypatch):
    asked, answers = [], iter((5, 6, 7, 8))

    def measured(spec, job, rules, out, store):
        asked.append((spec, job.seed))
        source = tools.choose.source_of(spec)[:12]
        return Row(rules.name, rules.sha256[:12], 0.9, job.label, job.seed, source, 10, 9, next(answers), "")

    monkeypatch.setattr(tools.choose, "measured", measured)
    call("random")
    assert [each.robust for each in call("random", seeds=("100", "101"))] == [5, 6]
    assert asked == [("random", 100), ("random", 101)]
    monkeypatch.setattr(tools.choose, "source_of", lambda spec: "c" * 64)  # another text of the pruner's file
    assert [each.robust for each in call("random")] == [5, 7, 6]


def test_two_processes_do_not_train_the_same_net_at_once(call, tmp_path, monkeypatch):
    """What the holder of a net's folder has measured meanwhile is taken over."""
    folder = tmp_path / "out" / "small" / "random-s0.9-seed100"
    rules, source = load(tmp_path / "small.toml"), tools.choose.source_of("random")[:12]
    theirs = Row(rules.name, rules.sha256[:12], 0.9, "random", 100, source, 10, 9, 5, "")
    monkeypatch.setattr(tools.choose, "measured", lambda *_: pytest.fail("trained beside another process"))
    with ThreadPoolExecutor(1) as pool:
        with sole_user(folder):
            waiting = pool.submit(call, "random")
            with pytest.raises(TimeoutError):
                waiting.result(1.0)
            keep(tmp_path / "log", theirs)
        assert waiting.result(60) == [theirs]


@pytest.mark.parametrize("seed", ["0", "14", "99"])
def test_seeds_of_boards_are_refused(call, seed):
    with pytest.raises(PrunebenchError, match=rf"Seeds \[{seed}\] belong to boards"):
        call("random", seeds=("100", seed))
