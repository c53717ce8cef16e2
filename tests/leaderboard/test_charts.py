"""Charts: places against values worked out on paper, titles by rule with twins, colours that all readers can tell."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import save as packed

from prunebench.bench.beside import net_path
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.leaderboard.overfitting import course, losses
from prunebench.leaderboard.site import charts, looks
from prunebench.leaderboard.site.charts import accuracy, classes, cost, curves, intervals, masks, sizes, weights
from prunebench.leaderboard.site.charts.common import shown
from prunebench.leaderboard.site.svg import Scale, apart, around, ticks
from prunebench.leaderboard.table import rank, read
from tests.support.records import make, save

NOISE = (0, 1, -1)


def rows(label, robust, sparsity=0.9, **changes):
    return [make(label, sparsity, i, robust=robust + more, **changes) for i, more in enumerate(NOISE)]


def board_of(*groups):
    records = {Path(f"{i}.json"): record for i, record in enumerate(r for group in groups for r in group)}
    return rank(records).boards[0], records


def sound(chart):
    """The chart as XML; its parts stay inside its frame."""
    root = ET.fromstring(chart.svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", chart.svg):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    for x, y in re.findall(r'x="([\d.-]+)" y="([\d.-]+)"', chart.svg):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    assert root.get("aria-label").startswith(" ".join(chart.title.split()))
    return root


# The parts


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (30, 72, [30, 40, 50, 60, 70]),
        (66.2, 68.9, [66.5, 67, 67.5, 68, 68.5]),
        (0, 59, [0, 10, 20, 30, 40, 50]),
    ],
)
def test_ticks_are_round_and_inside(low, high, found):
    assert ticks(low, high) == pytest.approx(found)


def test_some_ticks_fit_every_range():
    for high in np.geomspace(1e-3, 1e4, 200):
        assert 2 <= len(ticks(0.0, float(high))) <= 7


def test_a_scale_maps_and_holds_values_inside():
    scale = Scale(0, 10, 100, 50)
    assert [scale(value) for value in (0, 5, 10, 99, -99)] == [100, 75, 50, 50, 100]
    low, high = around([3, 3])
    assert low < 3 < high


def test_labels_are_spread_around_their_places():
    """Two at 10 and 12 need 16 pixels: 3 and 19; one far away stays; at the edge they are pushed inside."""
    assert apart([10, 12, 100], 16) == pytest.approx([3, 19, 100])
    assert apart([12, 10], 16) == pytest.approx([19, 3])
    assert apart([1, 1], 16, low=0) == pytest.approx([0, 16])
    assert apart([99, 99], 16, high=100) == pytest.approx([84, 100])
    crowd = apart([50.0] * 9, 16)
    assert all(b - a == pytest.approx(16) for a, b in pairwise(crowd))


# Each chart


def test_lines_are_at_their_places_and_the_title_says_who_wins():
    """Robust 50 at .9 on a scale from the lowest to the highest end of an interval, with a margin of .06."""
    here = [rows(name, robust, s) for s in (0.9, 0.95) for name, robust in (("imp", 60), ("magnitude", 50))]
    board, _ = board_of(*here, rows("dense", 70, 0.0))
    chart = accuracy.against_sparsity(board)
    assert chart.title == "imp beats magnitude pruning at 0.9 and 0.95"
    root = sound(chart)
    ends = [100 * end for row in board.rows for end in (row.robust.low, row.robust.high)]
    low, high = min(ends), max(ends)
    y = accuracy.BOTTOM - (accuracy.BOTTOM - accuracy.TOP) * (50 - low + 0.06 * (high - low)) / (1.12 * (high - low))
    marks = [path.get("d") for path in root if path.get("class") == "mark s0 f0"]
    assert any(re.match(rf"M[\d.]+ {y:.1f}m", d) for d in marks), (y, marks)
    words = [text.text for text in root.iter("text")]
    assert {"imp 60.0", "magnitude 50.0", "dense, unpruned 70.0", "0.9", "0.95"} <= set(words)


def test_a_single_sparsity_has_an_interval_a_row():
    """Every row has a standard deviation of 1 point; from left to right magnitude, imp, dense."""
    board, _ = board_of(rows("imp", 60), rows("magnitude", 50), rows("dense", 70, 0.0))
    chart = accuracy.against_sparsity(board)
    root = sound(chart)
    assert chart.title == "imp beats magnitude pruning at 0.9" and "lines: 95 % intervals" in chart.sentence
    words = [text.text for text in root.iter("text")]
    assert [word for word in words if word in ("imp", "magnitude", "dense, unpruned")] == [
        "dense, unpruned",
        "imp",
        "magnitude",
    ]
    assert {"70.0", "60.0", "50.0"} <= set(words)
    lows, highs = zip(*re.findall(r'class="line s\d+" d="M([\d.]+) [\d.]+L([\d.]+) ', chart.svg), strict=True)
    places = [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]
    assert places == sorted(places, reverse=True) and all(intervals.LEFT < a < b < intervals.RIGHT for a, b in places)
    robust = next(row.robust for row in board.rows if row.pruner == "imp")
    ends = [100 * end for row in board.rows for end in (row.robust.low, row.robust.high)]
    scale = Scale(*around(ends), intervals.LEFT, intervals.RIGHT)
    assert places[1] == pytest.approx((scale(100 * robust.low), scale(100 * robust.high)), abs=0.1)


def test_nobody_wins_where_the_test_cannot_tell():
    assert accuracy.against_sparsity(board_of(rows("imp", 50), rows("magnitude", 50))[0]).title == (
        "No method clearly beats plain magnitude pruning"
    )
    equal = accuracy.against_sparsity(board_of(rows("imp", 50), rows("magnitude", 50))[0])
    assert equal.sentence.endswith(" The board's tests tell no method from magnitude.")
    single = board_of([make("imp", 0.9)], [make("magnitude", 0.9, robust=10)])[0]
    assert accuracy.against_sparsity(single).title == "Robust accuracy at 0.9"
    assert "No method shares enough seeds with magnitude, so no" in accuracy.against_sparsity(single).sentence
    several = board_of([make("imp", 0.9)], [make("imp", 0.95)])[0]
    assert accuracy.against_sparsity(several).title == "Robust accuracy at sparsities 0.9 to 0.95"
    assert accuracy.against_sparsity(board_of(rows("dense", 50, 0.0))[0]) is None


def test_several_winners_are_counted_and_named_below():
    board, _ = board_of(rows("imp", 60), rows("awt", 60, 0.95), rows("magnitude", 50), rows("magnitude", 50, 0.95))
    chart = accuracy.against_sparsity(board)
    assert chart.title == "2 of 2 methods beat magnitude pruning at some sparsity"
    assert "at 0.9, imp clearly above magnitude; at 0.95, awt clearly above magnitude" in chart.sentence


def test_a_crowded_chart_keeps_the_winners_and_counts_the_rest():
    """Twelve methods of 49 to 38 % and a variant that alone beats magnitude: nine rows are drawn."""
    crowd = [rows(f"m{i:02}", 49 - i) for i in range(12)]
    variant = rows("hydra", 60, job={"options": {"layers": "global"}})
    board, _ = board_of(*crowd, variant, rows("magnitude", 50), rows("random", 20))
    there = [row.pruner for row in shown(board, board.rows[0].sparsity)]
    assert there == ["hydra:layers=global", "magnitude", *(f"m{i:02}" for i in range(6)), "random"]
    assert accuracy.against_sparsity(board).sentence.endswith(" 6 other methods are in the table alone.")
    few, _ = board_of(*crowd[:8], variant, rows("magnitude", 50), rows("random", 20))
    assert accuracy.against_sparsity(few).sentence.endswith(" In the table alone: m06 and m07.")


def test_the_price_of_sparsity_is_named():
    """From 70 of 80 to 50 of 70: 20 points of robust accuracy, 10 of clean; the twin loses clean alone.

    awt lost 40 points, but is not drawn without nets at .95; hydra has nets there alone.
    """
    two = [rows("imp", 70), rows("imp", 50, 0.95, clean=70)]
    apart = [rows("awt", 70), rows("awt", 30, 0.925), rows("hydra", 10, 0.95)]
    chart = accuracy.clean_against_robust(board_of(*two, *apart)[0])
    assert chart.title == "Sparsity costs more robust than clean accuracy"
    assert chart.sentence.startswith("From 0.9 to 0.95, imp loses 10.0 points of clean and 20.0 of robust accuracy. A")
    assert chart.sentence.endswith(" In the table alone: awt.")
    sound(chart)
    two = [rows("imp", 50), rows("imp", 50, 0.95, clean=60)]
    assert accuracy.clean_against_robust(board_of(*two)[0]).title == "Sparsity costs more clean than robust accuracy"
    chart = accuracy.clean_against_robust(board_of(*apart)[0])
    assert "No method shown has nets from 0.9 to 0.95. A line leads from" in chart.sentence
    chart = accuracy.clean_against_robust(board_of(rows("imp", 50), rows("awt", 40))[0])
    assert chart.sentence == "One mark per method. Up and right is better."


def staged(label, *passes):
    stages = [{"name": f"stage {i}", "passes": each, "seconds": 1.0} for i, each in enumerate(passes)]
    return rows(label, 50, cost={"stages": stages, "train_passes": sum(passes), "train_seconds": 90.0})


def test_bars_are_shares_of_the_budget():
    board, records = board_of(staged("imp", 25, 50, 25), staged("awt", 10, 90), rows("random", 40))
    row = next(row for row in board.rows if row.pruner == "imp")
    assert cost.stages(row, records) == pytest.approx({"stage 0": 0.25, "stage 1": 0.5, "stage 2": 0.25})
    assert cost.searched(cost.stages(row, records)) == pytest.approx(0.75)
    chart = cost.of_board(board, records)
    assert chart.sentence.startswith("At 0.9. Of all 2 methods, awt searches least and keeps 50.0 % robust, imp")
    assert chart.title == "One budget, spent differently: 10 to 75 % goes into the search"
    bars = [float(bar.get("width")) for bar in sound(chart).iter("rect")]
    whole = cost.RIGHT - cost.LEFT
    assert sorted(bars) == pytest.approx(
        sorted(whole * share - 1.5 for share in (0.25, 0.5, 0.25, 0.1, 0.9, 1.0)), abs=0.1
    )
    assert "90 s" in chart.svg and "12 s" in chart.svg


def test_a_method_without_a_bar_counts_in_the_title():
    """Ten plain methods at 50 % leave no room for a variant, which searches for 10 % of its budget."""
    variant = [{"name": f"stage {i}", "passes": each, "seconds": 1.0} for i, each in enumerate((10, 90))]
    crowd = [staged(f"m{i}", 50, 50) for i in range(10)]
    changes = {"job": {"options": {"layers": "global"}}, "cost": {"stages": variant, "train_passes": 100}}
    chart = cost.of_board(*board_of(*crowd, rows("imp", 40, **changes)))
    assert chart.title == "One budget, spent differently: 10 to 50 % goes into the search"
    assert "imp:layers=global searches least" in chart.sentence and ">imp:layers=global<" not in chart.svg


def test_a_few_layers_tell_where_methods_disagree():
    """Layer 1 keeps 10 of 100 in one and 50 in the other, layer 2 keeps 90 and 50 of 900."""
    nets = {}
    for label, kept in (("imp", (10, 90)), ("awt", (50, 50))):
        layers = [
            {"name": f"l{i}", "shape": [n], "nonzero": k} for i, (n, k) in enumerate(zip((100, 900), kept, strict=True))
        ]
        nets[label] = rows(label, 50, net={"layers": layers}, notes={"hoyer": 0.9 if label == "imp" else 0.8})
    board, records = board_of(*nets.values())
    row = next(row for row in board.rows if row.pruner == "imp")
    assert weights.layer_densities(row, records) == pytest.approx([0.1, 0.1])
    chart = weights.densities(board, records)
    assert chart.title == "Methods disagree most about layer 1 of 2"
    assert "(l0, 100 weights) imp keeps 10.0 % and awt 50.0 %." in chart.sentence
    sound(chart)
    spread = weights.spread(board, records)
    assert spread.sentence.endswith("between 0.80 and 0.90.")
    sound(spread)
    assert "hollow" not in chart.sentence
    layers = [layers[0] | {"nonzero": 0}, layers[1] | {"nonzero": 100}]
    empty = weights.densities(*board_of(*nets.values(), rows("iwi", 50, net={"layers": layers})))
    assert empty.sentence.endswith(" A hollow mark labelled 0 is a layer without weights.")
    assert [text.text for text in sound(empty).iter("text")].count("0") == 1
    board, records = board_of(*nets.values(), rows("iwi", 50, net={"layers": layers}))
    assert weights.spread(board, records).sentence.endswith(" In the table alone: iwi.")


def test_unpruned_nets_are_ranked_by_their_weights():
    board, records = board_of(
        rows("dense", 50, 0.0, notes={"hoyer": 0.5}), rows("iwi-dense", 50, 0.0, notes={"hoyer": 0.7})
    )
    assert weights.spread(board, records).title == (
        "Of the unpruned nets, iwi-dense has the sparsest weights: 0.70, dense 0.50"
    )
    assert weights.spread(*board_of(rows("dense", 50, 0.0))) is None


def test_classes_need_outcomes_and_a_test_to_name_one(tmp_path):
    """Images i < 60 survive in dense, i < 30 in imp; labels are i % 10: all lose half, and none more than others."""
    for label, sparsity, robust in (("dense", 0.0, 60), ("imp", 0.9, 30)):
        save(tmp_path, make(label, sparsity, robust=robust))
    results = read(tmp_path)
    board = rank(results).boards[0]
    chart = classes.of_board(board, results, tmp_path)
    assert chart.title == "Robust accuracy by class" and "No test finds that one loses more" in chart.sentence
    assert "class 0 from 60.0 % to 30.0 % and class 9 from 60.0 % to 30.0 %." in chart.sentence
    sound(chart)
    assert classes.of_board(board, results, tmp_path / "nowhere") is None


def with_net(folder, label, seed, first, values=1.0):
    """A record with a net beside it that keeps the hundred positions from `first` of 1000, with these `values`."""
    bits = np.zeros(1000, bool)
    bits[first : first + 100] = True
    data = packed({"fc.bitmask": np.packbits(bits), "fc.values": np.full(100, values, np.float32)})
    write_bytes(net_path(save(folder, record := make(label, 0.9, seed, net={"sha256": sha256_of(data)}))), data)
    return record


@pytest.mark.parametrize(
    ("places", "title", "cells"),
    [
        # The same mask is 19 times chance, a tenth of it is chance; in the second case the two rows share 10, then 0.
        ({"imp": (0, 90), "awt": (0, 90)}, "A ticket belongs to its seed", ["1.0", "1.0", "19.0"]),
        ({"imp": (0, 0), "awt": (90, 180)}, "Masks of different seeds agree up to 19.0", ["0.5", "1.0", "19.0"]),
        ({"imp": (0, 90), "awt": (90, 180)}, "Masks agree as by chance", ["1.0", "1.0", "1.0"]),
    ],
)
def test_whether_a_ticket_is_a_ticket(places, title, cells, tmp_path):
    for label, firsts in places.items():
        for seed, first in enumerate(firsts):
            with_net(tmp_path, label, seed, first)
    results = read(tmp_path)
    chart = masks.of_board(rank(results).boards[0], results, tmp_path)
    assert chart.title.startswith(title)
    words = [text.text for text in sound(chart).iter("text")]
    assert sorted(word for word in words if word[0].isdigit()) == cells
    assert "A cell is empty" not in chart.sentence and "In the table alone" not in chart.sentence


def test_empty_cells_and_methods_without_nets_are_explained(tmp_path):
    """imp has nets of two seeds and awt of one, so awt's diagonal is empty; iwi has no net."""
    for label, seed in (("imp", 0), ("imp", 1), ("awt", 0)):
        with_net(tmp_path, label, seed, 0)
    save(tmp_path, make("iwi", 0.9))
    results = read(tmp_path)
    chart = masks.of_board(rank(results).boards[0], results, tmp_path)
    assert "A cell is empty where there are no two seeds of the method" in chart.sentence
    assert chart.sentence.endswith(" In the table alone: iwi.")


@pytest.mark.parametrize(
    ("tiny", "title", "said"),
    [
        (10, "10.0 % of the weights in imp are tiny, 0.0 % in awt", "Tiny means"),
        (1, "The methods shown keep similar shares of tiny weights", "0.0 to 1.0 % of them"),  # it may be chance
    ],
)
def test_who_keeps_weights_that_hardly_count(tiny, title, said, tmp_path):
    """In imp so many of 100 weights are a thousandth of the others; in awt all are equal, and none are tiny."""
    with_net(tmp_path, "imp", 0, 0, values=[0.001] * tiny + [1.0] * (100 - tiny))
    with_net(tmp_path, "awt", 0, 0)
    results = read(tmp_path)
    chart = sizes.of_board(rank(results).boards[0], results, tmp_path)
    assert chart.title == title
    assert said in chart.sentence
    sound(chart)
    assert sizes.of_board(rank(results).boards[0], results, tmp_path / "nowhere") is None


def curved(label, robust, seed=0):
    curve = [{"epoch": 5 * (i + 1), "clean": 0.9, "robust": value} for i, value in enumerate(robust)]
    return make(label, 0.9, seed, cost={"stages": [{"name": "train", "passes": 1, "seconds": None, "curve": curve}]})


def test_curves_show_the_best_epoch_and_the_last():
    """Means of two seeds: 30, 50, 40. The seeds lose 60 - 30 and 50 - 50: 15 points on average."""
    board, records = board_of([curved("imp", (0.2, 0.6, 0.3)), curved("imp", (0.4, 0.4, 0.5), 1)])
    found = course(board.rows[0], records)
    assert found.epochs == (5, 10, 15) and found.robust == pytest.approx((0.3, 0.5, 0.4))
    chart = curves.of_board(board, records)
    assert losses(board.rows[0], records) == pytest.approx([0.3, 0])
    assert chart.title == "Robust overfitting: imp ends 15.0 points below its best epoch"
    assert chart.sentence.startswith("Lines: mean over seeds, at 0.9. Of these rows imp loses most: 15.0 points")
    sound(chart)
    some = curves.of_board(*board_of([curved("imp", (0.2, 0.6, 0.3))], rows("awt", 50)))
    assert some.sentence.endswith(" Not all records of awt hold a curve of the same epochs.")
    rising = board_of([curved("imp", (0.2, 0.3))])
    assert curves.of_board(*rising).title.startswith("No robust overfitting")
    assert curves.of_board(*board_of(rows("imp", 50))) is None


def test_random_pruning_does_not_set_the_scale_of_the_curves():
    """imp reaches from 30 to 40, random stays at 5, and at 5 and 35: the marks are those inside."""
    for low, marks, said in (((0.05, 0.05), 0, True), ((0.05, 0.35), 1, True), ((0.3, 0.35), 2, False)):
        chart = curves.of_board(*board_of([curved("imp", (0.3, 0.4))], [curved("random", low)]))
        assert ("lies outside the figure" in chart.sentence) == said
        look = looks.look_of("random")
        assert chart.svg.count(f'<path class="mark s{look.colour} ') == marks + 1  # and one beside its name
        sound(chart)


# All of them


def test_every_chart_is_sound_on_records_of_every_kind(tmp_path):
    for label, sparsity in (
        ("dense", 0.0),
        *((name, s) for name in ("imp", "magnitude", "random") for s in (0.9, 0.95)),
    ):
        for seed in range(3):
            notes = {"hoyer": 0.5 + sparsity / 4}
            save(tmp_path, make(label, sparsity, seed, robust=40 + seed + len(label), notes=notes))
    results = read(tmp_path)
    board = rank(results).boards[0]
    others, missing = charts.of_board(board, results, tmp_path)
    assert missing == [
        "There is no chart of the overlap of masks: it needs two nets beside their records at the highest sparsity.",
        "There is no chart of the densities of layers: it needs nets of several layers at the highest sparsity.",
        "There is no chart of the sizes of kept weights: it needs the nets of two methods at the highest sparsity.",
        "There is no chart of robust overfitting: it needs records with validation curves at the highest sparsity.",
    ]
    drawn = [*charts.first(board), *others]
    assert [chart.title for chart in drawn] == [
        "No method clearly beats plain magnitude pruning",
        "Against magnitude, 0 of 2 clearly above and 2 below; against random, 2 of 4 clearly above and 2 below",
        "Sparsity costs clean and robust accuracy alike",
        "Two seeds agree on more images than two methods",  # 43 and 44 survive imp, 49 and 50 magnitude
        "Where the training budget goes",
        "How few weights hold the norm",
        "Robust accuracy by class",
    ]


@pytest.mark.parametrize("name", ["<script>", '"><svg onload=x>', "a&b", "x" * 5000, "nul\x00l", "right\u202eleft"])
def test_a_name_is_nothing_but_text(name):
    board, records = board_of(rows(name, 60), rows("magnitude", 50), rows("dense", 70, 0.0))
    plain, same = board_of(rows("imp", 60), rows("magnitude", 50), rows("dense", 70, 0.0))
    for draw in (accuracy.against_sparsity, accuracy.clean_against_robust):
        assert [part.tag for part in sound(draw(board))] == [part.tag for part in sound(draw(plain))]
        assert len(draw(board).sentence) < 1000
    assert [p.tag for p in sound(cost.of_board(board, records))] == [p.tag for p in sound(cost.of_board(plain, same))]
