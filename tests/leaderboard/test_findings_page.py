"""The page of findings and the README's list: they say the same, follow the records, and take names as text alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.leaderboard.findings.page import (
    BEGIN,
    END,
    absent,
    between_markers,
    findings,
    headlines,
    in_short,
    page,
    short_version,
)
from prunebench.leaderboard.findings.questions import QUESTIONS
from prunebench.leaderboard.table import rank
from tests.leaderboard.test_findings import KEYS, boards, rows
from tests.support.records import make


def test_rows_that_no_board_has_are_named():
    (board,) = boards(rows("awt", 50), rows("GraSP", 40)).boards
    assert absent(KEYS["awt-init"], [board]) == ["snip", "synflow"]
    results = {Path(f"{i}.json"): r for i, r in enumerate([*rows("awt", 50), *rows("GraSP", 40)])}
    ranking = rank(results)
    text = page(findings(ranking, results, Path("x"), [KEYS["awt-init"]]), ranking.boards)
    assert "awt against GraSP: clearly better at 0.9" in text
    assert "No board has rows of snip and synflow yet" in text
    assert "prunebench run digits-linf --pruner awt --pruner GraSP --sparsity 0.9 --seed 0,1,2,3,4 --out runs" in text
    assert "python -m tools.findings runs/records --only awt-init" in text


def test_the_page_and_the_list_say_the_same(tmp_path):
    results = {Path(f"{i}.json"): r for i, r in enumerate([*rows("imp", 60), *rows("magnitude", 50)])}
    ranking = rank(results)
    found = findings(ranking, results, tmp_path)
    flat = " ".join(page(found, ranking.boards).split())
    listed = " ".join(short_version(found, ranking.boards).split())
    said = [verdict for _, _, verdict in headlines(found)]
    assert said and all(each in flat and in_short(each) in listed for each in said)
    assert page(findings(ranking, results, tmp_path), ranking.boards) == page(found, ranking.boards)
    assert "](leaderboard/board.svg)" in listed


def test_a_verdict_in_short_is_its_first_clause():
    assert (
        in_short("No method wins at 0.9 (-2.2 [-3.5, -0.9]); clearly behind: awt.")
        == "No method wins at 0.9 (-2.2 [-3.5, -0.9])."
    )
    assert in_short("It costs 6.7 points. The interval excludes 0 for 2 rows.") == "It costs 6.7 points."


def test_new_records_change_what_is_said():
    """The twin of the test above: nothing is written into the questions."""
    texts = []
    for robust in (60, 40):
        results = {Path(f"{i}.json"): r for i, r in enumerate([*rows("imp", robust), *rows("magnitude", 50)])}
        ranking = rank(results)
        texts.append(short_version(findings(ranking, results, Path("x")), ranking.boards))
    assert "Every method clearly beats magnitude" in texts[0] and "No method clearly beats magnitude" in texts[1]


@pytest.mark.parametrize("name", ["a|b", "<script>x</script>", "[x](http://evil)", "`x`", "a\nb", "$(rm)", "x" * 500])
def test_a_name_is_nothing_but_text(name):
    results = {
        Path(f"{i}.json"): r for i, r in enumerate([*(make(name, 0.9, s) for s in range(2)), *rows("magnitude", 50)])
    }
    ranking = rank(results)
    text = page(findings(ranking, results, Path("x")), ranking.boards)
    outside = re.sub(r"```sh\n.*?\n```", "", text, flags=re.DOTALL)
    assert "<script" not in outside and "](http" not in outside and "`x`" not in outside
    assert len({line.count("|") for line in outside.splitlines() if line.startswith("| 0.9 | ")}) == 1
    for block in re.findall(r"```sh\n(.*?)\n```", text, flags=re.DOTALL):
        made, *others = reversed(block.splitlines())
        assert made.startswith("python -m tools.findings ") and "`" not in block
        assert others and all(line.startswith("prunebench run digits-linf --pruner ") for line in others)


def test_the_list_takes_the_place_between_its_markers():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_markers(text, f"{BEGIN}\nnew\n{END}", "x") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    for wrong in ("", f"{BEGIN}", f"{END}{BEGIN}", text + text):
        with pytest.raises(PrunebenchError, match="x does not have the lines"):
            between_markers(wrong, f"{BEGIN}\nnew\n{END}", "x")


def test_questions_are_told_apart_and_cite_what_they_claim():
    assert len(KEYS) == len(QUESTIONS) >= 8
    for question in QUESTIONS:
        assert re.fullmatch("[a-z-]+", question.key) and question.title.endswith("?")
        assert bool(question.claim) == bool(question.source)
        assert not re.search(r"arXiv(?! \d{4}\.\d{5})", question.source), question.source
