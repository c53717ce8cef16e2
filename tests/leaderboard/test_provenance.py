"""How each row came: the weakest of its records counts, and the ledger speaks of these very files alone."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.leaderboard.check import check, look, write
from prunebench.leaderboard.provenance import LEDGER, MEANING, Attestation, measured, note, of_row, read_ledger, trained
from prunebench.leaderboard.site import folder
from prunebench.leaderboard.table import read
from tests.support.records import make, save

ENV = {"torch": "2.11.0", "cpu": "a processor", "device": "cpu", "python": "3.11"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["re-measured"] * 3, "re-measured"),
        (["as handed in"], "as handed in"),
        (["trained here", "re-measured"], "re-measured, trained here 1 of 2"),
        (["re-measured", "as handed in", "re-measured"], "as handed in, re-measured 2 of 3"),
        (["signed by a", "as handed in", "re-measured"], "as handed in, signed by a 1 of 3, re-measured 1 of 3"),
        (["signed by b", "signed by a"], "signed by a, signed by b 1 of 2"),
    ],
)
def test_a_row_goes_by_its_weakest_record(found, said):
    assert of_row(found) == said


@pytest.fixture
def board(tmp_path):
    """A row of three seeds, and one of one."""
    records = tmp_path / "records"
    for seed in range(3):
        save(records, make(seed=seed, env=ENV))
    save(records, make("random", robust=20, env=ENV))
    return records


def noted(records, names, attest):
    results = read(records)
    attestations = [attest(result) for path, result in results.items() if path.stem in names]
    note(records.parent, results, attestations)
    return attestations


def origins(records):
    return {row.pruner: row.origin for row in look(records).boards[0].rows}


def again(record, verdict="holds", day="2026-01-31"):
    return measured(record, record, verdict, day)


def test_the_words_follow_from_ledger_and_files(board):
    assert origins(board) == {"imp": "as handed in", "random": "as handed in"}
    noted(board, {"imp-s0.9-seed0", "random-s0.9-seed0"}, again)
    assert origins(board) == {"imp": "as handed in, re-measured 1 of 3", "random": "re-measured"}
    noted(board, {"imp-s0.9-seed1", "imp-s0.9-seed2"}, trained)
    assert origins(board)["imp"] == "re-measured, trained here 2 of 3"


def test_an_attestation_speaks_of_that_record_and_net_alone(board):
    noted(board, {"random-s0.9-seed0"}, again)
    save(board, make("random", robust=21, env=ENV))
    assert origins(board)["random"] == "as handed in"
    (attestation,) = noted(
        board, {"random-s0.9-seed0"}, lambda record: again(record).model_copy(update={"net": "e" * 64})
    )
    assert attestation in read_ledger(board.parent).entries
    assert origins(board)["random"] == "as handed in"


@pytest.mark.parametrize("word", ["undecided", "refuted"])
def test_only_what_holds_counts(board, word):
    noted(board, {"random-s0.9-seed0"}, lambda record: again(record, word))
    assert read_ledger(board.parent).entries[0].verdict == word
    assert origins(board)["random"] == "as handed in"


def test_the_ledger_keeps_what_is_on_the_board(board):
    noted(board, {"random-s0.9-seed0", "imp-s0.9-seed0"}, again)
    noted(board, {"random-s0.9-seed0"}, lambda record: again(record, day="2026-02-01"))
    assert sorted(one.date for one in read_ledger(board.parent).entries) == ["2026-01-31", "2026-02-01"]
    noted(board, {"random-s0.9-seed0"}, lambda record: again(record, "refuted", "2026-02-02"))
    assert origins(board)["random"] == "as handed in"  # the newest counts
    for path in board.rglob("random*"):
        path.unlink()
    noted(board, set(), again)
    assert [one.how for one in read_ledger(board.parent).entries] == ["re-measured"]
    before = (board.parent / LEDGER).read_bytes()
    noted(board, {"imp-s0.9-seed1"}, lambda record: trained(record).model_copy(update={"date": "2026-01-01"}))
    once = (board.parent / LEDGER).read_bytes()
    noted(board, {"imp-s0.9-seed1"}, trained)  # done before: it stays trained on that day
    assert (board.parent / LEDGER).read_bytes() == once != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "breaks the rules"),
        ('{"prunebench_ledger": 2}', "breaks the rules"),
        ('{"prunebench_ledger": 1, "entries": [], "more": 1}', "unknown key 'more'"),
    ],
)
def test_a_damaged_ledger_is_refused_in_a_sentence(board, text, said):
    (board.parent / LEDGER).write_text(text)
    with pytest.raises(PrunebenchError, match=said):
        look(board)


def test_an_entry_of_a_wrong_form_is_refused(board):
    (good,) = noted(board, {"random-s0.9-seed0"}, again)
    for change in ({"how": "trusted"}, {"date": "2026-02-30"}, {"record": "x"}, {"processor": "x" * 501}):
        values = {"prunebench_ledger": 1, "entries": [good.model_dump(mode="json") | change]}
        (board.parent / LEDGER).write_text(json.dumps(values))
        with pytest.raises(PrunebenchError, match="breaks the rules"):
            look(board)


def test_a_ledger_is_a_regular_file(board):
    os.mkfifo(board.parent / LEDGER)
    with pytest.raises(PrunebenchError, match="not a regular file"):
        look(board)


def test_every_board_says_how_its_rows_came(board):
    noted(board, {"random-s0.9-seed0"}, again)
    write(board)
    home = board.parent
    for name in ("README.md", "board.json", "board.tex"):
        text = (home / name).read_text()
        assert "A file does not show which images its net was trained on." in text, name
        assert "as handed in" in text and "measured" in text, name
    (imp, random) = csv.DictReader(io.StringIO((home / "board.csv").read_text()))
    assert (imp["origin"], random["origin"]) == ("as handed in", "re-measured")
    rows = json.loads((home / "board.json").read_text())["boards"][0]["rows"]
    assert [row["origin"] for row in rows] == ["as handed in", "re-measured"]
    folder.write(board, home / "site")
    page = (home / "site" / "boards" / "digits-linf.html").read_text()
    assert "<td>re-measured</td>" in page and MEANING.replace("'", "&#39;") in page.replace("'", "&#39;")
    assert "re-measured" in (home / "site" / "entries" / "digits-linf-random-s0.9.html").read_text()
    check(board)


def test_a_changed_ledger_makes_the_board_out_of_date(board):
    write(board)
    noted(board, {"random-s0.9-seed0"}, again)
    with pytest.raises(PrunebenchError, match="The board is out of date"):
        check(board)


def test_an_entry_says_with_what_it_was_measured():
    attestation = again(make(env=ENV))
    assert (attestation.versions["torch"], attestation.processor) == ("2.11.0", "a processor")
    assert isinstance(again(make(env=ENV | {"device": "a card"})), Attestation)
    assert again(make(env=ENV | {"device": "a card"})).processor == "a card"
