"""The study of tickets: differences by seed on paper, pages that keep what people wrote, and rows that exist."""

from __future__ import annotations

import json
import sys

import pytest

from prunebench.pruners import resolve
from tests.support.records import make
from tools import ticket_study
from tools.ticket_study import CONTRASTS, FIRST, LATER, PUBLISHED, RANDOM, ROBUST, board, compared, finished, place


def result(robust, clean=190):
    return {"robust": robust, "clean": clean, "images": 200, "hoyer": 0.5, "below 0.001": 0.25, "seconds": 30.0}


def test_every_row_is_a_pruner_and_every_contrast_is_between_rows():
    rows = (*FIRST, *LATER)
    assert len(set(rows)) == 7
    for spec in rows:
        assert resolve(spec).prunes is False
    assert {spec for one, other, _ in CONTRASTS for spec in (one, other)} == set(rows)
    assert all(resolve(spec) for _, one, other in PUBLISHED for spec in (one, other))


def check_compared(compare):
    """Differences of 10, 20 and 30 of 200 images at the common seeds: +10 points, sd 5, t with two degrees."""
    one = {100: result(150), 101: result(140), 102: result(130), 103: result(0)}
    other = {100: result(140), 101: result(120), 102: result(100)}
    test = compare(one, other, "robust")
    assert (test.seeds, test.gap) == (3, 0.1)
    assert test.low == pytest.approx(0.1 - 4.302653 * 0.05 / 3**0.5)
    assert compare(one, {100: result(1)}, "robust") is None


def test_rows_are_compared_at_their_common_seeds():
    check_compared(compared)


@pytest.mark.parametrize("twin", [lambda a, b, what: compared(b, a, what), lambda a, b, what: compared(a, b, "clean")])
def test_compared_twin(twin):
    with pytest.raises(AssertionError):
        check_compared(twin)


def test_the_board_has_a_line_for_each_contrast_with_two_seeds():
    rows = {("iwi-dense", 0.0): {0: result(140), 1: result(150)}, ("dense", 0.0): {0: result(150), 1: result(160)}}
    (line,) = board(rows)[2:]
    assert line.startswith("| 0 | `iwi-dense` | `dense` | 2 | -5.0 [-6.3, -3.7] |")  # the least spread: half a point


def test_a_page_keeps_its_answer_and_counts_what_is_finished(tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "tickets.md"
    for seed in (100, 101):
        for spec, robust in ((ROBUST, 140), (RANDOM, 130 + seed % 2)):
            path = place(work, spec, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result(robust)))
    assert {spec: len(found) for spec, found in finished(work, (100, 101)).items() if found} == {ROBUST: 2, RANDOM: 2}
    records = tmp_path / "records"
    for seed in (0, 1):
        make("iwi", 0.98, seed, robust=60).save(records / f"a{seed}.json")
        make("iwi", 0.98, seed, robust=50, job={"options": {"ticket": "random"}}).save(records / f"b{seed}.json")
    out.write_text("# Old title\n\nIt gives nothing.\n\nA second paragraph.\n\n## Old heading\n")
    arguments = ["--out", out, "--work", work, "--records", records, "--report"]
    monkeypatch.setattr(sys, "argv", ["ticket_study", *map(str, arguments)])
    ticket_study.main()
    page = out.read_text()
    assert page.startswith(
        "# What a robust ticket gives a large net\n\nIt gives nothing.\n\nA second paragraph.\n\n## By"
    )
    assert "| 0.98 | `iwi` | `iwi:ticket=random` | 2 | +10.0 [" in page
    assert "| robust ticket or random one | `iwi-dense` | `iwi-dense:ticket=random` | 2 | +4.8 [" in page
    assert "4 nets of" in page and "took 2 minutes" in page
    ticket_study.main()
    assert out.read_text() == page
