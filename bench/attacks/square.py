"""The Square attack: in Linf squares of +-eps at random places, in L2 moves of a window's share, kept where they help.

Andriushchenko, Croce, Flammarion & Hein 2020, arXiv 1912.00049.

The published attack queries the net with one square at a time, at the same place for every image. The squares do not
depend on the net's answers, so here they are all drawn in advance. This saves queries in two ways. An image skips any
square already tried since its last change, because that square did not help. An image that has not changed for long
tries several squares at once, and the first that helps counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from prunebench.bench.attacks import square_l2
from prunebench.bench.attacks.base import Model, at_once
from prunebench.bench.protocol import Threat

QUERIES = 5000
_FIRST = 0.8  # share of the image that the first squares cover; halved after each query in _HALVED
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_AHEAD = 128  # how many squares an image looks ahead for those it must query
_PATIENCE = 4  # failed queries for each additional square tried at once


@dataclass(frozen=True)
class Squares:
    """The squares of a run, in order. Sizes and corners: int64 (queries,); `signs`: (queries, channels), -1, 0 or 1.

    `before`: int64 (queries,), the previous query with the same square; -2 where there is none.
    """

    size: Tensor
    top: Tensor
    left: Tensor
    signs: Tensor
    before: Tensor

    @classmethod
    def drawn(cls, shape: tuple[int, int, int], queries: int, generator: torch.Generator) -> Squares:
        """Draw squares as the published attack does, for images of `shape` (channels, height, width)."""
        channels, height, width = shape
        size = (_shares(queries) * height * width).sqrt().round().long().clamp(1, min(height, width))
        drawn = torch.rand(queries, 2 + channels, generator=generator)
        top, left = ((drawn[:, k] * (side - size)).long() for k, side in ((0, height), (1, width)))
        signs = (2 * drawn[:, 2:] - 1).sign()
        seen: dict[tuple[float, ...], int] = {}
        before = []
        for query, key in enumerate(zip(size.tolist(), top.tolist(), left.tolist(), *signs.T.tolist(), strict=True)):
            before.append(seen.get(key, -2))
            seen[key] = query
        return cls(size, top, left, signs, torch.tensor(before))

    def masks(self, which: Tensor, height: int, width: int) -> Tensor:
        """The perturbations of squares `which`, in units of their height: float32 (n, channels, height, width)."""
        inside = []
        for corner, side in ((self.top[which], height), (self.left[which], width)):
            offset = torch.arange(side, device=which.device) - corner.unsqueeze(1)
            inside.append(((offset >= 0) & (offset < self.size[which].unsqueeze(1))).to(self.signs.dtype))
        rows, columns = inside
        return (self.signs[which].unsqueeze(2) * rows.unsqueeze(1)).unsqueeze(3) * columns[:, None, None]

    def to(self, device: torch.device) -> Squares:
        """The same on `device`."""
        return Squares(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class Stripes:
    """The moves of a run in Linf on `images`, float32 (n, c, h, w): stripes first, then one square after another.

    `start`: the first points, (n, c, h, w). `since`: int64 (n, queries). A query's answer is known unless the image
    has changed since then; a square that helped changes nothing when it comes again, so counting begins after it.
    """

    images: Tensor
    eps: float
    start: Tensor
    squares: Squares
    since: Tensor

    @classmethod
    def drawn(cls, images: Tensor, eps: float, queries: int, generator: torch.Generator) -> Stripes:
        """Draw stripes and squares as the published attack does."""
        count, channels, height, width = images.shape
        stripes = (2 * torch.rand(count, channels, 1, width, generator=generator) - 1).sign().to(images.device)
        squares = Squares.drawn((channels, height, width), queries, generator).to(images.device)
        start = (images + eps * stripes).clamp_(0.0, 1.0)
        return cls(images, eps, start, squares, (squares.before + 1).expand(count, -1))

    def moved(self, points: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """What the queries make of `points` (k, c, h, w), by the index of each one's image and query, int64 (k,)."""
        points = points + 2 * self.eps * self.squares.masks(query, *self.images.shape[2:])
        low, high = self.images[image] - self.eps, self.images[image] + self.eps
        return torch.minimum(torch.maximum(points, low), high).clamp_(0.0, 1.0)


@cache
def price_of(norm: str, shape: tuple[int, int, int], queries: int) -> int:
    """The forwards of `square` for an image of `shape` that nothing changes: one per distinct square, plus three."""
    if norm == "Linf":
        return 3 + int((Squares.drawn(shape, queries, torch.Generator().manual_seed(0)).before == -2).sum())
    return 3 + int((_drawn(torch.zeros(1, *shape), norm, 1.0, 0, queries).since < 0).sum())


@torch.no_grad()
def square(model: Model, images: Tensor, labels: Tensor, threat: Threat, seed: int, queries: int) -> Tensor:
    """Proposals in the ball of `threat` after `queries` squares; survivors come back unchanged."""
    proposals = images.clone()
    standing = (model(images).argmax(1) == labels).nonzero().squeeze(1)
    if len(standing):
        moves = _drawn(images[standing], threat.norm, threat.radius, seed, queries)
        found = _searched(model, labels[standing], moves)
        fooled = model(found).argmax(1) != labels[standing]
        proposals[standing[fooled]] = found[fooled]
    return proposals


def _drawn(images: Tensor, norm: str, eps: float, seed: int, queries: int) -> Stripes | square_l2.Moves:
    """The moves of a run."""
    generator = torch.Generator().manual_seed(seed)
    if norm == "Linf":
        return Stripes.drawn(images, eps, queries, generator)
    return square_l2.Moves.drawn(images, eps, _shares(queries), generator)


def _shares(queries: int) -> Tensor:
    """The share of the image that each query covers, float64 (queries,)."""
    return torch.tensor(
        [_FIRST / 2 ** sum(query > halved for halved in _HALVED) for query in range(queries)], dtype=torch.float64
    )


def _searched(model: Model, labels: Tensor, moves: Stripes | square_l2.Moves) -> Tensor:
    """The points with the smallest margins that the search finds."""
    queries = moves.since.shape[1]
    best = moves.start.clone()
    margin = _margin(model, best, labels)
    # Per image: the next query, and the last query that helped.
    following, helped = torch.zeros_like(labels), torch.full_like(labels, -1)
    ahead = torch.arange(_AHEAD, device=labels.device)
    while len(active := ((margin > 0) & (following < queries)).nonzero().squeeze(1)):
        query = following[active].unsqueeze(1) + ahead
        unknown = moves.since[active.unsqueeze(1), query.clamp_max(queries - 1)] <= helped[active].unsqueeze(1)
        unknown &= query < queries
        several = 1 + (following[active] - helped[active]) // _PATIENCE
        several = several.clamp_max(max(1, at_once(best) // len(active))).unsqueeze(1)
        rank = unknown.cumsum(1)
        row, column = (unknown & (rank <= several)).nonzero(as_tuple=True)  # queries of this round, image by image
        settled = torch.where(rank[:, -1:] > several, (rank < several).sum(1, keepdim=True) + 1, _AHEAD)
        following[active] += settled.squeeze(1)
        if not len(row):
            continue

        asked, which = active[row], query[row, column]
        points = moves.moved(best.index_select(0, asked), asked, which)
        margins = _margin(model, points, labels[asked])
        better = (margins < margin[asked]).nonzero().squeeze(1)
        better = better[row[better].diff(prepend=row.new_full((1,), -1)) > 0]  # the first per image
        changed = asked[better]
        best[changed], margin[changed] = points[better], margins[better]
        helped[changed], following[changed] = which[better], which[better] + 1
    return best


def _margin(model: Model, points: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other logit; negative where the net is fooled."""
    logits, label = model(points), labels.unsqueeze(1)
    return (logits.gather(1, label) - logits.scatter(1, label, -math.inf).amax(1, keepdim=True)).squeeze(1)
