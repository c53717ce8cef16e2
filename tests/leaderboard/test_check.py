"""The published board is what its records say, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.record import Record
from prunebench.leaderboard import check as board
from prunebench.leaderboard.check import check, default_out, write
from prunebench.leaderboard.render.formats import FORMATS
from tests.support.records import make, outcomes, refusal, save

FILES = ["README.md", "board.csv", "board.json", "board.tex", "board.svg"]


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    for seed in range(2):
        save(folder, make(seed=seed, robust=50 + seed))
        save(folder, make("random", seed=seed, robust=20 + seed))
    refusal().save(folder / "refused.json")
    return folder


def test_what_was_written_is_up_to_date(records, tmp_path):
    ranking, paths = write(records)
    assert [path.name for path in paths] == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"records", *FILES}
    assert check(records) == (ranking, paths)
    assert len(ranking.boards[0].rows) == 2


def test_writing_again_changes_no_byte(records):
    _, paths = write(records)
    before = [path.read_bytes() for path in paths]
    write(records)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("files", [0, 2])
def test_what_an_interruption_leaves_the_same_command_completes(records, tmp_path, monkeypatch, files):
    """After so many tables, with the log written before: the reason is not logged twice."""
    write(records, reason="first")
    save(records, make(seed=2))
    left = [board.write_bytes] * files

    def writing(path, data):
        if not left:
            raise KeyboardInterrupt
        left.pop()(path, data)

    monkeypatch.setattr(board, "write_bytes", writing)
    with pytest.raises(KeyboardInterrupt):
        write(records, reason="a third seed")
    monkeypatch.undo()
    with pytest.raises(PrunebenchError, match="differs"):
        check(records)
    write(records, reason="a third seed")
    check(records)
    assert (tmp_path / "LOG.md").read_text().count("a third seed") == 1


@pytest.mark.parametrize("name", FILES)
def test_each_file_that_differs_is_named(records, tmp_path, name):
    write(records)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    with pytest.raises(PrunebenchError) as error:
        check(records)
    assert (
        str(error.value)
        == f"The board is out of date ({tmp_path / name} differs); run prunebench rank {records} --write."
    )
    write(records)
    check(records)


def test_a_missing_file_and_a_new_record_are_seen(records, tmp_path):
    with pytest.raises(PrunebenchError, match=r"README.md is missing; .*board.svg is missing"):
        check(records)
    write(records)
    save(records, make(seed=2))
    with pytest.raises(PrunebenchError, match=r"README.md differs; .*board.svg differs"):
        check(records)


def test_an_edited_count_is_seen(records):
    write(records)
    path = next(records.rglob("imp*.json"))
    path.write_text(path.read_text().replace('"clean": 80', '"clean": 81'))
    with pytest.raises(PrunebenchError, match="was edited"):
        check(records)


def test_an_edited_count_with_its_own_hash_is_seen(records):
    path = next(records.rglob("imp*.json"))
    values = json.loads(path.read_text())
    values["score"]["clean"] = 81
    values["sha256"] = Record.model_validate(values).own_sha256
    path.write_text(json.dumps(values))
    write(records)  # the hash alone cannot tell
    with pytest.raises(PrunebenchError, match="says clean = 81, but its outcomes say 80"):
        check(records)


def test_other_outcomes_are_seen(records):
    write(records)
    path = next(records.rglob("imp*.json"))
    outcomes_path(path).write_bytes(outcomes(100, 81, 50))
    with pytest.raises(PrunebenchError, match="is not the outcomes of"):
        check(records)
    outcomes_path(path).unlink()
    with pytest.raises(PrunebenchError, match="No such file"):
        check(records)


def test_only_the_formats_asked_for(records, tmp_path):
    _, paths = write(records, tmp_path / "a b", ["csv", "md", "csv"])
    assert [path.name for path in paths] == ["board.csv", "README.md"]
    check(records, tmp_path / "a b", ["md", "csv"])
    with pytest.raises(
        PrunebenchError, match=r"board.json is missing; .*run prunebench rank \S+ --write --out '\S+/a b'\.$"
    ):
        check(records, tmp_path / "a b")
    with pytest.raises(PrunebenchError, match=r"tex is missing.*--format tex\.$"):
        check(records, formats=["tex"])
    with pytest.raises(PrunebenchError, match="Unknown format 'jsn'; did you mean 'json'"):
        write(records, formats=["jsn"])
    with pytest.raises(PrunebenchError, match="No format is named"):
        check(records, formats=[])


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_someone_else_stays(records, tmp_path, name):
    (tmp_path / name).write_text("# My project")
    with pytest.raises(PrunebenchError, match=f"{name} was not written by prunebench rank"):
        write(records)
    assert (tmp_path / name).read_text() == "# My project"
    assert {path.name for path in tmp_path.iterdir()} == {"records", name}  # nothing else was written either


def test_tables_do_not_go_among_the_records(records):
    for out in (records, records / "board", records / ".." / "records"):
        with pytest.raises(PrunebenchError, match="would be read as records"):
            write(records, out)


@pytest.mark.parametrize(
    ("folder", "out"),
    [
        ("leaderboard/records", "leaderboard"),
        ("leaderboard/records/", "leaderboard"),
        ("runs", "runs-board"),
        ("a/runs", "a/runs-board"),
    ],
)
def test_the_default_place(tmp_path, monkeypatch, folder, out):
    monkeypatch.chdir(tmp_path)
    assert default_out(Path(folder)) == tmp_path.resolve() / out


def test_the_default_place_of_here(tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    monkeypatch.chdir(tmp_path / "records")
    assert default_out(Path()) == tmp_path.resolve()


def test_incomparable_records_write_nothing(records, tmp_path):
    save(records, make(seed=5, protocol={"version": 2}))
    with pytest.raises(PrunebenchError, match="different versions of the protocol"):
        write(records)
    assert list(tmp_path.iterdir()) == [records]
    assert set(FORMATS) == {"md", "csv", "json", "tex", "svg"}
