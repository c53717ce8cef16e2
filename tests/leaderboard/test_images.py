"""Which image survives which method: shares and agreements against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes
from prunebench.leaderboard.images import agreement, fates
from prunebench.leaderboard.site.charts import images
from prunebench.leaderboard.table import rank, read
from tests.leaderboard.test_charts import sound
from tests.support.records import ATTACKS, make, save


def scored(folder, pruner, seed, survivors, sparsity=0.9):
    """A record of 100 images of which `survivors` survive, with its outcomes."""
    standing, labels = np.isin(np.arange(100), survivors), np.arange(100) % 10
    data = pack_outcomes(labels, labels, dict.fromkeys(ATTACKS, standing), {"pgd-20": standing}, {"0.2": standing})
    path = save(folder, make(pruner, sparsity, seed, clean=100, robust=int(standing.sum()), outcomes=sha256_of(data)))
    write_bytes(outcomes_path(path), data)
    return path


def of_all(folder):
    results = read(folder)
    board = rank(results).boards[0]
    return board, results, [fates(row, results, folder) for row in board.rows]


def test_an_image_survives_in_a_share_of_the_seeds(tmp_path):
    scored(tmp_path, "imp", 0, range(50))
    scored(tmp_path, "imp", 1, range(25, 75))
    (found,) = of_all(tmp_path)[2]
    assert found.share.tolist() == [0.5] * 25 + [1.0] * 25 + [0.5] * 25 + [0.0] * 25


def test_without_all_outcomes_nothing_is_known(tmp_path):
    scored(tmp_path, "imp", 0, range(50))
    outcomes_path(scored(tmp_path, "imp", 1, range(50))).unlink()
    assert of_all(tmp_path)[2] == [None]


def test_agreement_is_between_nets_of_different_seeds(tmp_path):
    """imp: 0-49 and 10-59 differ in 20 images. awt: 0-49 twice. Across seeds, 0-49 meets itself and 10-59."""
    for pruner, survivors in (("imp", (range(50), range(10, 60))), ("awt", (range(50), range(50)))):
        for seed, those in enumerate(survivors):
            scored(tmp_path, pruner, seed, those)
    own, cross = agreement(of_all(tmp_path)[2])
    assert (own, cross) == (pytest.approx((0.8 + 1.0) / 2), pytest.approx((1.0 + 0.8) / 2))


def test_one_seed_shows_no_agreement(tmp_path):
    scored(tmp_path, "imp", 0, range(50))
    scored(tmp_path, "awt", 0, range(50))
    board, results, found = of_all(tmp_path)
    assert agreement(found) == (None, None)
    assert images.of_board(board, results, tmp_path).title == "Which images survive which method"


@pytest.mark.parametrize(
    ("awt", "title", "parts"),
    [
        (range(50), "The methods shown lose the same images", ["50 survive in every net", "50 in none"]),
        (
            range(20, 70),
            "Two seeds agree on more images than two methods",
            ["30 survive in every net", "40 in some", "30 in none"],
        ),
    ],
)
def test_strips_hold_the_images_in_one_order(awt, title, parts, tmp_path):
    """imp keeps 0-49 with both seeds, and awt the same or 20-69: then 20-49 come first, and each has one run more."""
    for seed in range(2):
        scored(tmp_path, "imp", seed, range(50))
        scored(tmp_path, "awt", seed, awt)
    board, results, _ = of_all(tmp_path)
    chart = images.of_board(board, results, tmp_path)
    assert chart.title == title
    root = sound(chart)
    words = [text.text for text in root.iter("text") if text.get("class") == "strong"]
    assert [word for word in words if " " in word] == parts
    width = (images.RIGHT - images.LEFT) / 100
    strips = {path.get("class"): path.get("d") for path in root.iter("path") if path.get("stroke-width")}
    runs = {name: [round(float(run.split("h")[1]) / width) for run in d.split("M")[1:]] for name, d in strips.items()}
    assert runs["s2"] == [50] and sum(runs["s4"]) == 50 and len(runs["s4"]) == (1 if len(parts) == 2 else 2)


def test_many_images_share_columns(tmp_path, monkeypatch):
    """Ten columns of ten images: 45 survivors fill four and half of the fifth, drawn in a fainter shade."""
    monkeypatch.setattr(images, "COLUMNS", 10)
    for pruner in ("imp", "awt"):
        scored(tmp_path, pruner, 0, range(45))
    board, results, _ = of_all(tmp_path)
    strips = [
        path for path in sound(images.of_board(board, results, tmp_path)).iter("path") if path.get("stroke-width")
    ]
    assert [path.get("opacity") for path in strips] == ["0.5", "1"] * 2
    assert "A column is 10 images, the same ones on all strips" in images.of_board(board, results, tmp_path).sentence
    outcomes_path(tmp_path / board.rows[0].records[0]).unlink()
    assert images.of_board(board, results, tmp_path) is None  # one method is none to compare


def test_columns_of_unequal_images_end_where_the_borders_do(tmp_path, monkeypatch):
    """Three columns of 33, 33 and 34 images: 33 survivors fill the first, which is a third less a bit wide."""
    monkeypatch.setattr(images, "COLUMNS", 3)
    for pruner in ("imp", "awt"):
        scored(tmp_path, pruner, 0, range(33))
    board, results, _ = of_all(tmp_path)
    chart = images.of_board(board, results, tmp_path)
    parts = list(sound(chart).iter("path"))
    strips = [part.get("d") for part in parts if part.get("stroke-width")]
    assert [float(d.split("h")[1]) for d in strips] == pytest.approx([(images.RIGHT - images.LEFT) * 0.33] * 2, abs=0.1)
    border = next(part.get("d") for part in parts if part.get("class") == "line zero")
    assert float(border[1:].split()[0]) == pytest.approx(images.LEFT + (images.RIGHT - images.LEFT) * 0.33, abs=0.1)
    assert "A column is 33 or 34 images" in chart.sentence
    monkeypatch.setattr(images, "COLUMNS", 100)
    assert "A column is an image, the same one on all" in images.of_board(board, results, tmp_path).sentence
