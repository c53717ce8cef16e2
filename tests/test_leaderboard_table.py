"""What may be ranked together, and rows whose numbers can be had on paper."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import PrunebenchError
from bench.protocol import PROTOCOLS
from leaderboard.table import rank, read
from tests.records import ATTACKS, PRUNABLE, make, refusal, save


def results(*records):
    return {Path(f"{i:02d}.json"): record for i, record in enumerate(records)}


def only_board(*records):
    (board,) = rank(results(*records)).boards
    return board


def three(pruner, robust, sparsity=0.9, **changes):
    """Three seeds that are `robust` - 2, `robust`, `robust` + 2 of 100: variance 4 points squared."""
    return [make(pruner, sparsity, seed, robust=robust + 2 * (seed - 1), **changes) for seed in range(3)]


def test_a_row_is_the_mean_over_seeds_with_the_pooled_interval():
    board = only_board(*three("imp", 50), *three("random", 30))
    assert board.df == 4
    row = board.rows[0]
    half = 2.776445 * 0.02 / math.sqrt(3)  # t(.975, 4) * sd / sqrt(seeds)
    assert (row.pruner, row.sparsity, row.seeds, row.robust.counts) == ("imp", Decimal("0.9"), (0, 1, 2), (48, 50, 52))
    assert row.robust.mean == 0.5
    assert row.robust.half == pytest.approx(half, rel=1e-6)
    assert (row.robust.low, row.robust.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)
    # The clean counts are the same for every seed, pooled on their own: what rounding to 1 of 100 spreads is left.
    assert row.clean.half == pytest.approx(2.776445 * 0.01 / math.sqrt(12) / math.sqrt(3), rel=1e-6)
    assert row.survived == dict.fromkeys(ATTACKS, 50.0)
    assert [row.standing for row in board.rows] == ["1", "2"]


def test_a_single_seed_borrows_the_spread_of_the_board():
    board = only_board(*three("imp", 50), make("random", robust=30))
    random = board.rows[1]
    assert board.df == 2
    assert random.robust.half == pytest.approx(4.302653 * 0.02, rel=1e-6)  # t(.975, 2), one seed


def test_intervals_are_cut_at_0_and_1():
    rows = only_board(*three("imp", 98, clean=100), *three("random", 2)).rows
    assert rows[0].robust.high == 1.0 < rows[0].robust.mean + rows[0].robust.half
    assert rows[1].robust.low == 0.0 > rows[1].robust.mean - rows[1].robust.half


def test_without_a_second_seed_intervals_are_wilsons_and_all_tie():
    board = only_board(make("imp", robust=70), make("random", robust=10), make("imp", 0.95, robust=5))
    p, z2 = 0.7, 1.959963984540054**2
    half = math.sqrt(z2 * (p * (1 - p) / 100 + z2 / 40000)) / (1 + z2 / 100)
    centre = (p + z2 / 200) / (1 + z2 / 100)
    assert board.df == 0
    assert (board.rows[0].robust.low, board.rows[0].robust.high) == pytest.approx((centre - half, centre + half))
    assert board.rows[0].robust.half is None
    assert [row.standing for row in board.rows] == ["1=", "1=", "1"]
    assert "No job has two seeds" in board.note
    assert "No job has two seeds" not in only_board(make(), make(seed=1)).note


def test_ties_do_not_chain_and_are_shown():
    # sd .02 with df 6, three seeds: the error of a difference is .01633. Gaps of 4 points: t = 2.45, p = .050;
    # the gap of 8: t = 4.90, p = .0027, times 3 = .0081.
    board = only_board(*three("a", 46), *three("b", 50), *three("c", 54))
    assert [(row.pruner, row.standing) for row in board.rows] == [("c", "1="), ("b", "1="), ("a", "2")]


def test_places_are_among_the_rows_of_one_sparsity():
    board = only_board(*three("dense", 70, 0.0), *three("imp", 50), *three("imp", 40, 0.95), *three("random", 10))
    shown = [(str(row.sparsity), row.pruner, row.standing) for row in board.rows]
    assert shown == [("0", "dense", "ref"), ("0.9", "imp", "1"), ("0.9", "random", "2"), ("0.95", "imp", "1")]


def test_two_unpruned_nets_are_ranked():
    board = only_board(*three("dense", 70, 0.0), *three("wide", 70, 0.0))
    assert [row.standing for row in board.rows] == ["1=", "1="]


def test_options_make_another_row_and_are_part_of_the_name():
    board = only_board(make(), make(job={"options": {"rounds": 3}}))
    assert {row.pruner for row in board.rows} == {"imp", "imp:rounds=3"}


def test_costs_are_means_and_unknown_stays_unknown():
    one = make(cost={"train_passes": 10, "train_seconds": 1.0, "device": "cpu"})
    two = make(seed=1, cost={"train_passes": 20, "train_seconds": 2.0, "device": "H200"})
    lost = make(seed=2, cost={"train_passes": 30, "train_seconds": None})
    row = only_board(one, two).rows[0]
    assert (row.train_passes, row.train_seconds, row.devices) == (15.0, 1.5, ("H200", "cpu"))
    assert only_board(one, two, lost).rows[0].train_seconds is None


def test_the_true_sparsity_is_the_counted_one():
    more = {"nonzero": 50, "layers": [{"name": "fc", "shape": [PRUNABLE], "nonzero": 50}]}
    assert only_board(make(sparsity=0.9, net=more)).rows[0].true_sparsity == 0.95


def test_055_of_1000_is_enough_with_550_zeros_and_not_with_549():
    def net(zeros):
        return {"nonzero": 1000 - zeros, "layers": [{"name": "fc", "shape": [1000], "nonzero": 1000 - zeros}]}

    assert only_board(make(sparsity=0.55, net=net(550))).rows[0].true_sparsity == 0.55
    with pytest.raises(PrunebenchError, match=r"00.json was asked for sparsity 0.55 and has 451 of 1000 weights left"):
        only_board(make(sparsity=0.55, net=net(549)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"protocol": {"version": 2}}, "versions of the protocol, 1 and 2"),
        ({"protocol": {"sha256": "a" * 64}}, "rules"),
        ({"data": {"sha256": "a" * 64}}, r"test images .*dddddddddddd\.\.\. and aaaaaaaaaaaa"),
        ({"n": 200}, "numbers of images, 100 and 200"),
        ({"score": {"survived": {"apgd-ce": 50}}}, "attacks"),
    ],
)
def test_what_differs_is_not_ranked_together(change, what):
    with pytest.raises(PrunebenchError, match=f"00.json and 01.json have different {what}"):
        rank(results(make(), make(seed=1, **change)))
    for changes in ({}, change):  # and each kind alone is
        assert len(only_board(make(**changes), make(seed=1, **changes)).rows) == 1


def test_other_training_images_are_refused_and_unknown_ones_are_not():
    def trained_on(train, seed):
        return make(seed=seed, data={"train_sha256": train})

    assert only_board(trained_on("a" * 64, 0), trained_on(None, 1), trained_on("a" * 64, 2)).records == 3
    with pytest.raises(PrunebenchError, match=r"00.json and 02.json have different training images"):
        rank(results(trained_on("a" * 64, 0), trained_on(None, 1), trained_on("b" * 64, 2)))


def test_two_records_of_one_job_are_refused():
    with pytest.raises(
        PrunebenchError, match=r"00.json and 01.json are records of the same job, imp at sparsity 0.9 with"
    ):
        rank(results(make(), make(robust=60)))
    assert only_board(make(), make(seed=1)).records == 2


def test_another_protocol_is_another_board():
    mnist = PROTOCOLS["mnist-linf"]
    other = make(protocol={"name": mnist.name, "sha256": mnist.sha256}, data={"sha256": "a" * 64})
    boards = rank(results(other, make())).boards
    assert [board.protocol for board in boards] == ["digits-linf", "mnist-linf"]


@pytest.mark.parametrize(
    ("change", "official"),
    [
        ({}, True),
        ({"official": False}, False),
        ({"protocol": {"sha256": "a" * 64}}, False),
        ({"protocol": {"name": "x"}}, False),
    ],
)
def test_official_needs_the_built_in_rules_and_the_record(change, official):
    assert only_board(make(**change)).official == official


def test_refusals_are_kept_with_their_reasons():
    (net,) = rank(results(make(), refusal())).refused
    assert (net.record, net.protocol, net.pruner, net.check) == ("01.json", "digits-linf", None, "finite")
    assert rank(results(refusal(protocol=None))).boards == ()


def test_reading_names_files_from_their_folder(tmp_path):
    save(tmp_path, make())
    assert [path.as_posix() for path in read(tmp_path)] == ["digits-linf/imp-s0.9-seed0.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrunebenchError, match="no records"):
        read(tmp_path / "empty")


def test_reading_refuses_an_edited_record(tmp_path):
    path = save(tmp_path, make())
    values = json.loads(path.read_text())
    values["score"]["clean"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(PrunebenchError, match="was edited"):
        read(tmp_path)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.permutations(range(9)))
def test_the_order_of_the_files_does_not_matter_to_the_numbers(order):
    records = [*three("a", 46), *three("b", 50), *three("c", 54)]
    shown = only_board(*(records[i] for i in order))
    expected = only_board(*records)
    for row, same in zip(shown.rows, expected.rows, strict=True):
        assert (row.pruner, row.robust, row.clean, row.standing) == (
            same.pruner,
            same.robust,
            same.clean,
            same.standing,
        )


def test_weak_attacks_and_curves_are_means_as_far_as_every_seed_has_them():
    point = {"eps": "8/255", "robust": 40}
    first = make(robust=50, score={"weak": {"fgsm": 60, "pgd-20": 55}, "curve": [point, {"eps": "0.2", "robust": 30}]})
    second = make(seed=1, robust=50, score={"weak": {"fgsm": 63}, "curve": [{"eps": "8/255", "robust": 41}]})
    (row,) = only_board(first, second).rows
    assert (row.weak, row.curve) == ({"fgsm": 61.5}, {"8/255": 40.5})


def test_doubts_name_the_seeds_whose_flags_are_up():
    def flag(value, sentence="Gap."):
        return {"name": "gap", "value": value, "threshold": 0.1, "sentence": sentence}

    said = [flag(0.2), flag(0.1), flag(0.3), flag(0.4, "Wide gap.")]
    (row,) = only_board(*(make(seed=seed, score={"flags": [one]}) for seed, one in enumerate(said))).rows
    assert [(doubt.sentence, doubt.seeds) for doubt in row.flags] == [("Wide gap.", (0, 2, 3))]


def seeds_of(label, counts, sparsity=0.9, options=None):
    """Records of one row, a seed each, with these robust counts of 100."""
    return {
        Path(f"{label}{options or ''}{sparsity}-{seed}.json"): make(
            label, sparsity, seed, robust=count, job={"options": options or {}}
        )
        for seed, count in enumerate(counts)
    }


def test_methods_are_held_against_their_controls():
    """On paper: sd 2 with 6 degrees of freedom, t = 10 / (2 sqrt(2/3)) = 6.1 and 1.2; half = 2.447 * 2 sqrt(2/3)."""
    records = seeds_of("imp", [60, 62, 64]) | seeds_of("random", [50, 52, 54])
    records |= seeds_of("imp", [58, 60, 62], options={"shuffle": True})
    (board,) = rank(records).boards
    found = {(each.pruner, each.control): each for each in board.contrasts}
    assert set(found) == {("imp", "random"), ("imp", "imp:shuffle=true")}  # a shuffle is no method, random has none
    assert found["imp", "random"].gap == pytest.approx(0.1) and found["imp", "random"].clear
    assert found["imp", "imp:shuffle=true"].gap == pytest.approx(0.02) and not found["imp", "imp:shuffle=true"].clear
    assert found["imp", "random"].half == pytest.approx(0.03996, abs=1e-5)


def test_a_method_below_its_control_is_seen_and_other_options_are_no_control():
    records = seeds_of("imp", [50, 52, 54]) | seeds_of("magnitude", [60, 62, 64])
    records |= seeds_of("imp", [20, 22, 24], options={"rounds": 2, "shuffle": True})
    (board,) = rank(records).boards
    assert [(each.pruner, each.control, each.clear) for each in board.contrasts] == [("imp", "magnitude", True)]
    assert board.contrasts[0].gap == pytest.approx(-0.1)


def test_with_one_seed_nothing_is_clear():
    (board,) = rank(seeds_of("imp", [80]) | seeds_of("random", [10])).boards
    assert [(each.gap, each.half, each.clear) for each in board.contrasts] == [(pytest.approx(0.7), None, False)]
