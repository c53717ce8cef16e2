"""The picture that others show beside a link to the site: who is how robust on the leading board, as a PNG file."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.leaders import sparse
from prunebench.leaderboard.render.text import short
from prunebench.leaderboard.site.charts import accuracy
from prunebench.leaderboard.site.charts.common import shown
from prunebench.leaderboard.site.looks import LIGHT, look_of
from prunebench.leaderboard.site.svg import Scale, around, within

WIDTH, HEIGHT = 1200, 630  # what pages of others leave room for
LEFT, RIGHT, TOP, BOTTOM = 400, 1010, 268, 590
INK, MUTED, GROUND = LIGHT[0], LIGHT[1], "#ffffff"
ROWS = 8


def preview(board: Board) -> bytes:
    """A PNG of WIDTH x HEIGHT pixels: the board, its finding, and intervals of its methods at the highest sparsity."""
    image = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    draw = ImageDraw.Draw(image)
    draw.text((60, 44), "prunebench", INK, _font(40))
    facts = f"{board.protocol}, {board.records} net{'s' * (board.records != 1)}, {board.seeds_shown} per row"
    draw.text((60, 104), short(facts, 70), MUTED, _font(28))
    chart = accuracy.against_sparsity(board)
    draw.text((60, 164), short(chart.title if chart else board.asked, 62), INK, _font(38))
    if chart:
        sparsity = sparse(board)[-1]
        draw.text((60, 224), f"Robust accuracy (AutoAttack) at sparsity {sparsity:f}, %", MUTED, _font(26))
        _rows(draw, shown(board, sparsity)[:ROWS])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def described(board: Board) -> str:
    """What the picture shows, for those who cannot see it."""
    chart = accuracy.against_sparsity(board)
    return f"{board.protocol}, robust accuracy of its methods with intervals" + (f": {chart.title}" if chart else "")


def _rows(draw: ImageDraw.ImageDraw, rows: list[Row]) -> None:
    """A line per row: its name, its interval of 95 % with the mean, and the number."""
    ends = [100 * end for row in rows for end in (row.robust.low, row.robust.high)]
    x = Scale(*within(around(ends)), LEFT, RIGHT)
    step = (BOTTOM - TOP) / len(rows)
    for i, row in enumerate(rows):
        y, colour = TOP + step * (i + 0.5), LIGHT[look_of(row.pruner).colour]
        low, mean, high = (x(100 * value) for value in (row.robust.low, row.robust.mean, row.robust.high))
        draw.text((60, y), short(row.pruner, 22), INK, _font(28), anchor="lm")
        draw.line([(low, y), (high, y)], colour, 6)
        draw.ellipse([mean - 10, y - 10, mean + 10, y + 10], colour)
        draw.text((WIDTH - 60, y), f"{100 * row.robust.mean:.1f}", INK, _font(30), anchor="rm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
