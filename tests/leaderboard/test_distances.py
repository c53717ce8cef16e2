"""Distances on a board: the median of a row, and the continuous curve, from arrays made up on paper."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from prunebench.bench.beyond import median
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path
from prunebench.leaderboard.distances import measured, raw_distances
from prunebench.leaderboard.render import columns
from prunebench.leaderboard.render.markdown import markdown
from prunebench.leaderboard.site import pages, plots
from prunebench.leaderboard.table import rank
from tests.support.records import Record, make

RAMP = np.where(np.arange(100) < 20, 0, np.arange(100) / 100).astype(np.float32)  # 20 images wrong when clean


def with_distances(folder: Path, name: str, distances: np.ndarray, pruner: str = "imp", seed: int = 0) -> Record:
    """A record in `folder` whose outcomes hold these distances."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, distance=distances)
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
    assert "Median distance" in columns.SITE_OTHERS


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


def test_a_board_draws_distances_where_all_seeds_have_them(tmp_path):
    results = {
        Path("a.json"): with_distances(tmp_path, "a.json", RAMP),
        Path("b.json"): with_distances(tmp_path, "b.json", RAMP / 2, seed=1),
        Path("c.json"): make("random"),
        Path("d.json"): with_distances(tmp_path, "d.json", RAMP, "magnitude"),
        Path("e.json"): make("magnitude", seed=1),
    }
    site = pages.pages(rank(results), results, tmp_path)
    assert b"Median distance" in site["index.html"]
    assert site["index.html"].count(b'"shape": "hv"') == 1  # imp alone
    entry = site["entries/digits-linf-imp-s0.9.html"]
    assert entry.count(b'"shape": "hv"') == 2 and b"smallest perturbation found" in entry
    assert site["entries/digits-linf-magnitude-s0.9.html"].count(b'"shape": "hv"') == 1
    plain = {path: record for path, record in results.items() if record.beyond.distances is None}
    without = pages.pages(rank(plain), plain, tmp_path)["index.html"]
    assert b'"hv"' not in without and b"Median distance" not in without
