"""Looks: colours that all readers can tell, one for a method for ever, and a chart as a file of its own."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from prunebench.leaderboard.site.charts import accuracy
from prunebench.leaderboard.site.looks import DARK, LIGHT, look_of, standalone, stylesheet
from prunebench.leaderboard.table import rank
from tests.support.records import make


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


# Machado, Oliveira & Fernandes 2009, table 1, severity 1: how a colour looks without red, and without green cones.
SIGHT = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def oklab(light):
    """Ottosson 2020: a space in which distances are about as large as they look."""
    first = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    first.append([0.0883024619, 0.2817188376, 0.6299787005])
    then = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    then.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.array(then) @ np.cbrt(np.array(first) @ np.clip(light, 0, 1))


@pytest.mark.parametrize(("theme", "ground"), [(LIGHT, "#ffffff"), (DARK, "#1a1e22")], ids=["light", "dark"])
def test_colours_can_be_told_apart_by_all_readers(theme, ground):
    """WCAG 2.1 asks 3 of graphics. Black and white are 1 apart in OKLab; two of a rainbow's eight may be .03."""
    assert all(contrast(colour, ground) >= 3 for colour in theme)
    for name, matrix in SIGHT.items():
        seen = [oklab(np.array(matrix) @ linear(colour)) for colour in theme]
        for (a, one), (b, other) in combinations(enumerate(seen), 2):
            assert math.dist(one, other) >= 0.07, (name, theme[a], theme[b])


def test_a_method_has_one_look_for_ever():
    """No board and no order enters; variants share their method's colour, dashed."""
    assert look_of("imp") == look_of("imp") and not look_of("imp").dashed
    assert look_of("imp:shuffle=true").colour == look_of("imp").colour and look_of("imp:shuffle=true").dashed
    assert look_of("nobody's") == look_of("nobody's") and look_of("nobody's").colour >= 2
    looks = [
        look_of(name) for name in ("magnitude", "random", "dense", "imp", "hydra", "awt", "iwi", "flying-bird", "harp")
    ]
    assert len({(look.colour, look.shape) for look in looks}) == len(looks)
    assert all(f"--k{i}:" in stylesheet() for i in range(len(LIGHT))) and len(LIGHT) == len(DARK)


def test_a_chart_stands_alone_as_a_file():
    records = [make(name, 0.9, seed, robust=50 + seed) for name in ("imp", "magnitude") for seed in range(2)]
    chart = accuracy.against_sparsity(rank({Path(f"{i}.json"): record for i, record in enumerate(records)}).boards[0])
    root = ET.fromstring(standalone(chart.svg))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme: dark" in root[0].text
    assert (root.get("width"), root.get("height")) == tuple(root.get("viewBox").split()[2:])
    used = set(re.findall(r"var\((--\w+)\)", root[0].text))
    assert used <= set(re.findall(r"(--\w+):", root[0].text))
