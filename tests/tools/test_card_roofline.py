"""What a card should take: counted on paper for a layer, and the page's table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton")  # torch brings it on Linux

from prunebench.bench.executor.card.tiles import Tiles
from tools import card_roofline
from tools.card_roofline import BEGIN, END, FIRST, FLOPS, MEMORY, SECOND, Work, table, works

PAGE = Path(__file__).resolve().parents[2] / "docs" / "card-executor.md"


def test_the_rates_follow_from_the_datasheet():
    """A lane does two operations a clock, a multiprocessor loads 128 bytes: 4 bytes take as long as 4 products."""
    assert 2 * FIRST == FLOPS
    assert Work(FLOPS / 2, FIRST, SECOND, MEMORY).times() == {
        "arithmetic": 1, "first-level cache": 1, "second-level cache": 1, "memory": 1
    }  # fmt: skip


def test_the_work_of_one_weight_on_paper(monkeypatch):
    """One weight on 8x8 pixels of 16 images: 1,024 products, each with an input of its own."""
    monkeypatch.setattr(card_roofline, "SHAPE", (1, 8, 8))
    conv = nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    (load, layer, store), backward = works(nn.Sequential(conv).eval(), Tiles(), images=16)
    assert layer.products == 1024
    assert layer.first == 4 * 1024 + 2 * 32 * 8  # two tiles of 512 sums; an offset and a weight, by 32 lanes each
    assert layer.second == 4 * 1024 + 2 * 8 + 8 * 1024
    assert layer.memory == 8 * 1024 + 8
    assert load.memory == store.memory == 8 * 1024
    assert [work.products for work in backward] == [0, 1024, 0]
    conv.weight.zero_()
    assert works(nn.Sequential(conv).eval(), Tiles(), images=16)[0][1].products == 0


@pytest.mark.slow
def test_the_page_shows_the_table():
    torch.manual_seed(0)
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == table()
