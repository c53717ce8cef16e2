"""The moves of the Square attack in L2: a window takes up another's share of the perturbation.

Andriushchenko, Croce, Flammarion & Hein 2020, arXiv 1912.00049, section 3.4 and algorithm 3. As in the published code,
the windows of a query are shared by all images, and the signs of an image's channels are its own.

The published attack draws signs only for the images that still stand, so its random numbers depend on which images
fall. Here they are drawn for all images: one image alone meets exactly the published numbers, and in a batch no image
meets others because another fell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

_TINY = 1e-12  # where a length of 0 would divide
_DRAWS = 5  # of a query, besides the signs: the corners of two windows, and whether the pattern lies on its side
_SMALLEST = 3  # side of a window; all sides are odd unless the image is smaller
_KEPT = 2**24  # how many values of windows are kept, 64 MB


@dataclass(frozen=True)
class Moves:
    """The queries of a run on `images`, float32 (n, c, h, w), in order.

    `start`: the first points, (n, c, h, w). `size`: int64 (queries,), the side of the windows. `corners`: int64
    (queries, 4), the top and left end of the window that gains, then of the one that loses. `kind`: int64 (queries,),
    which of `patterns`, float32 (kinds, side, side), the first window gains; smaller ones end in zeros. `signs`: int8
    (n, queries, c), -1, 0 or 1. `since`: int64 (n, queries), the previous query that moves the image in the same way;
    -2 where there is none. Its answer is known unless the image has changed since then, by that query or a later one.
    """

    images: Tensor
    eps: float
    start: Tensor
    size: Tensor
    corners: Tensor
    kind: Tensor
    patterns: Tensor
    signs: Tensor
    since: Tensor

    @classmethod
    def drawn(cls, images: Tensor, eps: float, shares: Tensor, generator: torch.Generator) -> Moves:
        """Draw as the published attack does; `shares`: float64 (queries,), the part of the image in each window."""
        count, channels, height, width = images.shape
        start = _tiled(images.shape, generator).to(images.device)
        size = (shares * height * width).sqrt().round().long().clamp_min(_SMALLEST)
        size = (size + 1 - size % 2).clamp_max(min(height, width))
        draws = torch.rand(len(size), _DRAWS + count * channels, generator=generator)
        rooms = torch.tensor([height, width, height, width]) - size.unsqueeze(1)
        corners, turned = (draws[:, :4] * rooms).long(), draws[:, 4] > 0.5
        signs = _signs(draws[:, _DRAWS:]).to(torch.int8).view(len(size), count, channels).transpose(0, 1).contiguous()
        sizes, kind = size.unique(return_inverse=True)
        patterns = torch.zeros(len(sizes), 2, int(sizes[-1]), int(sizes[-1]))
        for number, side in enumerate(sizes.tolist()):
            patterns[number, 0, :side, :side], patterns[number, 1, :side, :side] = _pattern(side), _pattern(side).T
        kind = 2 * kind + turned
        since = _repeated(torch.column_stack([kind, corners]), signs)
        start = (images + start / _length(start) * eps).clamp_(0.0, 1.0)
        drawn = (size, corners, kind, patterns.flatten(0, 1), signs, since)
        return cls(images, eps, start, *(of.to(images.device) for of in drawn))

    def moved(self, points: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """What the queries make of `points` (k, c, h, w), by the index of each one's image and query, int64 (k,)."""
        pattern, gains, either = self._windows_of(query).unsqueeze(2).unbind(1)
        images, signs = self.images.index_select(0, image), self.signs[image, query].to(points.dtype)
        offsets = points - images
        squares = offsets * offsets
        free = (self.eps**2 - squares.sum((1, 2, 3), keepdim=True)).clamp_min_(0.0) / points.shape[1]
        goal = (free + _over(squares * either)).sqrt_()
        kept = offsets * gains
        kept /= _over(squares.mul_(gains)).sqrt_().add_(_TINY)
        gained = pattern.mul(signs[:, :, None, None]).add_(kept)
        gained *= goal / _over(gained * gained).sqrt_().add_(_TINY)
        offsets.addcmul_(offsets, either, value=-1).add_(gained)
        return offsets.mul_(self.eps / _length(offsets)).add_(images).clamp_(0.0, 1.0)

    def _windows_of(self, query: Tensor) -> Tensor:
        """For each query, (k,): the pattern in its window, the window that gains, and both windows; (k, 3, h, w)."""
        if self._every is not None:
            return self._every.index_select(0, query)
        queries, at = query.unique(return_inverse=True)
        return self._windows(queries).index_select(0, at)

    @cached_property
    def _every(self) -> Tensor | None:
        """`_windows` of all queries, unless they are too many to keep."""
        queries = torch.arange(len(self.size), device=self.size.device)
        few = 3 * len(queries) * math.prod(self.images.shape[2:]) <= _KEPT
        return self._windows(queries) if few else None

    def _windows(self, queries: Tensor) -> Tensor:
        """As `_windows_of`."""
        corners, size = self.corners[queries].T.unsqueeze(2), self.size[queries].unsqueeze(1)
        sides = self.images.shape[2:] * 2
        offsets = [torch.arange(side, device=queries.device) - at for side, at in zip(sides, corners, strict=True)]
        rows, columns, *others = (((offset >= 0) & (offset < size)).to(self.images.dtype) for offset in offsets)
        gains, loses = (down.unsqueeze(2) * right.unsqueeze(1) for down, right in ((rows, columns), others))
        row, column = (offset.clamp(0, self.patterns.shape[1] - 1) for offset in offsets[:2])
        pattern = self.patterns[self.kind[queries].view(-1, 1, 1), row.unsqueeze(2), column.unsqueeze(1)]
        return torch.stack([pattern * gains, gains, torch.maximum(gains, loses)], dim=1)


@cache
def _pattern(side: int) -> Tensor:
    """Two bumps of opposite sign one above the other, of length 1; float32 (side, side)."""
    upper = side // 2
    pattern = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    return (pattern / pattern.norm()).float()


def _bump(height: int, width: int) -> Tensor:
    """Squares around the centre, one on the other, each next one larger and lower; of length 1, float64.

    The square that reaches k pixels from the centre has the height 1 / (k + 1)^2 (equation 2).
    """
    reach = max(height, width) // 2 + 1
    heights = torch.arange(1, reach + 1, dtype=torch.float64).pow(-2).flip(0).cumsum(0).flip(0)
    away = [(torch.arange(side) - side // 2).abs() for side in (height, width)]
    bump = heights[torch.maximum(away[0].unsqueeze(1), away[1])]
    return bump / bump.norm()


def _tiled(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A grid of patterns, about five by five, each with a sign for each image and channel; float32 of `shape`.

    Patterns that lie beyond the edge are drawn but not seen, as in the published attack; one on the edge is cut off.
    """
    count, channels, height, width = shape
    side = max(height // 5, 1)
    first = max((height - side * 5) // 2, 0)
    tiled = torch.zeros(shape)
    for top in range(first, first + height // side * side, side):
        for left in range(first, first + width // side * side, side):
            draws = torch.rand(1 + count * channels, generator=generator)
            pattern = _pattern(side).T if draws[0] > 0.5 else _pattern(side)
            pattern = pattern[: max(height - top, 0), : max(width - left, 0)]
            tiled[:, :, top : top + side, left : left + side] += _signs(draws[1:]).view(count, channels, 1, 1) * pattern
    return tiled


def _repeated(windows: Tensor, signs: Tensor) -> Tensor:
    """For each image the previous query with equal `windows` (queries, d) and `signs` (n, queries, c), or -2."""
    channels = signs.shape[2]
    places = 3 ** torch.arange(channels)
    kind = windows.unique(dim=0, return_inverse=True)[1] * 3**channels + ((signs.long() + 1) * places).sum(2)
    ordered, order = kind.sort(dim=1, stable=True)
    previous = order[:, :-1].where(ordered[:, 1:] == ordered[:, :-1], -2)
    return torch.full_like(kind, -2).scatter_(1, order[:, 1:], previous)


def _signs(draws: Tensor) -> Tensor:
    return (2 * draws - 1).sign()


def _over(values: Tensor) -> Tensor:
    """The sum of each channel, (k, c, 1, 1)."""
    return values.sum((2, 3), keepdim=True)


def _length(offsets: Tensor) -> Tensor:
    """The Euclidean length of each image's offsets, (k, 1, 1, 1)."""
    return (offsets * offsets).sum((1, 2, 3), keepdim=True).sqrt_() + _TINY
