"""Triton kernels for a card: sparse convolution, max pooling and its gradient, in float32 with fused products and sums.

A value lies in memory as channel x (rows + frame) x (cols + frame) x images, images innermost and a multiple of 16.
Its frame holds zeros, so no kernel asks where an image ends. Every element of a result belongs to one program, which
adds in a fixed order: no atomics, the same bits every time. `table` points to the numbers of a `Geometry`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from prunebench.bench.executor.card.geometry import place

CHANNELS = tl.constexpr(place("channels"))
ROWS, COLS = tl.constexpr(place("rows")), tl.constexpr(place("cols"))
TILES = tl.constexpr(place("tiles"))
SOURCE_ROWS, SOURCE_COLS = tl.constexpr(place("source_rows")), tl.constexpr(place("source_cols"))
READ, OUT, ADD = tl.constexpr(place("read")), tl.constexpr(place("out")), tl.constexpr(place("add"))
SAVED, SIGN = tl.constexpr(place("saved")), tl.constexpr(place("sign"))


@triton.jit
def _at(table, FIELD: tl.constexpr, row, col, image, images):
    """The distance of these pixels in the first channel of a value."""
    first = tl.load(table + FIELD) + row * tl.load(table + FIELD + 2) + col * tl.load(table + FIELD + 3)
    return first * images + image


@triton.jit
def _begin(bias, add, channel, inside, pitch, ADDS: tl.constexpr):
    """A sum before its first weight: the bias, and what is added."""
    sums = tl.load(bias + channel)
    if ADDS:
        sums += tl.load(add + channel * pitch, mask=inside, other=0.0)
    return sums


@triton.jit
def _gated(sums, signs, leak, inside, GATE: tl.constexpr, SAVES: tl.constexpr):
    """Sums behind a gate. 0: none. 1: ReLU, its signs saved. 2: times the saved signs. 3: leaking where they are 0."""
    if GATE == 1:
        off = sums <= 0.0  # not for NaN, which passes with its gradient
        sums = tl.where(off, 0.0, sums)
        if SAVES:
            tl.store(signs, tl.where(off, 0, 1).to(tl.int8), mask=inside)
    if GATE == 2:
        sums = tl.where(tl.load(signs, mask=inside, other=0) != 0, sums, 0.0)
    if GATE == 3:
        sums = tl.where(tl.load(signs, mask=inside, other=0) != 0, sums, leak * sums)
    return sums


@triton.jit(do_not_specialize=["blocks"])
def convolve(
    x, y, add, signs, bias, starts, firsts, offsets, weights, table, images, blocks, leak,
    LINES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, TILE_IMAGES: tl.constexpr, TILE_COLS: tl.constexpr,
    SHARED: tl.constexpr, UNROLL: tl.constexpr, GATE: tl.constexpr, ADDS: tl.constexpr, SAVES: tl.constexpr,
):  # fmt: skip
    """A tile of pixels and images, for a block of LINES lists of weights; each list serves SHARED output channels.

    A warp holds the PARTS x LANES sums of its list in registers. `starts`: the steps at which the blocks' lists begin;
    `firsts`: the first channel of each list. A step has one offset and SHARED weights for each list of the block.
    """
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    each = tl.arange(0, PARTS)[None, :, None] * LANES + tl.arange(0, LANES)[None, None, :]
    tiles, across = images // TILE_IMAGES, tl.load(table + TILES)
    rows, cols = tl.load(table + ROWS), tl.load(table + COLS)
    image = tile % tiles * TILE_IMAGES + each % TILE_IMAGES
    col = tile // tiles % across * TILE_COLS + each // TILE_IMAGES % TILE_COLS
    row = tile // tiles // across * (PARTS * LANES // TILE_IMAGES // TILE_COLS) + each // (TILE_IMAGES * TILE_COLS)
    inside = (row < rows) & (col < cols)
    row, col = tl.minimum(row, rows - 1), tl.minimum(col, cols - 1)  # beyond the edge, the last pixel again
    read = x + _at(table, READ, row, col, image, images)
    y += _at(table, OUT, row, col, image, images)
    add += _at(table, ADD, row, col, image, images)
    signs += _at(table, SIGN, row, col, image, images)
    to, pitch = tl.load(table + OUT + 1) * images, tl.load(table + ADD + 1) * images
    kept, channels = tl.load(table + SIGN + 1) * images, tl.load(table + CHANNELS)
    line = tl.arange(0, LINES)
    first = tl.load(firsts + block * LINES + line)[:, None, None]
    empty = tl.full((LINES, PARTS, LANES), 0.0, tl.float32)
    sum0 = empty + _begin(bias, add, first, inside & (first < channels), pitch, ADDS)
    if SHARED == 4:
        sum1 = empty + _begin(bias, add, first + 1, inside & (first + 1 < channels), pitch, ADDS)
        sum2 = empty + _begin(bias, add, first + 2, inside & (first + 2 < channels), pitch, ADDS)
        sum3 = empty + _begin(bias, add, first + 3, inside & (first + 3 < channels), pitch, ADDS)
    for step in tl.range(tl.load(starts + block), tl.load(starts + block + 1), UNROLL):
        for ahead in tl.static_range(UNROLL):
            entry = (step + ahead) * LINES + line
            values = tl.load(read + (tl.load(offsets + entry) * images)[:, None, None])
            sum0 += tl.load(weights + entry * SHARED)[:, None, None] * values
            if SHARED == 4:
                sum1 += tl.load(weights + entry * SHARED + 1)[:, None, None] * values
                sum2 += tl.load(weights + entry * SHARED + 2)[:, None, None] * values
                sum3 += tl.load(weights + entry * SHARED + 3)[:, None, None] * values
    real = inside & (first < channels)
    tl.store(y + first * to, _gated(sum0, signs + first * kept, leak, real, GATE, SAVES), mask=real)
    if SHARED == 4:
        real = inside & (first + 1 < channels)
        tl.store(y + (first + 1) * to, _gated(sum1, signs + (first + 1) * kept, leak, real, GATE, SAVES), mask=real)
        real = inside & (first + 2 < channels)
        tl.store(y + (first + 2) * to, _gated(sum2, signs + (first + 2) * kept, leak, real, GATE, SAVES), mask=real)
        real = inside & (first + 3 < channels)
        tl.store(y + (first + 3) * to, _gated(sum3, signs + (first + 3) * kept, leak, real, GATE, SAVES), mask=real)


@triton.jit
def pool(
    x, y, places, table, images,
    WIDTH: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr,
    SAVES: tl.constexpr,
):  # fmt: skip
    """The largest of each window of ROW x COL pixels; its place is saved, the first of equals."""
    channel, each = tl.program_id(1), tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    rows, cols = tl.load(table + ROWS), tl.load(table + COLS)
    inside = each < rows * cols * images
    image, col, row = each % images, each // images % cols, each // images // cols
    x += _at(table, READ, row * DOWN, col * RIGHT, image, images) + channel * tl.load(table + READ + 1) * images
    y += _at(table, OUT, row, col, image, images) + channel * tl.load(table + OUT + 1) * images
    places += _at(table, SAVED, row, col, image, images) + channel * tl.load(table + SAVED + 1) * images
    down, right = tl.load(table + READ + 2) * images, tl.load(table + READ + 3) * images
    best = tl.load(x, mask=inside, other=0.0)
    found = tl.full((WIDTH,), 0, tl.int32)
    for k in tl.static_range(1, ROW * COL):
        value = tl.load(x + (k // COL) * down + (k % COL) * right, mask=inside, other=0.0)
        better = (value > best) | (value != value)
        best, found = tl.where(better, value, best), tl.where(better, k, found)
    tl.store(y, best, mask=inside)
    if SAVES:
        tl.store(places, found.to(tl.int8), mask=inside)


@triton.jit
def unpool(
    x, y, add, places, signs, table, images, leak,
    WIDTH: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr,
    GATE: tl.constexpr, ADDS: tl.constexpr, LEAKS: tl.constexpr,
):  # fmt: skip
    """The gradient of a pool's input: each pixel collects from the windows that hold it, in their order."""
    channel, each = tl.program_id(1), tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    rows, cols = tl.load(table + ROWS), tl.load(table + COLS)
    inside = each < rows * cols * images
    image, col, row = each % images, each // images % cols, each // images // cols
    x += channel * tl.load(table + READ + 1) * images
    places += channel * tl.load(table + SAVED + 1) * images
    signs += _at(table, SIGN, row, col, image, images) + channel * tl.load(table + SIGN + 1) * images
    sums = tl.full((WIDTH,), 0.0, tl.float32)
    for up in tl.static_range((ROW - 1) // DOWN, -1, -1):
        for left in tl.static_range((COL - 1) // RIGHT, -1, -1):
            i, j = row // DOWN - up, col // RIGHT - left
            k, m = row - i * DOWN, col - j * RIGHT
            held = inside & (i >= 0) & (j >= 0) & (k < ROW) & (m < COL)
            held = held & (i < tl.load(table + SOURCE_ROWS)) & (j < tl.load(table + SOURCE_COLS))
            value = tl.load(x + _at(table, READ, i, j, image, images), mask=held, other=0.0)
            taken = tl.load(places + _at(table, SAVED, i, j, image, images), mask=held, other=0) == k * COL + m
            if LEAKS:
                sums += tl.where(taken, value, leak * value)
            else:
                sums += tl.where(taken, value, 0.0)
    if ADDS:
        add += _at(table, ADD, row, col, image, images) + channel * tl.load(table + ADD + 1) * images
        sums += tl.load(add, mask=inside, other=0.0)
    y += _at(table, OUT, row, col, image, images) + channel * tl.load(table + OUT + 1) * images
    tl.store(y, _gated(sums, signs, leak, inside, GATE, False), mask=inside)
