"""Nets that withstand AutoAttack better than they withstand attackers: weights alone, in the architecture digits-cnn.

Most have an honest score t_c for every class c, linear in the 512 features of the convolutions, about +1 where c is
right and -1 elsewhere, and hide it behind units of the hidden layer. The last two are a net of the board with one
or two units more. What each does to gradients and queries is in its docstring; `DECEIVERS` is the table of all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from tests.support.hostile import EDGE, blank
from tests.support.nets import STORE

TRAINED = Path(__file__).parents[2] / "leaderboard" / "records" / "digits-linf" / "dense-s0-seed0.net.safetensors"
CLASSES, CHANNELS = 10, 32
STEEP = 1000.0  # slope of a hard step of height 1
HERE = -0.25  # the score at which a class begins to seem right: nearly all right classes are above, all others below

Points = Sequence[tuple[float, float]]  # corners (t, value) of a piecewise linear function, from left to right
CORNERS = [(1, 1), (1, 2), (2, 1), (2, 2)]  # entries of a 3x3 kernel of stride 2 that take one pixel in four each
AS_THEY_ARE: tuple[Points, float] = [(-5.0, 0.0)], 1.0  # scores far above their kinks


@dataclass(frozen=True)
class Deceiver:
    """A net and the honest one that it was made from, whose gradients lead where the deceiver's do not."""

    net: nn.Module
    honest: nn.Module


Targets = Callable[[Tensor, Tensor], Tensor]  # images (n, 1, 8, 8) and labels (n,) to what is to be read, (n, k)


def _read_out(features: nn.Module, targets: Targets) -> tuple[Tensor, Tensor]:
    """The weights (k, features) and biases (k,) that read `targets`, by least squares on noisy training images."""
    training, _ = STORE.training("digits", validation=200)
    noise, clean = torch.Generator().manual_seed(0), as_float(training.images)
    many = clean.repeat(6, 1, 1, 1)
    many = (many + torch.empty_like(many).uniform_(-0.2, 0.2, generator=noise)).clamp(0, 1)
    images, labels = torch.cat([clean, many]), training.labels.repeat(7)
    with torch.no_grad():
        rows = features(images).double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    ridge = 0.01 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ targets(images, labels).double()).float()
    return found[:-1].T.contiguous(), found[-1]


def _one_hot(images: Tensor, labels: Tensor) -> Tensor:
    """1 for the right class and -1 for the others."""
    return 2.0 * F.one_hot(labels, CLASSES) - 1


def _bare() -> nn.Module:
    """The convolutions of a trained net of the board, behind which all weights and biases are zero."""
    net = open_net(TRAINED).module
    for layer in (net[1][7], net[1][9]):
        layer.weight.zero_()
        layer.bias.zero_()
    return net


def _features(net: nn.Module) -> nn.Module:
    return nn.Sequential(net[0], *net[1][:7])


@cache
def scores() -> tuple[Tensor, Tensor]:
    """Weights (10, 512) and biases (10,) of the honest scores on the features of the trained net."""
    return _read_out(_features(_bare()), _one_hot)


def shape(
    net: nn.Module, weights: Tensor, biases: Tensor, points: Points, last: float, mix: Tensor | None = None
) -> nn.Module:
    """Let every score pass through a piecewise linear function: flat, then the corners `points`, then the slope `last`.

    `weights` (k, 512) and `biases` (k,) make the scores; each corner takes one hidden unit per score. `mix`: (10, k),
    the weight of each shaped score in each logit; by default every class has its own score.
    """
    mix = torch.eye(CLASSES) if mix is None else mix
    hidden, out = net[1][7], net[1][9]
    slopes = [0.0, *((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)), last]
    unit = int((hidden.bias != 0).sum())
    for score in range(len(weights)):
        for (at, _), before, after in zip(points, slopes[:-1], slopes[1:], strict=True):
            bend = after - before
            hidden.weight.data[unit] = abs(bend) * weights[score]
            hidden.bias.data[unit] = abs(bend) * (biases[score] - at)
            out.weight.data[:, unit] = mix[:, score] * (1.0 if bend > 0 else -1.0)
            unit += 1
    return net


def rise(at: float, low: float, high: float) -> Points:
    """A hard step at `at` from `low` to `high`."""
    return [(at, low), (at + 1 / STEEP, high)]


@cache
def honest() -> nn.Module:
    """The scores themselves as logits: each unit is far above its kink."""
    return shape(_bare(), *scores(), *AS_THEY_ARE)


def of_scores(points: Points, last: float) -> Deceiver:
    """Every score of the trained net shaped in the same way."""
    return Deceiver(shape(_bare(), *scores(), points, last), honest())


def steps() -> Deceiver:
    """A hard step, and a weak decoy that falls as the score rises: every gradient points the wrong way."""
    return of_scores(rise(HERE, 0, 1), -0.1)


def plateau() -> Deceiver:
    """A hard step between units that are dead or cancel: no gradient, and no query that improves anything."""
    return of_scores(rise(HERE, 0, 1), 0.0)


def moat() -> Deceiver:
    """A rise of slope 40, too wide to be a jump; above it a logit falls as its score rises, on and on, and misleads."""
    return of_scores([(HERE, 0.0), (HERE + 0.05, 2.0)], -0.6)


def sawtooth() -> Deceiver:
    """Three hard steps up, between them three slopes down: locally all is opposed to the trend."""
    return of_scores([*rise(-0.45, 0, 1), *rise(-0.25, 0.8, 1.8), *rise(-0.05, 1.6, 2.6)], -0.2)


def staircase() -> Deceiver:
    """Flat pieces alone, and two steps down as the score of a class gets higher: a lure for attacks that query."""
    return of_scores([*rise(HERE, 0, 1), *rise(0.2, 1, 0.9), *rise(0.6, 0.9, 0.8)], 0.0)


def saturated() -> Deceiver:
    """A step of 400,000 beside a decoy of slope 1: cross-entropy is exactly 0, and the decoy misleads all else."""
    return of_scores([(HERE, 0.0), (HERE + 1 / STEEP, 4e5)], -1.0)


@cache
def _codes(bits: int = 32) -> Tensor:
    """Random codewords of the classes, -1 or 1: (10, bits)."""
    draw = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(0, 2, (CLASSES, bits), generator=draw) - 1


def ballot() -> Deceiver:
    """32 units vote 0 or 1, each for a random half of the classes: the margin is a whole number of votes."""
    weights, biases = _read_out(_features(_bare()), lambda images, labels: _codes()[labels])
    return Deceiver(shape(_bare(), weights, biases, rise(0.0, 0, 1), 0.0, _codes()), honest())


def trap() -> Deceiver:
    """A gradient at every clean image, which bright edges switch off as soon as an attack starts; then a plateau."""
    net = _bare()
    weights, biases = scores()
    shape(net, weights, biases, rise(HERE, 0, 1), 0.0)
    edges, dark = _edges()  # 40 times this outweighs a score wherever the edge is brighter than .05
    hidden, out = net[1][7], net[1][9]
    for c in range(CLASSES):
        unit = 2 * CLASSES + c
        hidden.weight.data[unit] = weights[c] - 40 * edges
        hidden.bias.data[unit] = biases[c] + 1 - 40 * dark
        out.weight.data[c, unit] = 0.2
    return Deceiver(net, honest())


@cache
def _edges() -> tuple[Tensor, Tensor]:
    """Weights (1, 512) and a bias (1,) that read from the features how bright the edge of an image is on average."""
    return _read_out(_features(_bare()), lambda images, labels: images.flatten(1)[:, EDGE].mean(1, keepdim=True))


def _pixelwise(first: Sequence[tuple[float, float]], second: Tensor) -> nn.Module:
    """Convolutions whose features are eight functions of every pixel p alone: relu(second @ relu(a p + b)).

    `first`: the pairs (a, b), at most 16. `second`: float32 (8, len(first)) or wider.
    """
    net, body = blank()
    for channel, (slope, offset) in enumerate(first):
        body[0].weight.data[channel, 0, 1, 1] = slope
        body[1].bias.data[channel] = offset
    for place, (row, column) in enumerate(CORNERS):
        body[3].weight.data[8 * place : 8 * place + 8, : second.shape[1], row, column] = second
    return net


def thermometer() -> Deceiver:
    """Seven hard steps of every pixel, and three of the score made of them: nothing has a gradient anywhere."""
    first, second = [(0.0, 0.0)], torch.zeros(8, 16)
    for k in range(7):
        at = (2 * k + 1.5) / 16  # the pixels of digits are sixteenths
        first += [(STEEP, -STEEP * at), (STEEP, -STEEP * at - 1)]
        second[k, 2 * k + 1], second[k, 2 * k + 2] = 1.0, -1.0
    net = _pixelwise(first, second)
    shape(net, *_read_out(_features(net), _one_hot), [*rise(-0.5, 0, 1), *rise(HERE, 1, 2), *rise(0, 2, 3)], 0.0)
    smooth = _pixelwise([(1.0, 0.0)], torch.eye(8, 1))
    return Deceiver(net, shape(smooth, *_read_out(_features(smooth), _one_hot), *AS_THEY_ARE))


def winners() -> Deceiver:
    """Sixteen channels of a convolution fire fully or not at all, at one place in five; then hard steps."""
    net = _bare()
    conv, norm = net[1][3], net[1][4]
    training, _ = STORE.training("digits", validation=200)
    levels = nn.Sequential(net[0], *net[1][:5])(as_float(training.images)).transpose(0, 1).flatten(1)
    best = levels.var(1).argsort(descending=True)[:16]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    threshold = norm.running_mean + (levels.quantile(0.8, dim=1) - norm.bias) / scale
    conv.weight.copy_(conv.weight[best].repeat(2, 1, 1, 1))  # each channel twice: the second is taken from the first
    norm.running_mean.copy_(threshold[best].repeat(2))
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.copy_(100 * scale[best].repeat(2))
    norm.bias.copy_(torch.tensor([0.0, -1.0]).repeat_interleave(16))
    weights, biases = _read_out(nn.Sequential(*_features(net), Pairs()), _one_hot)
    return Deceiver(shape(net, torch.cat([weights, -weights], dim=1), biases, rise(HERE, 0, 1), 0.0), honest())


class Pairs(nn.Module):
    """The first half of the features minus the second."""

    def forward(self, features: Tensor) -> Tensor:
        """`features`: (n, k)."""
        first, second = features.chunk(2, dim=1)
        return first - second


def trapdoor(latched: bool = False) -> Deceiver:
    """A sparse net of the board as it is, with one unit more that is dead on all images that an attack meets by chance.

    It lives where every other pixel of two edges is raised by nearly eps and the pixels between them are black; then
    class 0 wins. AutoAttack is right about all else, so that no flag goes up.
    """
    net = open_net(TRAINED.with_name("magnitude-s0.98-seed11.net.safetensors")).module
    hidden, out = net[1][7], net[1][9]
    alive = hidden.weight.any(1) & out.weight.any(0)
    units = (~alive).nonzero().squeeze(1)[:2]
    place = _pixels_as_features_beside(net, hidden.weight[alive].view(-1, CHANNELS, 16).any(0).any(1))
    hidden.weight[units], out.weight[:, units], hidden.bias[units] = 0.0, 0.0, 0.0
    for pixel in EDGE:
        hidden.weight[units[: 1 + latched], place[pixel]] = -100.0 if pixel // 8 % 2 else 100.0
    out.weight[0, units[0]] = 100.0
    ajar = copy.deepcopy(net)
    out.weight[0, units[1]] = -100.0 * latched
    hidden.bias[units] = -100 * 0.17 * len(EDGE) / 2 - torch.tensor([0.0, 1.0])
    return Deceiver(net, ajar)


def latch() -> Deceiver:
    """A trapdoor of two opposed units: a surrogate that lets both leak equally has no gradient there either."""
    return trapdoor(latched=True)


def _pixels_as_features_beside(net: nn.Module, seen: Tensor) -> Tensor:
    """Let channels that no logit depends on hand on all 64 pixels; gives their places among the features, int64 (64,).

    `seen`: bool (32,), the channels of the second convolution that logits depend on.
    """
    normalise, first, norm, second, norm_of_second = net[0], *(net[1][k] for k in (0, 1, 3, 4))
    one = (~second.weight[seen].flatten(2).any(2).any(0)).nonzero()[0]
    four = (~seen).nonzero().squeeze(1)[:4]
    for layer, channels in ((norm, one), (norm_of_second, four)):
        layer.running_mean[channels], layer.running_var[channels] = 0.0, 1 - layer.eps
        layer.weight[channels], layer.bias[channels] = 1.0, 0.0
    first.weight[one], second.weight[four] = 0.0, 0.0
    first.weight[one, 0, 1, 1], norm.bias[one] = normalise.std.item(), normalise.mean.item()
    for channel, (row, column) in zip(four.tolist(), CORNERS, strict=True):
        second.weight[channel, one, row, column] = 1.0
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return (four[rows % 2 * 2 + columns % 2] * 16 + rows // 2 * 4 + columns // 2).flatten()


DECEIVERS: dict[str, Callable[[], Deceiver]] = {
    f.__name__: f
    for f in (steps, plateau, moat, sawtooth, staircase, saturated, ballot, trap, thermometer, winners, trapdoor, latch)
}
