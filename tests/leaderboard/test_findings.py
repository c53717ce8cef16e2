"""Findings on hand-made records whose verdict follows on paper; each has a twin with the opposite verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as packed

from prunebench.bench.beside import net_path
from prunebench.bench.beyond import Best, Beyond
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.leaderboard.findings.compared import compare
from prunebench.leaderboard.findings.page import (
    findings,
)
from prunebench.leaderboard.findings.questions import QUESTIONS, Order
from prunebench.leaderboard.findings.wording import APART
from prunebench.leaderboard.table import rank, read
from tests.support.records import make, save

KEYS = {question.key: question for question in QUESTIONS}
NOISE = (0, 1, -1, 2, -2)  # of five seeds


def rows(label, robust, sparsity=0.9, spread=NOISE, **changes):
    """Records of five seeds of the row `label`, with `robust` of 100 images and some noise."""
    name, _, options = label.partition(":")
    chosen = dict(pair.split("=") for pair in options.split(",")) if options else {}
    job = {"options": {key: value == "true" if value in ("true", "false") else value for key, value in chosen.items()}}
    return [make(name, sparsity, i, robust=robust + more, job=job, **changes) for i, more in enumerate(spread)]


def boards(*groups):
    return rank({Path(f"{i}.json"): record for i, record in enumerate(record for group in groups for record in group)})


def verdict(key, *groups):
    """The verdict of the one board of these records, None if it has none."""
    results = {Path(f"{i}.json"): record for i, record in enumerate(record for group in groups for record in group)}
    (finding,) = findings(rank(results), results, Path("nowhere"), [KEYS[key]])
    return finding.answers[0].verdict if finding.answers else None


# Two rows


def test_a_mask_that_carries_the_gain_is_found():
    """Every seed is exactly 10 images ahead, so the interval has the width of rounding: 2.776 / (sqrt(12) sqrt(5))."""
    said = verdict("awt-mask", rows("awt", 50), rows("awt:shuffle=true", 40), rows("random", 50))
    assert "awt against awt:shuffle=true: clearly better at 0.9 (+10.0 [+9.6, +10.4])." in said
    assert "awt against random: the test cannot tell at 0.9 (+0.0 [-0.4, +0.4])." in said


def test_a_mask_that_loses_is_said_to_lose():
    said = verdict("awt-mask", rows("awt", 40), rows("awt:shuffle=true", 50))
    assert said == "awt against awt:shuffle=true: clearly worse at 0.9 (-10.0 [-10.4, -9.6])."


def test_noise_as_wide_as_the_gap_tells_nothing():
    """Differences 12, -8, 12, -8, 2: mean 2, sd 10, so t = 0.447 and p = .68."""
    said = verdict(
        "awt-mask", rows("awt", 50, spread=(12, -8, 12, -8, 2)), rows("awt:shuffle=true", 50, spread=(0,) * 5)
    )
    assert said == "awt against awt:shuffle=true: the test cannot tell at 0.9 (+2.0 [-10.4, +14.4])."


def test_each_sparsity_has_its_own_verdict():
    here = (
        [rows("awt", 50, s) for s in (0.9, 0.95)],
        [rows("awt:shuffle=true", r, s) for r, s in ((50, 0.9), (30, 0.95))],
    )
    said = verdict("awt-mask", *here[0], *here[1])
    assert "clearly better at 0.95 (+20.0" in said and "cannot tell at 0.9 (+0.0" in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_no_test(seeds):
    few = (0,) * seeds
    said = verdict("awt-mask", rows("awt", 50, spread=few), rows("random", 20, spread=few))
    assert said == "awt against random: too few seeds for a test at 0.9 (+30.0)."


def test_who_has_too_few_seeds_is_named_among_those_that_are_tested():
    few = rows("imp", 60, spread=(0, 0)), rows("magnitude", 50)
    assert verdict("magnitude", *few) == (
        "No method shares enough seeds with magnitude, so no difference can be tested."
    )
    said = verdict("magnitude", *few, rows("awt", 60))
    assert said.startswith("Clearly ahead of magnitude: awt at 0.9; too few seeds: imp at 0.9.")


def test_unpruned_rows_are_compared_although_the_board_does_not():
    """No board compares them, so Holm is over the question alone: it doubles the p-value where it asks twice."""
    few = (5, 7, 3, 5, 10)  # mean 6, sd 2.65: t = 5.07 and p = .0071
    ranking = boards(rows("iwi-dense", 50, 0.0, few), rows("dense", 50, 0.0, (0,) * 5))
    pair = compare(ranking.boards[0], [((0, "iwi-dense"), (0, "dense"))])
    assert pair[0].test.p == pair[0].adjusted == pytest.approx(0.0071, abs=2e-4)
    twice = compare(ranking.boards[0], [((0, "iwi-dense"), (0, "dense")), ((0, "dense"), (0, "iwi-dense"))])
    assert [each.adjusted for each in twice] == pytest.approx([2 * 0.0071] * 2, abs=4e-4)
    assert [each.verdict for each in twice] == ["+", "-"]


def test_the_board_s_own_verdict_is_kept():
    """Twelve rivals make Holm's factor 11 on the board; alone, the same pair would be significant."""
    few = (5, 7, 3, 5, 10)
    rivals = [rows(f"rival{i}", 50, spread=(0, 1, 0, 1, 0)) for i in range(11)]
    ranking = boards(rows("awt", 50, spread=few), rows("magnitude", 50, spread=(0,) * 5), *rivals)
    (board,) = ranking.boards
    sparsity = board.rows[0].sparsity
    (each,) = compare(board, [((sparsity, "awt"), (sparsity, "magnitude"))])
    assert each.test.p < 0.05 < each.adjusted and each.verdict == "="
    alone = boards(rows("awt", 50, spread=few), rows("magnitude", 50, spread=(0,) * 5)).boards[0]
    assert compare(alone, [((sparsity, "awt"), (sparsity, "magnitude"))])[0].verdict == "+"


# Every method


def test_who_beats_magnitude():
    plain = rows("magnitude", 50, spread=(0,) * 5), rows("random", 70)
    said = verdict("magnitude", *plain, rows("imp", 60), rows("awt", 40), rows("iwi", 50, spread=(6, -6, 6, -6, 0)))
    assert said.startswith(
        "Clearly ahead of magnitude: imp at 0.9; clearly behind: awt at 0.9; not told apart: iwi at 0.9."
    )
    assert (
        "A true difference of 3 points is found with probability .44 at 0.9 (5 seeds)." in said and "random" not in said
    )
    said = verdict("magnitude", *plain, rows("imp", 50, spread=(6, -6, 6, -6, 0)), rows("awt", 40))
    assert said.startswith("No method clearly beats magnitude; clearly behind: awt at 0.9; not told apart: imp at 0.9.")


def test_rows_with_the_same_verdicts_share_their_sparsities():
    here = [rows(name, 60, s) for name in ("imp", "awt") for s in (0.9, 0.95)] + [rows("iwi", 60, 0.95)]
    said = verdict("magnitude", *here, *(rows("magnitude", 50, s) for s in (0.9, 0.95)))
    assert said.startswith("Every method clearly beats magnitude at every sparsity.")
    said = verdict("magnitude", *here, rows("iwi", 40, 0.9), *(rows("magnitude", 50, s) for s in (0.9, 0.95)))
    assert said.startswith(
        "Clearly ahead of magnitude: awt and imp at every sparsity, iwi at 0.95; clearly behind: iwi at 0.9."
    )


def test_each_method_meets_its_own_shuffle():
    said = verdict(
        "shuffle",
        rows("hydra:layers=global", 50),
        rows("hydra:layers=global,shuffle=true", 30),
        rows("imp", 50),
        rows("imp:shuffle=true", 60),
        rows("awt", 50),
    )
    assert said == "Clearly ahead of their own shuffle: hydra:layers=global at 0.9; clearly behind: imp at 0.9."


def test_sparse_rows_meet_the_unpruned_net_of_their_seed():
    assert verdict("sparse", rows("imp", 50, 0.9), rows("dense", 40, 0.0)).startswith("Every method clearly beats")
    assert "clearly behind: imp at 0.9" in verdict("sparse", rows("imp", 50, 0.9), rows("dense", 60, 0.0))


# The published order


def test_two_published_nets_are_apart_where_their_images_alone_cannot_make_the_difference():
    """1.96 sqrt(2 * .43 * .57 / 10,000) = .0137: half of the 95 % interval of a difference of two equal rates."""
    assert round(100 * 1.96 * (2 * 0.43 * 0.57 / 10_000) ** 0.5, 1) == APART
    (text,) = (question.claim for question in QUESTIONS if isinstance(question.asked, Order))
    assert f"less than {APART} points apart" in text


def test_the_published_order_holds_or_is_turned_around():
    """HARP is 2.1 points above HYDRA at .9, Flying Bird 3.1, and Flying Bird less than 1.4 above HARP."""
    said = verdict("order", rows("harp", 60), rows("hydra", 50), rows("flying_bird", 40))
    assert "harp against hydra: as published at 0.9 (+2.1 published, +10.0 [+9.6, +10.4] here)." in said
    assert "flying_bird against hydra: against the published order at 0.9 (+3.1 published, -10.0 [" in said
    assert (
        "flying_bird against harp: no order published at 0.9 (+1.1 published, -20.0 [-20.4, -19.6] here, clearly w"
        in said
    )
    equal = verdict("order", rows("harp", 50), rows("hydra", 50))
    assert equal == "harp against hydra: the test cannot tell at 0.9 (+2.1 published, +0.0 [-0.4, +0.4] here)."


def test_each_sparsity_is_held_against_the_number_published_for_it():
    """R-ADMM is .3 points above HYDRA at .9, which is no order, and 1.6 below it at .99; at .98 there is no number."""
    better = [net for at in (0.9, 0.98, 0.99) for net in (rows("r_admm:layers=uniform", 60, at), rows("hydra", 50, at))]
    said = verdict("order", *better)
    assert said.startswith(
        "r_admm:layers=uniform against hydra: against the published order at 0.99 (-1.6 published, +10.0 ["
    )
    assert "; no order published at 0.9 (+0.3 published, +10.0 [" in said
    assert said.endswith("; no number published at 0.98 (+10.0 [+9.6, +10.4] here, clearly better).")
    worse = verdict("order", rows("r_admm:layers=uniform", 50, 0.99), rows("hydra", 60, 0.99))
    assert worse.startswith("r_admm:layers=uniform against hydra: as published at 0.99 (-1.6 published, -10.0 [")


def test_the_published_difference_stands_in_the_table():
    results = dict(enumerate([*rows("harp", 60), *rows("hydra", 50)]))
    results = {Path(f"{i}.json"): record for i, record in results.items()}
    (finding,) = findings(rank(results), results, Path("nowhere"), [KEYS["order"]])
    (line,) = finding.answers[0].lines
    assert line[finding.answers[0].titles.index("Published")] == "+2.1"  # HARP 45.40, HYDRA 43.34


# Slack, masks, curves


def beaten(label, lost, sparsity=0.9):
    return [
        make(
            label,
            sparsity,
            i,
            robust=50,
            beyond=Beyond(best=Best(suite="b", robust=50 - n, by={"x": n}, long=0, passes=0)),
        )
        for i, n in enumerate(lost)
    ]


def test_the_row_that_autoattack_flatters_most_is_named():
    """8, 10 and 12 of 100: mean 10, sd 2, half-width 4.303 * 2 / sqrt(3) = 4.97."""
    said = verdict("slack", beaten("hydra", (8, 10, 12)), beaten("imp", (0, 0, 0)))
    assert said.startswith(
        "AutoAttack flatters hydra at 0.9 (10.0 [5.0, 15.0] points) most, and imp at 0.9 (0.0 [0.0, "
    )
    assert "excludes 0 for 1 of 2 rows" in said
    assert verdict("slack", beaten("imp", (0, 0, 0))) == "Stronger attacks take nothing from AutoAttack's number."
    assert verdict("slack", rows("imp", 50)) is None


def with_net(folder, label, seed, positions):
    """A record with a net of one layer of 1000 weights that keeps the hundred `positions`."""
    bits = np.zeros(1000, bool)
    bits[list(positions)] = True
    data = packed({"fc.bitmask": np.packbits(bits), "fc.values": np.ones(100, np.float32)})
    record = make(label, 0.9, seed, net={"sha256": sha256_of(data)})
    write_bytes(net_path(save(folder, record)), data)


def of_folder(folder, key):
    results = read(folder)
    (finding,) = findings(rank(results), results, folder, [KEYS[key]])
    return finding.answers[0].verdict if finding.answers else None


def test_masks_of_two_seeds_that_are_one_mask_overlap_far_above_chance(tmp_path):
    """100 of 1000 kept: chance shares 10 of 190, a Jaccard index of 1 / 19; the same mask has 1, 19 times as much."""
    for seed in range(3):
        with_net(tmp_path, "imp", seed, range(100))
        with_net(tmp_path, "awt", seed, range(10 * seed, 1000, 10) if seed < 1 else range(90, 190))
    said = of_folder(tmp_path, "seeds")
    assert said.startswith("The kept positions of two seeds of one method overlap ")
    assert "to 19.00 times (imp at 0.9) as much as by chance." in said


def test_masks_that_share_a_tenth_are_at_chance(tmp_path):
    """The twin: 0..99 and 90..189 share 10."""
    for seed, first in enumerate((0, 90)):
        with_net(tmp_path, "imp", seed, range(first, first + 100))
    said = "The kept positions of two seeds of one method overlap as by chance: 1.00 to 1.00 times."
    assert of_folder(tmp_path, "seeds") == said
    assert of_folder(tmp_path, "methods") is None


def curved(label, robust, sparsity=0.9):
    curve = [{"epoch": 5 * (i + 1), "clean": 0.9, "robust": value} for i, value in enumerate(robust)]
    stages = [
        {"name": "search", "passes": 1, "seconds": None},
        {"name": "train", "passes": 2, "seconds": 1.0, "curve": curve},
    ]
    return [make(label, sparsity, 0, cost={"stages": stages})]


def test_the_last_epoch_is_set_against_the_best():
    said = verdict("overfitting", curved("imp", (0.3, 0.5, 0.4)), curved("awt", (0.1, 0.2, 0.3)))
    assert said.startswith("imp at 0.9 loses most of all rows with a curve: 10.0 (10.0 to 10.0) points")
    assert verdict("overfitting", curved("awt", (0.1, 0.2, 0.3))).startswith(
        "awt at 0.9 loses most of all rows with a curve: 0.0 "
    )
    assert verdict("overfitting", rows("imp", 50)) is None
