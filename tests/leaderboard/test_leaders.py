"""What a page says first: which board leads, who is best there, what cannot be told apart, and how to make it again."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal
from pathlib import Path

import pytest

from prunebench.leaderboard.papers import PAPERS, papers_of
from prunebench.leaderboard.render.commands import command, commands
from prunebench.leaderboard.render.leaders import leader
from prunebench.leaderboard.render.text import flags_in_short
from prunebench.leaderboard.site import small
from prunebench.leaderboard.table import rank
from tests.leaderboard.test_charts import board_of, rows
from tests.support.records import make

ROOT = Path(__file__).resolve().parents[2]
AT = Decimal("0.9")


def test_the_leading_board_is_official_and_has_most_records():
    """By name alone, a foreign board with three records would come first, and an official one with one record."""
    foreign = {"name": "aaa", "version": 1, "sha256": "e" * 64}
    small_one = {"name": "bbb", "version": 1, "sha256": "f" * 64}
    records = [make(seed=seed, protocol=foreign, official=False) for seed in range(3)]
    records += [make(protocol=small_one, official=False), make(), make(seed=1)]
    found = rank({Path(f"{i}.json"): record for i, record in enumerate(records)}).boards
    assert [(board.protocol, board.records, board.official) for board in found] == [
        ("digits-linf", 2, True),
        ("aaa", 3, False),
        ("bbb", 1, False),
    ]
    assert [board.seeds_shown for board in found] == ["2 seeds", "3 seeds", "1 seed"]


def test_the_leader_is_named_with_its_difference_and_what_cannot_be_told_from_it():
    board, _ = board_of(rows("imp", 60), rows("magnitude", 50), rows("awt", 60))
    assert re.fullmatch(
        r"(imp|awt) is highest: 60\.0 \[[\d., ]+\] %, \+10\.0 \[\+9\.3, \+10\.7\] points against magnitude\. "
        r"The tests cannot tell it from (awt|imp)\.",
        leader(board, AT),
    )
    clear = leader(board_of(rows("imp", 60), rows("magnitude", 50), rows("awt", 40))[0], AT)
    assert clear.endswith("It is clearly above all 2 others.")  # the twin
    single = leader(board_of([make("imp", robust=70)], [make("magnitude", robust=10)])[0], AT)
    assert single.endswith("The methods share too few seeds, so no difference is tested.")
    assert (
        leader(board_of(rows("imp", 60), rows("random", 70))[0], AT) == "imp is the only method: 60.0 [57.5, 62.4] %."
    )
    assert leader(board_of(rows("dense", 50, 0.0))[0], AT) == ""


def test_many_ties_are_counted():
    board, _ = board_of(*(rows(f"m{i}", 50) for i in range(9)))
    assert leader(board, AT).endswith("The tests cannot tell it from m1, m2, m3, m4, m5 and 3 more.")


def test_flags_are_counted_in_a_sentence():
    flag = {"name": "planted", "value": 2.0, "threshold": 1.0, "sentence": "x"}
    doubted = rows("imp", 60, score={"flags": [flag]})
    assert flags_in_short(board_of(doubted, rows("magnitude", 50))[0]) == "1 of 2 rows carries a flag: planted (1)."
    both = rows("magnitude", 50, score={"flags": [flag]})
    assert flags_in_short(board_of(doubted, both)[0]) == "2 of 2 rows carry a flag: planted (2)."
    assert flags_in_short(board_of(rows("imp", 60))[0]) == ""


def cells(board):
    keys = {(row.sparsity, row.pruner): f"entries/{row.pruner}.html" for row in board.rows}
    return {line.row.pruner: line for table in small.of_board(board, keys) for line in table.lines}


def test_an_interval_is_drawn_at_its_place_and_an_arrow_points_outside():
    """The range is that of methods and random pruning; the shuffle at 5 lies far below it."""
    shuffle = rows("imp", 5, job={"options": {"shuffle": True}})
    board, _ = board_of(rows("imp", 60), rows("random", 50), shuffle)
    (table,) = small.of_board(board, {(row.sparsity, row.pruner): "entries/x.html" for row in board.rows})
    assert table.folds and [line.folded for line in table.lines].count(True) == 1
    drawn = {name: line.drawn for name, line in cells(board).items()}
    right, left = (float(re.findall(r'class="mark[^"]*" d="M([\d.]+)', drawn[name])[0]) for name in ("imp", "random"))
    assert small.MARGIN < left < right < small.WIDTH - small.MARGIN
    assert "mark" not in drawn["imp:shuffle=true"] and f"L{small.MARGIN:.1f} " in drawn["imp:shuffle=true"]


def test_no_interval_leaves_the_range_of_a_per_cent():
    table = small.of_board(*_whole())[0]
    low, high = map(int, re.findall(r"\d+", table.range))
    assert (low, high) == (0, 100)


def _whole():
    board, _ = board_of([make("imp", robust=0)], [make("magnitude", clean=100, robust=100)])
    return board, {(row.sparsity, row.pruner): "entries/x.html" for row in board.rows}


def test_the_command_makes_the_row_and_quotes_every_name():
    board, _ = board_of(rows("imp", 60), rows("a b; rm -rf `x`", 50))
    by_name = {row.pruner: row for row in board.rows}
    said = command(board, [by_name["imp"]])
    assert said == "prunebench run digits-linf --pruner imp --sparsity 0.9 --seed 0,1,2 --out runs"
    hostile = next(name for name in by_name if name != "imp")
    words = shlex.split(command(board, [by_name[hostile]]))
    assert words[words.index("--pruner") + 1] == "a b; rm -rf ?x?"


def test_the_commands_make_the_rows_and_no_others():
    """Imp and hydra at .9 and .95 with two seeds, snip at .9 with three: one command would also make snip at .95."""
    records = [make(name, at, seed) for name in ("imp", "hydra") for at in (0.9, 0.95) for seed in (0, 1)]
    records += [make("snip", 0.9, seed) for seed in (0, 1, 2)] + [make("dense", 0.0, seed) for seed in (0, 1)]
    (board,) = rank({Path(f"{i}.json"): record for i, record in enumerate(records)}).boards
    made = set()
    for line in commands(board, board.rows):
        words = shlex.split(line)
        given = {
            option: [words[i + 1] for i, word in enumerate(words) if word == option]
            for option in words
            if option.startswith("--")
        }
        for name in given["--pruner"]:
            for at in ["0"] if name == "dense" else given["--sparsity"][0].split(","):
                made |= {(name, Decimal(at), int(seed)) for seed in given["--seed"][0].split(",")}
    wanted = {(record.job.pruner, Decimal(str(record.job.sparsity)), record.job.seed) for record in records}
    assert made == wanted
    assert len(commands(board, board.rows)) == 2


@pytest.mark.parametrize("name", PAPERS)
def test_papers_are_those_that_the_pruners_cite(name):
    cited = "".join(path.read_text() for path in (ROOT / "pruners").glob("*.py"))
    for paper in papers_of(f"{name}:shuffle=true"):
        number = paper.url.removeprefix("https://arxiv.org/abs/").removeprefix("https://doi.org/")
        assert number in cited, paper
    assert papers_of(f"not-{name}") == ()
