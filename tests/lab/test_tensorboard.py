"""Event files, read back: they hold the curve that the training returned, each step once, wherever it was cut off."""

from __future__ import annotations

import importlib.util
from collections import Counter

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid import task
from prunebench.bench.lab import tensorboard as curves
from prunebench.bench.lab.tensorboard import Curve, Curves
from prunebench.bench.mask import keep_largest
from tests.support.nets import STORE, TINY, changed, job, lab


def read(folder):
    """Tag -> the points (step, value) in the event files of `folder`, in the order in which they were written."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(event.step, float(np.array(event.tensor_proto.float_val)[0])) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def close(points, expected):
    assert [step for step, _ in points] == [step for step, _ in expected]
    assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_the_files_hold_the_curve(tmp_path):
    place = lab(tmp_path, curves=Curves(tmp_path / "tb"))
    start = place.initial()
    masks = keep_largest({name: start[name].abs() for name in place.shapes}, place.keep)
    trained = place.fit("train: the ticket", start, epochs=3, masks=masks)
    found = read(tmp_path / "tb" / "01-train-the-ticket")
    assert found.keys() == {"loss", "lr", "validation/clean", "validation/robust", "sparsity", "images per second"}
    for tag, column in (("loss", "loss"), ("lr", "lr"), ("validation/clean", "clean"), ("validation/robust", "robust")):
        close(found[tag], [(row["epoch"], row[column]) for row in trained.curve if column in row])
    assert len(found["loss"]) == 3 and len(found["validation/robust"]) == 1  # validated every third epoch
    close(found["sparsity"], [(epoch, 1 - place.keep / place.prunable) for epoch in (1, 2, 3)])
    close(found["images per second"], [(epoch, 512 / seconds) for epoch, seconds in enumerate(trained.times, 1)])


class Cut(Exception):
    """The kill."""


def cut_off(tmp_path, epochs=3, after=2):
    def report(what, done, of):
        if done == after:
            raise Cut

    place = lab(tmp_path, curves=Curves(tmp_path / "tb"), report=report)
    with pytest.raises(Cut):
        place.fit("train", place.initial(), epochs=epochs)


def test_no_step_is_there_twice_after_a_kill_and_after_a_finished_stage(tmp_path):
    cut_off(tmp_path)
    assert [step for step, _ in read(tmp_path / "tb" / "01-train")["loss"]] == [1, 2]
    for _ in ("goes on after two epochs", "finds the stage done"):
        place = lab(tmp_path, curves=Curves(tmp_path / "tb"))
        trained = place.fit("train", place.initial(), epochs=3)
        found = read(tmp_path / "tb" / "01-train")
        close(found["loss"], [(row["epoch"], row["loss"]) for row in trained.curve])
        assert [step for step, _ in found["loss"]] == [1, 2, 3]


def test_a_writer_that_keeps_what_was_there_would_be_seen(tmp_path, monkeypatch):
    """The twin: without clearing the folder, steps 1 and 2 stand there twice."""
    cut_off(tmp_path)
    monkeypatch.setattr(curves.shutil, "rmtree", lambda *_, **__: None)
    place = lab(tmp_path, curves=Curves(tmp_path / "tb"))
    place.fit("train", place.initial(), epochs=3)
    steps = Counter(step for step, _ in _raw(tmp_path / "tb" / "01-train"))
    assert steps == {1: 2, 2: 2, 3: 1}


def _raw(folder):
    """The points of the loss in all files together; a reader of the folder would hide some of them."""
    return [point for file in sorted(folder.iterdir()) for point in read(file)["loss"]]


def test_a_row_is_put_down_once(tmp_path):
    curve = Curve(tmp_path, images=10, sparsity=0.0)
    row = {"epoch": 1, "loss": 2.0, "lr": 0.1}
    curve.add(row, 1.0)
    curve.add(row, 1.0)
    curve.close([row], [1.0])
    assert len(read(tmp_path)["loss"]) == 1


def test_every_training_of_a_job_has_its_folder_and_the_net_is_the_same(tmp_path):
    rules = changed(TINY, train=128, epochs=2, units=4.0)
    nets = [
        task.train(
            "imp:rounds=2,least=1",
            job("imp:rounds=2,least=1"),
            rules,
            tmp_path / kind,
            tmp_path / f"{kind}-stages",
            STORE,
            device="cpu",
            tensorboard=kind == "with",
        )
        for kind in ("with", "without")
    ]
    names = ["01-to-the-rewind-point", "02-search-1", "03-search-2", "04-train-the-ticket"]
    assert sorted(path.name for path in (tmp_path / "with" / "tensorboard").iterdir()) == names
    assert not (tmp_path / "without" / "tensorboard").exists()
    assert nets[0].read_bytes() == nets[1].read_bytes()
    sparsities = [read(tmp_path / "with" / "tensorboard" / name)["sparsity"][0][1] for name in names]
    assert sparsities == pytest.approx([0, 0, 1 - round(0.1**0.5 * 38160) / 38160, 0.9], abs=1e-6)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        curves, "find_spec", lambda name: None if name == "tensorboard" else importlib.util.find_spec(name)
    )
    with pytest.raises(PrunebenchError, match=r"pip install '\.\[tensorboard\]'"):
        Curves(tmp_path / "tb")
