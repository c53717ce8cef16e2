"""Records of a run come onto a board with their files; what the board has stays."""

from __future__ import annotations

import pytest

from prunebench.bench.beside import net_path, publish
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import complete
from prunebench.bench.record import load_record
from prunebench.leaderboard import provenance
from tools.publish import PARENTS, published


@pytest.fixture
def run(tmp_path, nets, scored):
    """A run of two nets; the ledger says that both were trained there."""
    folder = tmp_path / "run" / "records" / "tiny"
    for name in ("dense", "imp"):
        record = load_record(scored[name] / RECORD)
        publish(scored[name] / RECORD, nets[name], folder / f"{record.job.name}.json")
    results = provenance_of(tmp_path / "run")
    provenance.note(tmp_path / "run", results, map(provenance.trained, results.values()))
    return tmp_path / "run"


def provenance_of(home):
    return {path: load_record(path) for path in sorted((home / "records").rglob("*.json"))}


def test_records_come_with_their_files_and_their_origin(run, tmp_path):
    board = tmp_path / "board"
    (board / "records").mkdir(parents=True)
    fresh = published(run, board)
    assert len(fresh) == 2 and provenance.read_ledger(board) == provenance.read_ledger(run)
    for path in fresh:
        complete(path, load_record(path))
        assert net_path(path).exists()
    assert published(run, board) == []


def test_what_the_board_has_stays_and_a_parent_is_put_aside(run, tmp_path):
    """The board has another net of the dense job; IMP's record names that of the run as its parent."""
    board, (dense, imp) = tmp_path / "board", sorted(provenance_of(run))
    place = board / dense.relative_to(run)
    publish(dense, net_path(dense), place)
    net_path(place).unlink()  # it may be a link to the run's
    net_path(place).write_bytes(b"another net")
    before = place.read_bytes()
    record = load_record(imp)
    facts = {name: getattr(record, name) for name in type(record).model_fields if name not in ("sha256", "schema_")}
    notes = record.notes | {"parent": load_record(dense).net.sha256}
    type(record).sealed(**facts | {"schema": record.schema_, "notes": notes}).save(imp)
    assert published(run, board) == [board / imp.relative_to(run)]
    assert place.read_bytes() == before
    (aside,) = (place.parent / PARENTS).iterdir()
    assert aside.read_bytes() == net_path(dense).read_bytes()
