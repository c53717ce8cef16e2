"""How much of a layer one program of a kernel computes: sizes to be tuned on a card, and the tile that fits a layer."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.bench.executor.packing import GROUP, Pair


@dataclass(frozen=True)
class Tiles:
    """The sizes that a measurement may tune; powers of two, but for `shared_cost`.

    `lines`: lists of weights per program, one warp each; half as many of lists that four channels share, whose warps
    need twice the registers. `parts` x `lanes`: sums of a list; a lane of a warp holds
    parts * lanes / 32 of them in registers, `lanes` lie side by side in memory. `images`: of a tile, as long as it has
    further pixels. `unroll`: weights of a list read ahead. `shared_cost`: time for a weight of four channels that share
    what they read, compared with that for one weight of one channel. `width`: results of a program of a pool.
    """

    lines: int = 32
    parts: int = 4
    lanes: int = 128
    images: int = 32
    unroll: int = 4
    shared_cost: float = 1.3
    width: int = 1024


TILES = Tiles()


@dataclass(frozen=True)
class Tile:
    """A tile of `rows` x `cols` pixels of `images` images, held as `parts` x `lanes` sums."""

    images: int
    rows: int
    cols: int
    parts: int
    lanes: int

    def grid(self, extent: Pair, images: int) -> tuple[int, int]:
        """The tiles that cover `extent` pixels of `images` images, and how many of them lie in a row of pixels."""
        across = -(-extent[1] // self.cols)
        return -(-extent[0] // self.rows) * across * (images // self.images), across


def fit(tiles: Tiles, extent: Pair, images: int) -> Tile:
    """The tile for a result of `extent` pixels and `images` images, a multiple of 16.

    It takes images first, then a square of pixels, then more images.
    """
    budget, rows, cols = max(GROUP, tiles.parts * tiles.lanes), 1, 1
    whole = images & -images  # the largest power of two that divides it
    side_by_side = min(whole, tiles.images, budget)
    while side_by_side * rows * cols < budget and (rows < extent[0] or cols < extent[1]):
        if cols < extent[1] and (cols <= rows or rows >= extent[0]):
            cols *= 2
        else:
            rows *= 2
    while side_by_side * rows * cols < budget and side_by_side < whole:
        side_by_side *= 2
    size = side_by_side * rows * cols
    lanes = min(size, tiles.lanes)
    return Tile(side_by_side, rows, cols, size // lanes, lanes)
