"""The page on slack: its counts, shares and ranks against answers worked out on paper, and the same bytes each time."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.bench.beside import net_path
from prunebench.bench.beyond import Best, Beyond
from prunebench.bench.checkpoint import open_net
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.models import build
from tests.support.nets import STORE, TINY, seal_state
from tests.support.records import make, save
from tools import slack, slack_facts
from tools.slack_facts import Scored, correlations, known, lines, measured, spearman, standings, without_gradient


def beaten(pruner, seed, robust, lost, suite="best-1", **changes):
    """A record in which `lost` of `robust` images fall to the stronger suite."""
    best = Best(suite=suite, robust=robust - lost, by={"malt": lost}, long=0, passes=0)
    return make(pruner, 0.95, seed, robust=robust, beyond=Beyond(best=best), **changes)


def scored(pruner="imp", at="0.95", seed=0, robust=50, lost=2, first=9, dark=0.5):
    return Scored(pruner, Decimal(at), seed, 100, robust, robust - lost, first, 144, dark)


# Gradients


class Two(nn.Module):
    """Logits relu(p0) and relu(p1) of the four pixels p: the other two, and a pixel at 0, have no gradient."""

    def forward(self, images):
        return torch.relu(images.flatten(1)[:, :2])


def test_pixels_without_gradient_are_counted_per_image():
    """Both logits move: 2 of 4 pixels; one logit is at 0, where relu is flat: 3 of 4; a net of constants: all."""
    images = torch.tensor([[0.5, 0.25, 1.0, 1.0], [0.5, 0.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    labels = torch.tensor([0, 1])
    assert without_gradient(Two(), images[:1], labels[:1]) == 2 / 4
    assert without_gradient(Two(), images[1:], labels[1:]) == 3 / 4
    assert without_gradient(Two(), images, labels) == 5 / 8
    many = images.repeat(slack_facts.BATCH, 1, 1, 1), labels.repeat(slack_facts.BATCH)
    assert without_gradient(Two(), *many) == 5 / 8  # more than one batch


def test_gradients_that_cancel_between_logits_count_as_none():
    """The margin of two equal logits is 0 everywhere, though each logit has a gradient."""

    class Equal(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, [0, 0]]

    assert without_gradient(Equal(), torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)) == 1.0


# Statistics


def test_rows_are_means_over_seeds_with_the_test_of_the_slack():
    """2, 4 and 6 of 100: mean 4, sd 2, and t(.975, 2) = 4.303 standard errors of 2 / sqrt(3)."""
    nets = [scored(seed=i, lost=2 + 2 * i, first=8 + i, dark=0.1 * i) for i in range(3)]
    dense, imp, awt = lines([*nets, scored("awt", lost=1), scored("dense", "0")])
    assert (dense.pruner, imp.pruner, awt.pruner) == ("dense", "imp", "awt")  # by sparsity, then the largest slack
    assert (imp.robust, imp.best, imp.first, imp.dark) == pytest.approx((0.5, 0.46, 9, 0.1))
    assert (imp.slack.gap, imp.slack.high) == pytest.approx((0.04, 0.04 + 0.04968), abs=1e-5)
    assert slack._points(imp.slack) == "4.0 [0.0, 9.0]" and slack._points(awt.slack) == "1.0"


def test_ranks_correlate():
    """1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, 1, 0 and n = 4: .8."""
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) is spearman([1, 2, 3], [0, 0, 0]) is None
    nets = [scored(at=at, lost=i, dark=0.1 * i, first=144) for i, at in enumerate(["0", "0.9", "0.9"])]
    every, zero, sparse = correlations(nets)
    assert (every.nets, zero.nets, sparse.nets) == (3, 1, 2)
    assert every.dark == pytest.approx(1) and every.first is None and zero.dark is None


def board(lost):
    """imp is 10 images ahead of magnitude at each of five seeds; the stronger suite takes `lost` of imp's survivors."""
    records = [beaten("magnitude", seed, 40 + seed, 0) for seed in range(5)]
    records += [beaten("imp", seed, 50 + seed, lost) for seed in range(5)]
    records += [beaten("random", seed, 80, 0) for seed in range(5)]  # a control has no place
    return {Path(f"{i}.json"): record for i, record in enumerate(records)}


def test_orders_places_and_verdicts_under_both_numbers():
    imp, magnitude = standings(board(lost=20))
    assert (imp.pruner, imp.order, imp.place, imp.verdict) == ("imp", (1, 2), (1, 2), ("+", "-"))
    assert (magnitude.order, magnitude.place, magnitude.verdict) == ((2, 1), (2, 1), (None, None))
    text = slack._orders([imp, magnitude])
    assert "| 0.95 | imp | 1 → 2 | 1 → 2 | better → worse |" in text and "| 2 → 1 | 2 → 1 |  |" in text
    assert "2 change their position" in slack._changed([imp, magnitude])
    assert "Of 1 verdicts against magnitude pruning, 1 differ" in slack._changed([imp, magnitude])


def test_nothing_changes_where_the_stronger_suite_takes_nothing():
    """The twin of the test above; and equal means share a position."""
    imp, magnitude = standings(board(lost=0))
    assert (imp.order, imp.place, imp.verdict) == ((1, 1), (1, 1), ("+", "+"))
    assert magnitude.order == (2, 2)
    assert "0 change their position" in slack._changed([imp, magnitude])
    assert [row.order for row in standings(board(lost=10))] == [(1, 1), (2, 1)]


# Files


def test_records_without_the_number_are_left_out(tmp_path):
    save(tmp_path, make("imp", 0.95, 1))
    with pytest.raises(PrunebenchError, match=r"No record below .* holds the best-known number"):
        known(tmp_path)
    save(tmp_path, beaten("imp", 0, 50, 2))
    (record,) = known(tmp_path).values()
    assert record.job.seed == 0
    save(tmp_path, beaten("imp", 2, 50, 2, suite="best-2"))
    with pytest.raises(PrunebenchError, match="differ in protocol, images or suite"):
        known(tmp_path)


def seal(path, seed):
    """A net beside the record at `path`, whose first logit has a bias of `seed`."""
    net = build(TINY.model, info=STORE.info(TINY.data))
    state = net.state_dict()
    state[[*state][-1]][0] = seed
    path.parent.mkdir(parents=True, exist_ok=True)
    seal_state(net_path(path), net)


def with_net(folder, pruner, seed, lost):
    """A record with the net beside it that it is of."""
    path = folder / "digits-linf" / f"{pruner}-{seed}.json"
    seal(path, seed)
    net = open_net(net_path(path)).id.model_dump(mode="json")
    save(folder, beaten(pruner, seed, 50, lost, net=net), path.stem)
    return path


def test_the_page_is_the_same_bytes_each_time(tmp_path, capsys):
    for seed in range(2):
        with_net(tmp_path / "records", "imp", seed, 4)
    for name in ("a", "b"):
        slack.main([str(tmp_path / "records"), "--write", str(tmp_path / name / "slack.md")])
    (a, drawn), (b, again) = (
        [(tmp_path / name / f"slack.{kind}").read_bytes() for kind in ("md", "svg")] for name in ("a", "b")
    )
    assert a == b and drawn == again
    text = a.decode()
    assert text.startswith(slack.HEADER) and "a slack of 4.0 points" in text and "(slack.svg)" in text
    assert len(list(ET.fromstring(drawn))) > 2
    slack.main([str(tmp_path / "records")])
    assert capsys.readouterr().out == text


def test_another_net_than_the_records_is_refused(tmp_path):
    path = with_net(tmp_path, "imp", 0, 1)
    seal(path, 9)
    with pytest.raises(PrunebenchError, match=r"imp-0.net.safetensors is not the net that digits-linf/imp-0.json"):
        measured(tmp_path, known(tmp_path), Path("data"))


# The figure


def test_a_mark_per_net_and_panel_at_its_place():
    """At dark = 1 and the largest slack: the top right corner of the left panel."""
    nets = [scored(lost=8, dark=1.0, first=0), scored("awt", "0.9", lost=0, dark=0.0, first=144)]
    marks = re.findall(r'<path d="M([\d.]+) ([\d.]+)m[^>]*stroke="(#\w+)"', slack.figure(nets))
    places = [(float(x), float(y), colour) for x, y, colour in marks]
    left, top, bottom = slack.LEFT, slack.TOP, slack.TOP + slack.HEIGHT
    right = 2 * slack.LEFT + slack.WIDTH  # where the second panel begins
    sparse, denser = slack.SERIES[1], slack.SERIES[0]
    assert places[:4] == [
        (left + slack.WIDTH, top, sparse),
        (left, bottom, denser),
        (right, top, sparse),
        (right + slack.WIDTH, bottom, denser),
    ]
    assert len(places) == 4 + 2  # and the legend


@pytest.mark.parametrize(
    ("limit", "found"),
    [(1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (9, [0, 2, 4, 6, 8]), (100, [0, 20, 40, 60, 80, 100]), (144, [0, 50, 100])],
)
def test_ticks_are_round(limit, found):
    assert slack.ticks(limit) == pytest.approx(found)


def test_colours_stand_out_on_white_and_on_dark():
    """WCAG 2.1: at least 3 for graphics, 4 for text (white on a dark ground halves what one colour can have)."""

    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for colour, least in [(slack.INK, 4), *((colour, 3) for colour in slack.SERIES)]:
        for ground in ("#ffffff", "#0d1117"):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= least, (colour, ground)


@pytest.mark.parametrize("label", ["a|b", "<script>", "a\nb"])
def test_a_name_is_nothing_but_text(label):
    text = slack._slacks(lines([scored(label)]))
    (row,) = text.splitlines()[2:]
    assert len(re.findall(r"(?<!\\)\|", row)) == 9 and "<" not in row
