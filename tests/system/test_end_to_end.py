"""One command from nothing to a ranked board on disk, and numbers on it that follow from the raw outcomes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from prunebench.bench.checkpoint import open_net
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.protocol import Threat
from prunebench.bench.record import Record, load_all
from tests.support.nets import RANKED, changed, toml

RULES = changed(threat=Threat(norm="Linf", eps="0.1"), train=128, test=16, shard=16, seeds=(0, 1))


def prunebench(*arguments):
    """The command in a process of its own: exit code, standard output, standard error."""
    done = subprocess.run([sys.executable, "-m", "prunebench", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_from_a_protocol_to_a_checked_board(tmp_path):
    (tmp_path / "tiny.toml").write_text(toml(RULES))
    pruners = [part for name in ("dense", "magnitude") for part in ("--pruner", name)]
    run = ["run", tmp_path / "tiny.toml", *pruners, "--jobs", 2, "--out", tmp_path / "out", "--device", "cpu"]
    the_run_ends_in_a_ranked_board(tmp_path, *prunebench(*run))
    the_second_run_keeps_everything(tmp_path, run)
    the_check_fails_after_a_count_was_changed(tmp_path / "out" / "records")


def the_run_ends_in_a_ranked_board(folder, code, out, err):
    assert code == 0, err
    assert "4 jobs of tiny, 2 side by side" in err and "Traceback" not in err
    records = list(load_all(folder / "out" / "records").values())
    assert len(records) == 4 and not any(record.official for record in records)
    assert all(isinstance(record, Record) for record in records), "a net was refused"
    assert "dense" in out and "magnitude" in out and "Written: " in out
    assert "Origin of all rows: trained here." in " ".join(out.split())

    counted = {}  # (pruner, sparsity) -> robust and clean rates of its seeds, from the raw outcomes
    for record in records:
        path = folder / "out" / "records" / "tiny" / f"{record.job.name}.json"
        with np.load(outcomes_path(path)) as raw:
            assert len(raw["labels"]) == 16
            clean = raw["labels"] == raw["predicted"]
            standing = clean.copy()
            for attack in RANKED:
                assert not (raw[f"survived/{attack}"] & ~standing).any()
                standing &= raw[f"survived/{attack}"]
        counted.setdefault((record.job.label, record.job.sparsity), []).append((standing.mean(), clean.mean()))
        net = next((folder / "out" / "jobs").glob(f"{record.job.name}-*")) / "net.safetensors"
        assert open_net(net).id == record.net
        assert record.net.nonzero == (38160 if record.job.pruner == "dense" else 3816)
        assert record.cost.train_seconds > 0
    assert {key: len(rates) for key, rates in counted.items()} == {("dense", 0.0): 2, ("magnitude", 0.9): 2}

    assert any(robust for rates in counted.values() for robust, _ in rates)  # not all is nought
    board = folder / "out" / "board.csv"
    with board.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        rates = counted[(row["pruner"], round(float(row["sparsity"]), 3))]
        robust, clean = np.mean(rates, axis=0)
        assert float(row["robust"]) == pytest.approx(robust, abs=1e-6)
        assert float(row["clean"]) == pytest.approx(clean, abs=1e-6)
        assert row["place"] == {"dense": "", "magnitude": "1"}[row["pruner"]] and row["seeds"] == "0;1"
        assert row["origin"] == "trained here"


def the_second_run_keeps_everything(folder, run):
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "jobs").rglob("*.json")}
    code, _, err = prunebench(*run)
    assert code == 0 and err.count("kept: done before") == 4
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "jobs").rglob("*.json")} == before


def the_check_fails_after_a_count_was_changed(records):
    code, out, err = prunebench("rank", records, "--check")
    assert code == 0 and "Up to date" in out, err
    path = next(records.rglob("magnitude*.json"))
    whole = path.read_bytes()
    for count in ("clean", "robust"):
        values = json.loads(whole)
        values["score"][count] += 1
        path.write_text(json.dumps(values, indent=1))
        code, _, err = prunebench("rank", records, "--check")
        assert code == 1 and path.name in err and "Traceback" not in err
    path.write_bytes(whole)
    assert prunebench("rank", records, "--check")[0] == 0
