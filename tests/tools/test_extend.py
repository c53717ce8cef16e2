"""Published records get their best-known number, and keep everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunebench.bench.attacks.suite import Listed, Pursuit
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beside import net_path, publish
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import complete, load_arrays, outcomes_path
from prunebench.bench.record import load_record
from prunebench.leaderboard import provenance
from tests.support.nets import quick_attacks, suite_with
from tools import extend


@pytest.fixture
def records(tmp_path, nets, scored, monkeypatch):
    """A board's folder with two records, of which the ledger says that they were trained here."""
    best = Pursuit("test-1", {"pgd-again": Listed(quick_attacks()["square"], 31)}, {}, 1.0)
    monkeypatch.setitem(SUITES, "standard", replace(suite_with(quick_attacks()), best=best))
    folder = tmp_path / "board" / "records" / "tiny"
    for name in ("dense", "imp"):
        record = load_record(scored[name] / RECORD)
        publish(scored[name] / RECORD, nets[name], folder / f"{record.job.name}.json")
    home, results = tmp_path / "board", extend.load_all(folder)
    provenance.write_json(home / provenance.LEDGER, provenance.Ledger().model_dump(mode="json"))
    provenance.note(home, results, map(provenance.trained, results.values()))
    return folder


def test_everything_but_the_number_stays(records, tmp_path):
    made = {}
    for path in sorted(records.glob("*.json")):
        old, before = load_record(path), dict(np.load(outcomes_path(path)))
        record = extend.extended(path, out := tmp_path / "out" / path.stem, Path("data"), ["best"])
        made[path] = out
        best = record.beyond.best
        assert best is not None and best.suite == "test-1" and best.robust <= record.score.robust
        assert (record.score, record.net, record.job, record.rules) == (old.score, old.net, old.job, old.rules)
        assert record.cost.score_passes == old.cost.score_passes + best.passes
        after = load_arrays(outcomes_path(out / RECORD), record.outcomes, "outcomes")
        assert after.keys() - before.keys() == set(best.kinds(record.score.n))
        assert all(np.array_equal(after[name], bits) for name, bits in before.items())
    extend.attest(records, made)
    for path in made:
        complete(path, record := load_record(path))
        assert record.beyond.best is not None and net_path(path).exists()
    found = provenance.origins({path: load_record(path) for path in made}, records, records.parents[1])
    assert set(found.values()) == {provenance.TRAINED}


def test_a_finished_record_is_not_made_again(records, tmp_path, monkeypatch):
    path, out = next(records.glob("dense*.json")), tmp_path / "out"
    assert not extend.done(path, out, ["best"])
    extend.extended(path, out, Path("data"), ["best"])
    assert extend.done(path, out, ["best"])
    (outcomes_path(out / RECORD)).write_bytes(b"damaged")
    assert not extend.done(path, out, ["best"])


def test_a_net_that_is_not_the_records_is_refused(records, tmp_path):
    first, second = sorted(records.glob("*.json"))
    net_path(first).unlink()
    net_path(first).write_bytes(net_path(second).read_bytes())
    with pytest.raises(PrunebenchError, match="predicts otherwise than its outcomes say"):
        extend.extended(first, tmp_path / "out", Path("data"), ["best"])


def test_other_measurements_join_what_is_there(records, tmp_path):
    """Distances and the planted test's flag come; the best-known number, made before, stays."""
    path = next(records.glob("imp*.json"))
    old = extend.extended(path, first := tmp_path / "first", Path("data"), ["best"])
    publish(first / RECORD, net_path(path), path)
    record = extend.extended(path, out := tmp_path / "out", Path("data"), ["best", "planted", "distances"])
    assert record.beyond.best == old.beyond.best and record.cost.score_passes > old.cost.score_passes
    assert record.beyond.distances is not None and record.beyond.planted is not None
    complete(out / RECORD, record)
    flag = {flag.name: flag.value for flag in record.score.flags}
    assert [name for name in flag if name == "planted"] == ["planted"]
    kept = {flag.name: flag for flag in record.score.flags if flag.name != "planted"}
    assert kept == {flag.name: flag for flag in old.score.flags if flag.name != "planted"}
    assert not extend.missing(record, ["best", "planted", "distances"])
    assert extend.missing(old, ["best", "planted", "distances"]) == ["planted", "distances"]  # the twin
