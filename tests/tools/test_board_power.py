"""The simulation of a board's tests: the same tests as the board's, and a level that can be told from a wrong one."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from prunebench.bench import stats
from prunebench.bench.errors import PrunebenchError
from tests.support.records import make, save
from tools import board_power
from tools.board_power import BEGIN, END, spreads
from tools.simulated_boards import SHIPPED, Spreads, boards, coverage, holm, levels, paired, pooled, shifted

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"


def made_up(sd, rho=0.0, n=500):
    """Rows of a board: magnitude, then methods, then a shuffle of each; primary and all contrasts."""
    methods = range(1, (len(sd) + 1) // 2)
    primary = [(m, 0) for m in methods]
    shuffles = [(m, m + len(methods)) for m in methods]
    return Spreads(
        Decimal("0.9"),
        tuple(map(str, range(len(sd)))),
        np.full(len(sd), 0.6),
        np.array(sd),
        rho,
        n,
        3,
        {"primary": primary, "secondary": shuffles, "parts": [], "places": [], "all": primary + shuffles},
        0.9,
        None,
    )


def test_many_boards_at_once_get_the_p_values_of_the_board():
    counts = np.random.default_rng(0).integers(0, 6, (40, 3, 4)).astype(float)
    counts[0, 0], counts[0, 1], counts[1, 0] = 5, 5, counts[1, 1] + 2  # equal, and a constant difference
    pairs = [(0, 1), (2, 1), (0, 2)]
    found = paired(counts, pairs)
    for board, values in zip(counts.astype(int), found, strict=True):
        wanted = [stats.by_seed([int(d) for d in board[a] - board[b]], 500).p for a, b in pairs]
        assert values == pytest.approx(wanted, rel=1e-9)
        assert holm(values) == pytest.approx(stats.holm(wanted), rel=1e-9)


def test_what_ships_keeps_its_level_where_one_spread_does_not():
    """Two shuffles spread by 16 points, all else by 2: one spread for all takes their noise for differences."""
    of = made_up([0.02] * 5 + [0.16] * 2 + [0.02] * 2)
    for seeds in (3, 15):
        (found,) = levels([of], seeds, 2000)  # its standard error is .005
        assert found["level pooled"] > 0.12
        assert max(found["level primary"], found["level secondary"]) <= 0.065
        assert found["power primary"] > found["power pooled"]
    alike = made_up([0.02] * 9)
    assert next(levels([alike], 15, 2000))["level pooled"] <= 0.065  # and is right where the spreads are the same


def test_a_test_that_does_not_keep_its_level_is_seen():
    """Without Holm eight contrasts are wrong in about 1 - .95^8 of the boards."""
    counts = boards(made_up([0.02] * 9), 2000, 10, np.random.default_rng(0))
    assert (paired(counts, [(i, i + 1) for i in range(8)]) < 0.05).any(1).mean() > 0.25


def test_simulated_power_is_the_boards_own():
    """One contrast of two rows with sd 2 and correlation .5: the differences have sd 2."""
    of = made_up([0.02, 0.02, 0.02], rho=0.5)
    (found,) = levels([of], 5, 4000)
    assert found["power primary"] == pytest.approx(stats.power(0.03, 0.02, 5, 1), abs=0.025)


def test_boards_have_the_spreads_and_the_blocks():
    counts = boards(made_up([0.02, 0.04], rho=0.5), 20_000, 2, np.random.default_rng(1)) / 500
    assert counts.std(axis=(0, 2)) == pytest.approx([0.02, 0.04], rel=0.02)
    assert np.corrcoef(counts[:, 0, 0], counts[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(counts[:, 0, 0], counts[:, 1, 1])[0, 1] == pytest.approx(0.0, abs=0.02)
    skewed = boards(made_up([0.02]), 20_000, 2, np.random.default_rng(1), "skewed") / 500
    assert skewed.std() == pytest.approx(0.02, rel=0.03)
    assert ((skewed - skewed.mean()) ** 3).mean() / skewed.std() ** 3 == pytest.approx(-2, abs=0.3)


def test_one_method_is_moved_and_only_one():
    of = made_up([0.02] * 5)
    counts = boards(of, 4, 3, np.random.default_rng(0))
    moved, which = shifted(of, counts)
    assert which.tolist() == [0, 1, 0, 1]
    assert np.unique(moved - counts).tolist() == [0, 15]
    assert [np.flatnonzero((moved - counts).any(2)[i]).tolist() for i in range(4)] == [[1], [2], [1], [2]]


def test_intervals_hold_what_they_should():
    (found,) = coverage([made_up([0.02] * 4 + [0.1])], 5, 2000)
    assert found["lowest logit"] > 0.93 and found["lowest pooled"] < 0.8


def test_pooling_is_students_test_where_there_are_two_rows():
    counts = np.array([[[1.0, 2, 3], [4, 5, 9]]])
    variance = counts.var(2, ddof=1).mean(1)
    from scipy import stats as theirs

    assert pooled(counts, [(0, 1)], variance, 4)[0, 0] == pytest.approx(theirs.ttest_ind([1, 2, 3], [4, 5, 9]).pvalue)


def fill(folder):
    for pruner, counts in {"imp": (22, 43, 64), "magnitude": (20, 40, 60), "random": (10, 12, 8)}.items():
        for seed, count in enumerate(counts):
            save(folder, make(pruner, seed=seed, robust=count))
    return folder


def test_spreads_are_read_from_records(tmp_path):
    """imp and magnitude rise together, random rises and falls: correlations 1, -.5 and -.5 but for rounding."""
    (found,) = spreads(fill(tmp_path))
    assert found.labels == ("imp", "magnitude", "random")
    assert found.sd == pytest.approx([0.21, 0.20, 0.02])
    assert (found.rho, found.seeds, found.n) == (pytest.approx(0.0, abs=1e-9), 3, 100)
    assert found.pairs == {
        "primary": [(0, 1)],
        "secondary": [(0, 2), (1, 2)],
        "parts": [],
        "places": [],
        "all": [(0, 1), (0, 2), (1, 2)],
    }
    assert found.skew is None
    for seed in range(3):
        save(tmp_path / "still", make("imp", seed=seed, robust=0, clean=0))
    (still,) = spreads(tmp_path / "still")
    assert (still.rho, still.sd[0]) == (0.0, 1 / (100 * math.sqrt(12)))
    for seed, count in enumerate([1] * 9 + [11]):  # nine at -.1 of a range of 1, one at .9: skewness sqrt(10)
        save(tmp_path / "ten", make("imp", seed=seed, robust=count))
    assert spreads(tmp_path / "ten")[0].skew == pytest.approx(math.sqrt(10))
    more = fill(tmp_path / "more")
    save(more, make("hydra", seed=9))
    (again,) = spreads(more)  # a row with fewer seeds takes none from the others
    assert (again.labels, again.seeds) == (found.labels, found.seeds)
    for seed in (7, 8):
        save(more, make("hydra", seed=seed))
    with pytest.raises(PrunebenchError, match="share 0 seeds"):
        spreads(more)


def test_the_tables_go_between_the_markers_of_a_page(tmp_path, monkeypatch):
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    records = str(fill(tmp_path / "records"))
    command = ["board_power", records, "--boards", "20", "--contrasts", "2", "--write", str(document)]
    monkeypatch.setattr(sys, "argv", command)
    board_power.main()
    first = document.read_text()
    assert first.startswith("before") and first.endswith("after\n") and "\nold\n" not in first
    assert "Level and power" in first and "The second opinion" in first
    board_power.main()
    assert document.read_text() == first


def test_the_committed_table_says_that_what_ships_keeps_its_level():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    table = text.partition("**Level and power.**")[2].partition("\n\n")[2].partition("\n\n")[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    shipped = [head.index(f"paired, {family}") for family in SHIPPED]  # the levels; the powers come after them
    levels = [float(line[i]) for line in lines for i in shipped if line[i]]  # at .99 no part is replaced
    assert (len(lines), len(levels)) == (20, 20 * 4 - 5) and max(levels) <= 0.06
    assert max(float(line[2]) for line in lines) > 0.14  # one spread for the board
