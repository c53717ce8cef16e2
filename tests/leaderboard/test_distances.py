"""Distances on a board: the median of a row, and the continuous curve, from arrays made up on paper."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from prunebench.bench.beyond import median
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path
from prunebench.leaderboard.distances import measured, raw_distances
from prunebench.leaderboard.render import columns
from prunebench.leaderboard.render.data import as_json, comma_separated
from prunebench.leaderboard.render.markdown import markdown
from prunebench.leaderboard.render.text import FURTHER
from prunebench.leaderboard.site import pages, plots
from prunebench.leaderboard.table import rank
from tests.support.records import Record, make, outcomes

RAMP = np.where(np.arange(100) < 20, 0, np.arange(100) / 100).astype(np.float32)  # 20 images wrong when clean


def with_distances(folder: Path, name: str, distances: np.ndarray, pruner: str = "imp", seed: int = 0) -> Record:
    """A record in `folder` whose outcomes hold these distances."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(outcomes(100, 80, 50))) as arrays:
        np.savez_compressed(buffer, distance=distances, **arrays)
    write_bytes(outcomes_path(folder / name), buffer.getvalue())
    beyond = {"distances": {"attack": "fmn", "median": median(distances)}}
    return make(pruner, seed=seed, outcomes=sha256_of(buffer.getvalue()), beyond=beyond)


def test_distances_are_read_from_beside_their_record(tmp_path):
    record = with_distances(tmp_path, "a.json", RAMP)
    assert measured(record).median == pytest.approx(0.49)  # the 50th of 100
    assert (raw_distances(tmp_path / "a.json", record) == RAMP).all()
    assert measured(make()) is None and raw_distances(tmp_path / "a.json", make()) is None
    assert raw_distances(tmp_path / "none.json", record) is None


@pytest.mark.parametrize("bad", [RAMP[:99], RAMP.astype(float), -1 - RAMP, RAMP * np.float32(np.nan), RAMP > 0])
def test_distances_that_are_none_are_refused(tmp_path, bad):
    with np.errstate(invalid="ignore"):
        record = with_distances(tmp_path, "a.json", RAMP)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, distance=bad)
    write_bytes(outcomes_path(tmp_path / "a.json"), buffer.getvalue())
    record = record.model_copy(update={"outcomes": sha256_of(buffer.getvalue())})
    with pytest.raises(PrunebenchError, match=r"holds no distances of 100 images, as .*a.json says; score"):
        raw_distances(tmp_path / "a.json", record)


def test_a_row_has_the_mean_of_its_seeds_medians_if_all_have_one(tmp_path):
    first = with_distances(tmp_path, "a.json", RAMP)
    second = with_distances(tmp_path, "b.json", RAMP / 2, seed=1)
    without = make(seed=2)
    unknown = with_distances(tmp_path, "d.json", np.full(100, np.inf, np.float32), seed=2)

    def row(*records):
        ranking = rank({Path(f"{number}.json"): record for number, record in enumerate(records)})
        return ranking.boards[0].rows[0], markdown(ranking)

    found, page = row(first, second)
    assert found.distance == pytest.approx((0.49 + 0.245) / 2)
    assert "Median distance" in page and "0.3675" in page
    for third in (without, unknown):
        found, page = row(first, second, third)
        assert found.distance is None and "Median distance" not in page
    assert "Median distance" in columns.SITE


def results_of(folder, ours, theirs):
    """Records of two methods at .9 with these distances, by seed, in `folder`."""
    groups = {"imp": ours, "magnitude": theirs}
    return {
        Path(f"{pruner}-{seed}.json"): with_distances(folder, f"{pruner}-{seed}.json", values, pruner, seed)
        for pruner, seeds in groups.items()
        for seed, values in enumerate(seeds)
    }


def compared(ranking):
    """The one primary contrast."""
    (contrast,) = [contrast for contrast in ranking.boards[0].contrasts if contrast.family == "primary"]
    return contrast


def test_a_median_further_by_the_same_on_every_image_has_an_interval_without_width(tmp_path):
    """Pairs by image alone give that: drawn apart, the two medians' own noise is in the interval."""
    rng = np.random.default_rng(0)
    theirs = [rng.permutation(RAMP) + np.float32(seed / 8) for seed in range(3)]
    ours = [values + np.float32(0.0625) for values in theirs]
    ranking = rank(results_of(tmp_path, ours, theirs), tmp_path)
    assert compared(ranking).further == pytest.approx((0.0625, 0.0625, 0.0625), abs=1e-6)
    assert "+0.0625 [+0.0625, +0.0625] |" in markdown(ranking) and "Distance minus magnitude" in markdown(ranking)

    shuffled = results_of(tmp_path, [rng.permutation(values) for values in ours], theirs)
    _, low, high = compared(rank(shuffled, tmp_path)).further
    assert low < 0.0625 - 0.01 and high > 0.0625 + 0.01  # the twin: the same distances, of other images


def test_a_difference_of_distances_is_on_every_page_and_in_every_file(tmp_path):
    """Of two seeds one is further by 1/4: the mean is 1/8, and a resampling of seeds has 0 to 1/4."""
    results = results_of(tmp_path, [RAMP, RAMP + np.float32(0.25)], [RAMP, RAMP])
    ranking = rank(results, tmp_path)
    assert compared(ranking).further == pytest.approx((0.125, 0, 0.25))
    lines = csv.DictReader(io.StringIO(comma_separated(ranking)))
    (line,) = [line for line in lines if line["pruner"] == "imp"]
    found = [float(line[f"less_magnitude_further{end}"]) for end in ("", "_low", "_high")]
    assert found == json.loads(as_json(ranking))["boards"][0]["contrasts"][0]["further"] == [*compared(ranking).further]
    assert FURTHER in markdown(ranking)
    page = pages.pages(ranking, results, tmp_path)["boards/digits-linf.html"].decode()
    assert "+0.1250 [+0.0000, +0.2500]" in page and columns.FURTHER in page and FURTHER in page


def test_what_has_no_difference_of_distances_shows_none(tmp_path):
    """One seed; a median that is infinite; a seed without distances; no raw outcomes."""
    nowhere = np.full(100, np.inf, np.float32)
    one = rank(results_of(tmp_path / "one", [RAMP], [RAMP]), tmp_path / "one")
    endless = rank(results_of(tmp_path / "two", [RAMP, nowhere], [RAMP, RAMP]), tmp_path / "two")
    whole = results_of(tmp_path, [RAMP, RAMP], [RAMP, RAMP])
    more = {Path(f"{pruner}-2.json"): make(pruner, seed=2) for pruner in ("imp", "magnitude")}
    partly = rank(whole | more, tmp_path)
    for ranking in (one, endless, partly, rank(whole)):
        assert compared(ranking).further is None
        assert "Distance minus" not in markdown(ranking)
        assert "further" not in comma_separated(ranking) and "further" not in as_json(ranking)
    assert "+0.0000 [+0.0000, +0.0000]" in markdown(rank(whole, tmp_path))  # the twin


def test_the_curve_is_the_share_of_images_further_than_eps():
    """At .2 the 21st image falls: 79 are left of 100. The twin, counted at eps too, has 80."""
    trace = plots._continuous("imp", RAMP, 0)
    curve = dict(zip(np.float32(trace.x), trace.y, strict=True))
    assert trace.line.shape == "hv"
    assert curve[np.float32(0)] == pytest.approx(80) and curve[np.float32(0.99)] == pytest.approx(0)
    assert curve[np.float32(0.2)] == pytest.approx(79) != pytest.approx(100 * (RAMP >= 0.2).mean())
    assert (np.diff(trace.y) <= 0).all() and (np.diff(trace.x) >= 0).all()


def test_a_curve_of_many_images_is_thinned_and_stays_exact():
    many = np.arange(1, 10_001, dtype=np.float32)
    trace = plots._continuous("imp", np.append(many, np.float32(np.inf)), 0)
    assert len(trace.x) == plots.POINTS + 1
    assert trace.y == pytest.approx([100 * (10_001 - eps) / 10_001 for eps in trace.x])
    assert trace.y[-1] == pytest.approx(100 / 10_001)  # the image that nothing fooled
    assert list(plots._continuous("imp", np.full(3, np.inf, np.float32), 0).y) == [100]


def test_all_curves_of_a_plot_are_under_one_attack(tmp_path):
    """imp has distances at both seeds, magnitude at one of two, and random at none: all three have PGD's curve."""
    results = {
        Path("a.json"): with_distances(tmp_path, "a.json", RAMP),
        Path("b.json"): with_distances(tmp_path, "b.json", RAMP / 2, seed=1),
        Path("c.json"): make("random"),
        Path("d.json"): with_distances(tmp_path, "d.json", RAMP, "magnitude"),
        Path("e.json"): make("magnitude", seed=1),
    }
    site = pages.pages(rank(results), results, tmp_path)
    assert b"Median distance" in site["boards/digits-linf.html"]
    whole, smallest = b'"shape": "hv"', b"The attack: the smallest perturbation"
    assert whole not in site["boards/digits-linf.html"] and b"The attack: PGD-20" in site["boards/digits-linf.html"]
    entry = site["entries/digits-linf-imp-s0.9.html"]
    assert entry.count(whole) == 2 and smallest in entry
    assert whole not in site["entries/digits-linf-magnitude-s0.9.html"]
    alone = {path: results[path] for path in (Path("a.json"), Path("b.json"))}  # the twin
    board = pages.pages(rank(alone), alone, tmp_path)["boards/digits-linf.html"]
    assert board.count(whole) == 1 and smallest in board
    plain = {path: record for path, record in results.items() if record.beyond.distances is None}
    without = pages.pages(rank(plain), plain, tmp_path)["boards/digits-linf.html"]
    assert b'"hv"' not in without and b"Median distance" not in without


def test_the_axis_of_a_curve_ends_at_four_times_eps_or_where_the_curves_do():
    """The protocol's eps is .2. A curve to 2 is cut at .8, one to .5 ends there; 2 % are left free on either side."""
    for last, end in (("2", 0.8), ("0.5", 0.5)):
        record = make(score={"curve": [{"eps": "0.2", "robust": 50}, {"eps": last, "robust": 0}]})
        (board,) = rank({Path("a.json"): record}).boards
        plot = next(plot for plot in plots.of_board(board, [None]) if plot.title.startswith("Security"))
        assert plot.figure["layout"]["xaxis"]["range"] == pytest.approx((-0.02 * end, 1.02 * end))
