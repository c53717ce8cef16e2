"""What may be ranked together, and rows whose numbers can be had on paper."""

from __future__ import annotations

import io
import json
import math
import statistics
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.bench import stats
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.protocol import PROTOCOLS
from prunebench.leaderboard.render.text import power_of, took
from prunebench.leaderboard.table import rank, read
from tests.support.records import ATTACKS, PRUNABLE, make, outcomes, refusal, save


def results(*records):
    return {Path(f"{i:02d}.json"): record for i, record in enumerate(records)}


def only_board(*records):
    (board,) = rank(results(*records)).boards
    return board


def scored(seed, suite, *attacks):
    best = {"suite": suite, "robust": 50 - seed, "by": dict.fromkeys(attacks, 0), "long": 0, "passes": 0}
    return make(seed=seed, robust=50 - seed, beyond={"best": best})


def test_the_best_known_rate_needs_one_suite_whose_transfer_may_be_missing():
    """50 and 49 of 100: the second net has no dense net beside it."""
    (row,) = only_board(scored(0, "best-1", "malt", "transfer"), scored(1, "best-1", "malt")).rows
    assert row.best.mean == 0.495
    for other in (scored(1, "best-2", "malt"), scored(1, "best-1", "md")):  # the twins
        (row,) = only_board(scored(0, "best-1", "malt"), other).rows
        assert row.best is None


def three(pruner, robust, sparsity=0.9, **changes):
    """Three seeds that are `robust` - 2, `robust`, `robust` + 2 of 100: a standard deviation of 2 points."""
    return [make(pruner, sparsity, seed, robust=robust + 2 * (seed - 1), **changes) for seed in range(3)]


def steps(pruner, counts, sparsity=0.9, options=None, **changes):
    """A record a seed with these robust counts of 100."""
    job = {"options": options or {}}
    return [make(pruner, sparsity, seed, robust=count, job=job, **changes) for seed, count in enumerate(counts)]


def odds(rate):
    return math.log(rate / (1 - rate))


def test_a_row_is_the_mean_over_seeds_with_an_interval_from_its_own_seeds():
    board = only_board(*three("imp", 50), *steps("hydra", [10, 30, 50]))
    row = board.rows[0]
    assert (row.pruner, row.sparsity, row.seeds, row.robust.counts) == ("imp", Decimal("0.9"), (0, 1, 2), (48, 50, 52))
    assert (row.robust.mean, row.robust.interval) == (0.5, "logit-t")
    half = 4.302653 * 0.02 / math.sqrt(3) / 0.25  # t(.975, 2) * sd / sqrt(seeds), over m (1 - m): on the log-odds
    assert (odds(row.robust.low), odds(row.robust.high)) == pytest.approx((-half, half), rel=1e-6)
    wide = board.rows[1].robust  # ten times the spread: no row pays for another
    m = 90.5 / 301
    assert odds(wide.high) - odds(wide.low) == pytest.approx(
        2 * 4.302653 * 0.2 / math.sqrt(3) / (m * (1 - m)), rel=1e-6
    )
    assert row.survived == dict.fromkeys(ATTACKS, 50.0)


def test_intervals_stay_within_0_and_1():
    """With one spread pooled over the board they did not: its dense nets had a clean accuracy of 98.7 +- 4.6."""
    rows = only_board(
        *steps("imp", [98, 97, 100], clean=100), *steps("hydra", [2, 1, 3]), *steps("zero", [0, 0, 0])
    ).rows
    for row in rows:
        assert 0 <= row.robust.low <= row.robust.mean <= row.robust.high <= 1
    high, low, zero = (row.robust for row in rows)
    assert high.mean - high.low > high.high - high.mean > 0 < low.mean - low.low < low.high - low.mean
    assert zero.low == 0 < zero.high


def test_a_row_with_one_seed_has_wilsons_interval_and_ties():
    board = only_board(make("imp", robust=70), *three("hydra", 10), *three("magnitude", 50))
    row = next(row for row in board.rows if row.pruner == "imp")
    p, z2 = 0.7, 1.959963984540054**2
    half = math.sqrt(z2 * (p * (1 - p) / 100 + z2 / 40000)) / (1 + z2 / 100)
    centre = (p + z2 / 200) / (1 + z2 / 100)
    assert (row.robust.low, row.robust.high) == pytest.approx((centre - half, centre + half))
    assert row.robust.interval == "wilson"
    assert "A row with one seed has Wilson's interval" in board.note
    assert {row.pruner: row.place_shown for row in board.rows} == {"imp": "1=", "magnitude": "1=", "hydra": "2"}
    alone = only_board(make("imp", robust=70), make("hydra", robust=10), make("imp", 0.95, robust=5))
    assert [row.place_shown for row in alone.rows] == ["1=", "1=", "1"]
    assert "Every row has one seed" in alone.note
    assert "one seed" not in only_board(*three("imp", 50)).note.removeprefix("Nets of one seed")


def test_a_row_has_the_patterns_that_all_its_nets_have():
    board = only_board(
        *(make("imp", seed=seed, patterns=["2:4", "channel"] if seed else ["channel"]) for seed in range(3)),
        *(make("hydra", seed=seed, patterns=["2:4"] if seed else []) for seed in range(3)),
        make("awt", schema=6),
    )
    assert {row.pruner: row.patterns for row in board.rows} == {"imp": ("channel",), "hydra": (), "awt": ()}


def test_controls_and_references_have_no_place():
    board = only_board(
        *three("dense", 70, 0.0),
        *three("iwi-dense", 40, 0.0),
        *three("imp", 30),
        *three("random", 75),
        *steps("imp", [78, 80, 79], options={"shuffle": True}),
        *steps("random", [1, 2, 3], options={"shuffle": True}),
    )
    shown = [(row.pruner, row.role, row.place_shown, row.place) for row in board.rows]
    assert shown == [
        ("dense", "reference", "ref", None),
        ("iwi-dense", "reference", "ref", None),
        ("imp", "method", "1", 1),
        ("imp:shuffle=true", "control", "control", None),
        ("random", "control", "control", None),
        ("random:shuffle=true", "control", "control", None),
    ]


def test_a_method_with_a_part_replaced_is_a_control_of_that_method_alone():
    """Differences 10, 11, 12 have t = 11 sqrt(3) = 19.1 and p = .0027; times 2 in the family of parts .0055."""
    board = only_board(
        *steps("awt", [60, 62, 65]),
        *steps("awt", [50, 51, 53], options={"start": "initial"}),
        *steps("awt", [50, 52, 55], options={"start": "initial", "shuffle": True}),
        *steps("awt", [50, 52, 55], options={"layers": "global", "start": "rescaled"}),
        *steps("iwi", [50, 52, 55]),
        *steps("iwi", [50, 52, 55], options={"ticket": "random"}),
        *steps("iwi", [50, 52, 55], options={"ticket": "random", "remainder": "small"}),  # two parts
        *steps("iwi", [50, 52, 55], options={"ticket": "hydra"}),  # another method
        *steps("hydra", [50, 52, 55], options={"start": "initial"}),  # not a part of this method
    )
    parts = {(c.pruner, c.control): c for c in board.contrasts if c.family == "parts"}
    assert parts.keys() == {("awt", "awt:start=initial"), ("iwi", "iwi:ticket=random")}
    found = parts["awt", "awt:start=initial"]
    assert found.verdict == "+" and found.adjusted == pytest.approx(2 * found.p)
    methods = {row.pruner for row in board.rows if row.role == "method"}
    assert methods == {"awt", "iwi", "iwi:ticket=hydra", "hydra:start=initial"}
    assert all(row.place is None for row in board.rows if row.role == "control")


def test_a_place_counts_the_methods_that_are_better():
    """Differences 8, 9, 10 by seed have t = 9 sqrt(3) = 15.6 and p = .0041; times 6 pairs .0245."""
    board = only_board(
        *steps("a", [40, 40, 40]),
        *steps("b", [48, 49, 50]),
        *steps("c", [56, 58, 60]),
        *steps("d", [20, 45, 79]),
    )
    found = {(c.pruner, c.control): (c.family, c.verdict) for c in board.contrasts}
    assert {family for family, _ in found.values()} == {"places"}
    assert found["a", "b"] == found["b", "c"] == found["a", "c"] == ("places", "-")
    assert [found[pair][1] for pair in (("a", "d"), ("b", "d"), ("c", "d"))] == ["="] * 3
    assert [(row.pruner, row.place_shown) for row in board.rows] == [("c", "1="), ("d", "1="), ("b", "2"), ("a", "3")]


def test_who_is_beaten_is_behind_all_who_beat_the_winner():
    """a beats b and b beats c by 8, 9, 10 at three seeds: p = .0041, times 3 pairs .0123. a and c share no seed."""
    a, b = steps("a", [58, 59, 60]), steps("b", [50] * 6)
    c = [make("c", seed=seed, robust=robust) for seed, robust in ((3, 42), (4, 41), (5, 40))]
    board = only_board(*a, *b, *c)
    assert {pair for pair in board.contrasts if pair.verdict != "="} == {
        pair for pair in board.contrasts if {pair.pruner, pair.control} != {"a", "c"}
    }
    assert {row.pruner: row.place for row in board.rows} == {"a": 1, "b": 2, "c": 3}
    assert {row.pruner: row.place for row in only_board(*a, *c).rows} == {"a": 1, "c": 1}


def test_pairs_with_magnitude_are_judged_once_with_the_primary_contrasts():
    board = only_board(*steps("imp", [48, 49, 50]), *steps("hydra", [40, 42, 41]), *steps("magnitude", [40, 40, 40]))
    found = {(c.pruner, c.control): (c.family, c.verdict) for c in board.contrasts}
    assert found == {
        ("imp", "magnitude"): ("primary", "+"),
        ("hydra", "magnitude"): ("primary", "="),
        ("hydra", "imp"): ("places", "-"),
    }
    assert {row.pruner: row.place_shown for row in board.rows} == {"imp": "1", "magnitude": "2=", "hydra": "2="}


def test_what_is_compared_does_not_depend_on_results():
    def pairs(*counts):
        records = [
            record
            for name, count in zip(("imp", "magnitude", "random"), counts, strict=True)
            for record in three(name, count)
        ]
        return [(c.family, c.pruner, c.control) for c in only_board(*records).contrasts]

    assert (
        pairs(10, 50, 70)
        == pairs(70, 50, 10)
        == [
            ("primary", "imp", "magnitude"),
            ("secondary", "imp", "random"),
            ("secondary", "magnitude", "random"),
        ]
    )


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


def test_a_board_knows_how_long_its_nets_took_and_counts_shared_stages_once():
    """Stages of 3,600 s, which two nets share, and of 60 and 70 s; three scorings of 3 s. One net's times are lost."""

    def net(seed, *seconds, device="cpu"):
        stages = [{"name": "fit", "passes": 10, "seconds": each} for each in seconds]
        total = None if None in seconds else sum(seconds)
        cost = {"stages": stages, "train_seconds": total}
        return make(seed=seed, cost=cost, env={"device": device, "cpu": "a processor"})

    board = only_board(net(0, 3600.0, 60.0), net(1, 3600.0, 70.0), net(2, 3600.0, None, device="a card"))
    assert (board.seconds, board.timed, board.records) == (3736.0, 2, 3)
    assert board.processors == ("a card", "a processor")
    assert took(board) == "1 h 02 min of training and scoring of 2 of 3 nets, scored on a card and a processor"
    assert took(only_board(net(0, 27.0))) == "30 s of training and scoring, scored on a processor"
    assert took(only_board(net(0, 7200.0))) == "2 h 00 min of training and scoring, scored on a processor"
    lost = only_board(make(cost={"train_seconds": None}))
    assert took(lost) == "An unknown time of training, scored on an unknown processor"


def test_attacks_that_were_not_exact_are_named_beside_the_device():
    tf32 = {"name": "tf32", "repaired": 3}
    exact, other = (
        make(cost={"device": "H200"}),
        make(seed=1, cost={"device": "H200"}, schema=8, attack_arithmetic=tf32),
    )
    assert only_board(exact).rows[0].scored_on == ("H200",)
    assert only_board(exact, other).rows[0].scored_on == ("H200", "attacks in tf32")


def test_the_true_sparsity_is_the_counted_one():
    more = {"nonzero": 50, "layers": [{"name": "fc", "shape": [PRUNABLE], "nonzero": 50}]}
    assert only_board(make(sparsity=0.9, net=more)).rows[0].true_sparsity == 0.95


def test_055_of_1000_is_enough_with_550_zeros_and_not_with_549():
    def net(zeros):
        return {"nonzero": 1000 - zeros, "layers": [{"name": "fc", "shape": [1000], "nonzero": 1000 - zeros}]}

    assert only_board(make(sparsity=0.55, net=net(550))).rows[0].true_sparsity == 0.55
    with pytest.raises(PrunebenchError, match=r"00.json asks for sparsity 0.55 but keeps 451 of 1000 weights"):
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
    with pytest.raises(PrunebenchError, match=r"00.json and 01.json are both records of imp at sparsity 0.9 with"):
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
        assert (row.pruner, row.robust, row.clean, row.place_shown) == (
            same.pruner,
            same.robust,
            same.clean,
            same.place_shown,
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


def contrast(board, pruner, control):
    (found,) = (c for c in board.contrasts if (c.pruner, c.control) == (pruner, control))
    return found


def test_contrasts_are_paired_by_seed():
    """Seeds differ by 20 points, methods by 2, 3 and 4: t = 3 sqrt(3) = 5.2, p = 1 - t / sqrt(2 + t^2) = .0351."""
    found = contrast(only_board(*steps("imp", [22, 43, 64]), *steps("magnitude", [20, 40, 60])), "imp", "magnitude")
    t, half = 3 * math.sqrt(3), 4.302653 * 0.01 / math.sqrt(3)
    assert (found.family, found.seeds, found.verdict) == ("primary", (0, 1, 2), "+")
    assert (found.gap, found.sd, found.p) == pytest.approx((0.03, 0.01, 1 - t / math.sqrt(2 + t * t)))
    assert (found.low, found.high) == pytest.approx((0.03 - half, 0.03 + half), rel=1e-6)
    # The same counts with other seeds: the blocks are others, and nothing is left of it.
    other = [make("imp", 0.9, seed, robust=count) for seed, count in ((0, 43), (1, 64), (2, 22))]
    assert contrast(only_board(*other, *steps("magnitude", [20, 40, 60])), "imp", "magnitude").verdict == "="


def test_only_seeds_that_both_have_count():
    """Seed 0 is missing on one side, seed 3 on the other: the differences are 3 and 4 of 100."""
    ours = [make("imp", 0.9, seed, robust=count) for seed, count in ((1, 43), (2, 64), (3, 1))]
    found = contrast(only_board(*ours, *steps("magnitude", [70, 40, 60])), "imp", "magnitude")
    assert (found.seeds, found.gap) == ((1, 2), pytest.approx(0.035))


def test_without_two_common_seeds_nothing_is_told_apart():
    lonely = [make("imp", 0.9, seed, robust=80) for seed in (5, 6, 7)]
    board = only_board(*lonely, *steps("magnitude", [1, 2, 3]), make("hydra", 0.9, 0, robust=80))
    none, one = (contrast(board, pruner, "magnitude") for pruner in ("imp", "hydra"))
    assert (none.seeds, none.gap, none.low, none.p, none.verdict) == ((), None, None, 1.0, "=")
    assert (one.seeds, one.gap, one.low, one.p, one.verdict) == ((0,), pytest.approx(0.79), None, 1.0, "=")
    assert {row.place_shown for row in board.rows} == {"1="}


def test_two_common_seeds_are_too_few_for_a_verdict_a_place_or_power():
    """imp is 40 of 100 below magnitude at every seed. With three seeds t = 240 sqrt(3); the twin has two."""
    for seeds, verdict, place in ((3, "-", "2"), (2, "=", "1=")):
        board = only_board(*steps("imp", [20] * seeds), *steps("magnitude", [60] * seeds))
        found = contrast(board, "imp", "magnitude")
        assert (found.gap, found.verdict, found.low is None) == (pytest.approx(-0.4), verdict, seeds == 2)
        assert next(row.place_shown for row in board.rows if row.pruner == "imp") == place
        assert (board.powers[0].mean is None) == (seeds == 2)
        assert ("fewer than 3 seeds are not tested" in board.note) == (seeds == 2)


def test_methods_are_held_against_their_controls_and_shuffles_against_none():
    records = [*steps("imp", [60, 62, 65]), *steps("random", [50, 52, 54]), *steps("magnitude", [60, 61, 62])]
    records += steps("imp", [58, 60, 62], options={"shuffle": True})
    records += steps("imp", [20, 22, 24], options={"rounds": 2, "shuffle": True})
    found = {(c.family, c.pruner, c.control) for c in only_board(*records).contrasts}
    assert found == {
        ("primary", "imp", "magnitude"),
        ("secondary", "imp", "random"),
        ("secondary", "imp", "imp:shuffle=true"),
        ("secondary", "magnitude", "random"),
    }


def test_holm_works_in_each_family_apart():
    """p = .0351 alone is clear; beside four other primary contrasts it would have to lie below .01, and does not."""
    few = [*steps("imp", [22, 43, 64]), *steps("magnitude", [20, 40, 60])]
    many = [record for name in "abcd" for record in steps(name, [20, 41, 59])]
    shuffles = steps("imp", [20, 41, 59], options={"shuffle": True}) + steps("random", [20, 41, 59])
    assert contrast(only_board(*few), "imp", "magnitude").verdict == "+"
    assert contrast(only_board(*few, *shuffles), "imp", "magnitude").verdict == "+"
    beside = contrast(only_board(*few, *many), "imp", "magnitude")
    assert beside.verdict == "=" and beside.adjusted == pytest.approx(5 * beside.p)


def test_equal_counts_have_p_1_and_a_constant_gap_does_not_have_p_0():
    board = only_board(*steps("a", [50, 51, 52]), *steps("b", [51, 52, 53]), *steps("magnitude", [50, 51, 52]))
    assert contrast(board, "a", "magnitude").p == 1.0
    t = math.sqrt(12 * 3)
    assert contrast(board, "b", "magnitude").p == pytest.approx(1 - t / math.sqrt(2 + t * t))


# The second opinion: seeds and images drawn anew


def ranked(folder):
    return rank(read(folder), folder).boards[0]


def kept(folder, *records):
    for record in records:
        save(folder, record)
    return ranked(folder)


def test_the_bootstrap_is_of_the_raw_outcomes_and_needs_them_all(tmp_path):
    """The images that stand are the first ones: gaps of 22, 23 and 24 images that one method alone has right."""
    records = [*steps("imp", [62, 63, 64]), *steps("magnitude", [40, 40, 40])]
    found = contrast(kept(tmp_path, *records), "imp", "magnitude")
    low, high = found.bootstrap
    spread = math.sqrt(0.23 * 0.77 / 100)  # of a share of 23 in 100 images drawn anew; the seeds add next to nothing
    assert (low, high) == pytest.approx((0.23 - 1.96 * spread, 0.23 + 1.96 * spread), abs=0.02)
    assert found.agrees is True
    assert contrast(kept(tmp_path, *records), "imp", "magnitude").bootstrap == found.bootstrap
    outcomes_path(tmp_path / "digits-linf" / "imp-s0.9-seed1.json").unlink()
    without = contrast(ranked(tmp_path), "imp", "magnitude")
    assert (without.bootstrap, without.agrees, without.p) == (None, None, found.p)
    assert rank(read(tmp_path)).boards[0].contrasts[0].bootstrap is None


def test_the_bootstrap_of_a_contrast_depends_on_its_own_records_alone(tmp_path):
    records = [*steps("imp", [52, 50, 54]), *steps("magnitude", [40, 47, 50])]
    first = contrast(kept(tmp_path / "a", *records), "imp", "magnitude")
    beside = contrast(kept(tmp_path / "b", *records, *three("hydra", 60)), "imp", "magnitude")
    assert first.bootstrap == beside.bootstrap


def test_test_and_bootstrap_can_be_at_odds(tmp_path):
    """One image more at every seed: seeds leave no doubt (t = 6), but without that one image nothing is left."""
    found = contrast(kept(tmp_path, *steps("imp", [51] * 4), *steps("magnitude", [50] * 4)), "imp", "magnitude")
    assert found.low > 0 and found.bootstrap[0] == 0
    assert found.agrees is False


def test_images_beyond_measure_do_not_fill_the_memory(tmp_path, monkeypatch):
    """At 20,001 images there is a test, and no bootstrap; drawing a million images 2,000 times would take 8 GB."""

    def never(record):
        pytest.fail("images were drawn")

    monkeypatch.setattr("prunebench.leaderboard.table.image_draws", never)
    records = [make(pruner, seed=seed, n=20_001) for pruner in ("imp", "magnitude") for seed in range(2)]
    found = contrast(kept(tmp_path, *records), "imp", "magnitude")
    assert (found.p, found.bootstrap) == (1.0, None)
    with pytest.raises(pytest.fail.Exception):
        kept(tmp_path / "small", *three("imp", 50))


def test_outcomes_that_are_not_the_records_are_refused(tmp_path):
    kept(tmp_path, *three("imp", 50), *three("magnitude", 40))
    path = outcomes_path(tmp_path / "digits-linf" / "imp-s0.9-seed1.json")
    path.write_bytes(outcomes(100, 80, 79))
    with pytest.raises(PrunebenchError, match=r"imp-s0.9-seed1.outcomes.npz .* sha256"):
        ranked(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": np.zeros(100), "predicted": np.zeros(100), "survived/a": np.ones(100, bool)},
        {"labels": np.zeros(100), "predicted": np.zeros(99)},
        {"labels": np.zeros(100), "predicted": np.zeros(100), "survived/a": np.array(["x"] * 100)},
        {"predicted": np.zeros(100)},
    ],
)
def test_outcomes_that_count_otherwise_are_refused_in_a_sentence(tmp_path, arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path = save(tmp_path, make(outcomes=sha256_of(buffer.getvalue())))
    outcomes_path(path).write_bytes(buffer.getvalue())
    with pytest.raises(
        PrunebenchError, match=r"does not hold 100 images of which 50 survive, as .* says; score the net"
    ):
        ranked(tmp_path)


# Power


def test_power_is_that_of_the_primary_contrasts_with_their_own_spreads():
    board = only_board(*steps("a", [41, 42, 43]), *steps("b", [38, 42, 46]), *steps("magnitude", [40, 40, 40]))
    (found,) = board.powers
    each = [stats.power(0.03, sd, 3, 2) for sd in (0.01, 0.04)]
    assert (found.sparsity, found.tests, found.fewest, found.most) == (Decimal("0.9"), 2, 3, 3)
    assert (found.mean, found.lowest, found.highest) == pytest.approx((sum(each) / 2, min(each), max(each)))
    assert list(found.planned) == [10, 15, 20]
    assert found.planned[15] == pytest.approx(sum(stats.power(0.03, sd, 15, 2) for sd in (0.01, 0.04)) / 2)
    assert only_board(*steps("a", [41, 42, 43]), *steps("b", [38, 42, 46])).powers == ()
    (alone,) = only_board(*steps("a", [41]), *steps("magnitude", [40])).powers
    assert (alone.mean, alone.planned) == (None, {})


def test_each_contrast_has_the_power_of_its_own_seeds():
    """Twelve seeds with a spread of 4 points and three with one of 1: more seeds are planned only for the latter."""
    spread = [36, 44] * 6
    board = only_board(*steps("a", [41, 42, 43]), *steps("b", spread), *steps("magnitude", [40] * 12))
    (found,) = board.powers
    wide = statistics.stdev(count / 100 for count in spread)
    each = stats.power(0.03, 0.01, 3, 2), stats.power(0.03, wide, 12, 2)
    assert (found.fewest, found.most, found.mean) == (3, 12, pytest.approx(sum(each) / 2))
    planned = stats.power(0.03, 0.01, 10, 2), stats.power(0.03, wide, 12, 2)
    assert found.planned[10] == pytest.approx(sum(planned) / 2)
    assert power_of(board, Decimal("0.9")).startswith("3 to 12 seeds detect a true difference of 3 points")
    assert "; 10 or more would with " in power_of(board, Decimal("0.9"))
