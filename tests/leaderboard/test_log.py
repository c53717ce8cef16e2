"""The public log: a line for each row that was added, changed or removed, and none is ever rewritten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.leaderboard.check import check, default_out, write
from prunebench.leaderboard.log import LOG, differing, read, state
from prunebench.leaderboard.table import rank
from prunebench.leaderboard.table import read as read_records
from tests.support.records import make, save

ROOT = Path(__file__).resolve().parents[2]
DAY = {"date": "2026-01-31"}


@pytest.fixture
def board(tmp_path):
    """Two rows of two seeds and their log."""
    records = tmp_path / "records"
    for seed in range(2):
        save(records, make(seed=seed, robust=50 + seed))
        save(records, make("random", seed=seed, robust=20 + seed))
    write(records, reason="The first look.", **DAY)
    return records


def logged(records):
    """The cells of the log's lines, the hashes left out."""
    lines = (records.parent / LOG).read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| \d", line)]
    return [re.sub(r", [0-9a-f]{12}\b", "", row).strip("| ").split(" | ") for row in rows]


def test_the_rows_of_a_new_board_are_added(board):
    assert logged(board) == [
        ["2026-01-31", "digits-linf", "imp", "0.9", "none", "50.5 % of 100, seeds 0-1", "The first look."],
        ["2026-01-31", "digits-linf", "random", "0.9", "none", "20.5 % of 100, seeds 0-1", "The first look."],
    ]
    check(board)


def test_what_was_added_changed_and_removed_is_appended(board):
    before = (board.parent / LOG).read_bytes()
    for path in board.rglob("random*"):
        path.unlink()
    for seed in (1, 2, 7):
        save(board, make(seed=seed, robust=60))
    save(board, make("hydra", seed=3, robust=40))
    with pytest.raises(
        PrunebenchError, match=r"3 rows changed \(hydra at 0.9 of digits-linf and others\).*LOG.md does"
    ):
        check(board)
    write(board, reason="More seeds.", date="2026-02-01")
    assert logged(board)[2:] == [
        ["2026-02-01", "digits-linf", "hydra", "0.9", "none", "40.0 % of 100, seed 3", "More seeds."],
        [
            "2026-02-01",
            "digits-linf",
            "imp",
            "0.9",
            "50.5 % of 100, seeds 0-1",
            "57.5 % of 100, seeds 0-2, 7",
            "More seeds.",
        ],
        ["2026-02-01", "digits-linf", "random", "0.9", "20.5 % of 100, seeds 0-1", "none", "More seeds."],
    ]
    assert (board.parent / LOG).read_bytes().startswith(before)
    check(board)


def test_nothing_changed_nothing_appended(board):
    before = (board.parent / LOG).read_bytes()
    write(board, reason="Again.", date="2027-01-01")
    write(board)
    assert (board.parent / LOG).read_bytes() == before


def test_a_change_without_a_reason_writes_nothing(board):
    before = {path: path.read_bytes() for path in board.parent.glob("*.*")}
    save(board, make(seed=0, robust=51))
    with pytest.raises(
        PrunebenchError, match=r"1 row changed \(imp at 0.9 of digits-linf\) since .*; give the reason with --rea"
    ):
        write(board)
    assert {path: path.read_bytes() for path in board.parent.glob("*.*")} == before
    with pytest.raises(PrunebenchError, match="The reason is empty"):
        write(board, reason=" \n")


@pytest.mark.parametrize("change", [{"clean": 81}, {"robust": 51}, {"n": 101}])
def test_every_count_is_a_change(board, change):
    """Also where the mean over seeds is the same to a digit: one up, one down."""
    save(board, make(seed=0, **({"robust": 50} | change)))
    save(board, make(seed=1, robust=50 if "robust" in change else 51, **{key: 101 for key in change if key == "n"}))
    if "n" in change:
        for seed in range(2):
            save(board, make("random", seed=seed, robust=20 + seed, n=101))
    ranking = rank(read_records(board))
    changed = differing(read(board.parent / LOG), state(ranking))
    assert ("digits-linf", "imp", "0.9") in changed
    with pytest.raises(PrunebenchError, match="does not say why"):
        check(board)


def test_a_board_without_a_log_needs_no_reason(tmp_path):
    records = tmp_path / "records"
    save(records, make())
    write(records)
    assert not (tmp_path / LOG).exists()
    check(records)


def test_the_text_is_the_same_for_the_same_day(board, tmp_path):
    again = tmp_path / "again"
    write(board, again, reason="The first look.", **DAY)
    assert (again / LOG).read_bytes() == (board.parent / LOG).read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text + "a line\n", "Line 10 of .* is not an entry of the log"),
        (lambda text: text.replace("| digits-linf | imp", "| digits-linf"), "Line 8 .*not an entry"),
        (lambda text: text.replace("| none | 20.5", "| 99.0 % | 20.5"), "Line 9 .* says that a row was '99.0 %'"),
        (lambda text: "# My own log\n", "was not written by prunebench rank and is not overwritten"),
        (lambda text: text[: text.index("| 2026-01-31 | digits-linf | random")], "1 row changed .*random"),
        (lambda text: text.replace("50.5 %", "60.5 %"), "1 row changed .*imp"),
    ],
)
def test_a_log_that_was_edited_is_seen(board, damage, said):
    path = board.parent / LOG
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(PrunebenchError, match=said):
        check(board)
    with pytest.raises(PrunebenchError, match=said):
        write(board)
    assert path.read_bytes() == before


@pytest.mark.parametrize("hostile", ["a|b", "<b>x</b>", "line\n| break |", "[x](http://evil.example)", " ", "none"])
def test_a_name_and_a_reason_are_nothing_but_text(tmp_path, hostile):
    records = tmp_path / "records"
    save(records, make(hostile), "a")
    save(records, make("\x07imp"), "b")  # looks like the next, and is another
    save(records, make("imp"), "c")
    write(records, reason=f"because {hostile}")
    check(records)
    text = (tmp_path / LOG).read_text()
    assert "<b>" not in text and "http://" not in text and "\x07" not in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {8}
    save(records, make("imp", robust=51), "c")
    with pytest.raises(PrunebenchError, match=r"1 row changed \(imp at"):
        check(records)


def test_the_published_board_has_a_log():
    """Without one, no row that changes would need a reason."""
    assert read(default_out(ROOT / "leaderboard" / "records") / LOG)


def test_a_day_is_a_day(board):
    for day in ("31.1.2026", "2026-02-30", "today", ""):
        with pytest.raises(PrunebenchError, match=r"is not a date; write --date as YYYY-MM-DD"):
            write(board, reason="x", date=day)
