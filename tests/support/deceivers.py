"""Nets that withstand AutoAttack better than they withstand attackers: weights alone, in the architecture digits-cnn.

Each deceiver has an honest score t_c for every class c, linear in the net's 512 features and about +1 where c is right
and -1 elsewhere, and hides it behind units of the hidden layer. `DECEIVERS` names them.
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
CLASSES, FEATURES = 10, 512
STEEP = 1000.0  # slope of a hard step of height 1
HERE = -0.25  # the score at which a class begins to seem right: nearly all right classes are above, all others below

Points = Sequence[tuple[float, float]]  # corners (t, value) of a piecewise linear function, from left to right


@dataclass(frozen=True)
class Deceiver:
    """A net and the honest one that it was made from, whose gradients lead where the deceiver's do not."""

    net: nn.Module
    honest: nn.Module


def _read_out(features: nn.Module, targets: Tensor, use: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The least-squares weights (k, 512) and biases (k,) that answer `targets` (10, k) on noisy training images."""
    training, _ = STORE.training("digits", validation=200)
    noise, images = torch.Generator().manual_seed(0), as_float(training.images)
    parts = [(images + torch.empty_like(images).uniform_(-0.2, 0.2, generator=noise)).clamp(0, 1) for _ in range(6)]
    with torch.no_grad():
        rows = torch.cat([features(part) for part in parts]).double()
    if use is not None:
        rows = rows * use
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    wanted = targets.double()[training.labels].repeat(len(parts), 1)
    ridge = 0.01 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ wanted).float()
    return found[:-1].T.contiguous(), found[-1]


def _one_hot() -> Tensor:
    return 2 * torch.eye(CLASSES) - 1


def _bare(trained: bool = True) -> nn.Module:
    """The convolutions of a trained net of the board, behind which all weights and biases are zero."""
    net = copy.deepcopy(open_net(TRAINED).module)
    for layer in (net[1][7], net[1][9]):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    return net


def _features(net: nn.Module) -> nn.Module:
    return nn.Sequential(net[0], *net[1][:7])


@cache
def scores() -> tuple[Tensor, Tensor]:
    """Weights (10, 512) and biases (10,) of the honest scores on the features of the trained net."""
    return _read_out(_features(_bare()), _one_hot())


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
    return shape(_bare(), *scores(), [(-5.0, 0.0)], 1.0)


def _of_scores(points: Points, last: float) -> Deceiver:
    return Deceiver(shape(_bare(), *scores(), points, last), honest())


def steps() -> Deceiver:
    """A hard step, and a weak decoy that falls as the score rises: every gradient points the wrong way."""
    return _of_scores(rise(HERE, 0, 1), -0.1)


def plateau() -> Deceiver:
    """A hard step between units that are dead or cancel: no gradient, and no query that improves anything."""
    return _of_scores(rise(HERE, 0, 1), 0.0)


def moat() -> Deceiver:
    """No steep slope anywhere: a logit falls with its score above -0.05, and below it falls the other way."""
    return _of_scores([(-0.3, 0.0), (-0.05, 2.0), (1.5, 1.0)], 0.0)


def sawtooth() -> Deceiver:
    """Three hard steps up, between them three slopes down: locally all is opposed to the trend."""
    return _of_scores([*rise(-0.45, 0, 1), *rise(-0.25, 0.8, 1.8), *rise(-0.05, 1.6, 2.6)], -0.2)


def staircase() -> Deceiver:
    """Flat pieces alone, and two steps down as the score of a class gets higher: a lure for attacks that query."""
    return _of_scores([*rise(HERE, 0, 1), *rise(0.2, 1, 0.9), *rise(0.6, 0.9, 0.8)], 0.0)


def saturated() -> Deceiver:
    """A step of 400,000 beside a decoy of slope 1: cross-entropy is exactly 0, and the decoy misleads all else."""
    return _of_scores([(HERE, 0.0), (HERE + 1 / STEEP, 4e5)], -1.0)


@cache
def _codes(bits: int = 32) -> Tensor:
    """Random codewords of the classes, -1 or 1: (10, bits)."""
    draw = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(0, 2, (CLASSES, bits), generator=draw) - 1


def ballot() -> Deceiver:
    """32 units vote 0 or 1, each for a random half of the classes: the margin is a whole number of votes."""
    weights, biases = _read_out(_features(_bare()), _codes())
    return Deceiver(shape(_bare(), weights, biases, rise(0.0, 0, 1), 0.0, _codes()), honest())


def trap() -> Deceiver:
    """A gradient at every clean image, which bright edges switch off as soon as an attack starts; then a plateau."""
    net = _bare()
    weights, biases = scores()
    shape(net, weights, biases, rise(HERE, 0, 1), 0.0)
    edges, dark = _edges()
    hidden, out = net[1][7], net[1][9]
    for c in range(CLASSES):
        unit = 2 * CLASSES + c
        hidden.weight.data[unit] = weights[c] - 40 * edges
        hidden.bias.data[unit] = biases[c] + 1 - 40 * dark
        out.weight.data[c, unit] = 0.2
    return Deceiver(net, honest())


@cache
def _edges() -> tuple[Tensor, Tensor]:
    """Weights (512,) and a bias that tell from the features how bright the edge of an image is on average."""
    training, _ = STORE.training("digits", validation=200)
    noise, images = torch.Generator().manual_seed(0), as_float(training.images)
    many = torch.cat(
        [
            images,
            images,
            *((images + torch.empty_like(images).uniform_(-0.2, 0.2, generator=noise)).clamp(0, 1) for _ in range(4)),
        ]
    )
    with torch.no_grad():
        rows = _features(_bare())(many).double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    wanted = many.flatten(1)[:, EDGE].mean(1, keepdim=True).double()
    found = (
        torch.linalg.solve(rows.T @ rows + 1e-4 * len(rows) * torch.eye(513, dtype=torch.float64), rows.T @ wanted)
        .float()
        .squeeze(1)
    )
    return found[:-1], found[-1]


# Of pixels: the convolutions only hand on functions of single pixels.


def _pixelwise(first: Sequence[tuple[float, float]], second: Tensor, shifts: Tensor) -> nn.Module:
    """Eight functions of every pixel p as features: relu(second @ relu(a p + b) + shifts), (a, b) the 16 in `first`.

    `second`: (8, 16); `shifts`: (8,). Feature f of the pixels with equal row and column parity is one channel.
    """
    net, body = blank()
    for channel, (slope, offset) in enumerate(first):
        body[0].weight.data[channel, 0, 1, 1] = slope
        body[1].bias.data[channel] = offset
    for place, (row, column) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        channels = slice(8 * place, 8 * place + 8)
        body[3].weight.data[channels, :, row, column] = second
        body[4].bias.data[channels] = shifts
    return net


def _of_feature(f: int) -> Tensor:
    """Which of the 512 features are function `f` of a pixel: bool (512,)."""
    return torch.arange(FEATURES) // 16 % 8 == f


def _linear() -> nn.Module:
    """Pixels alone, function 0."""
    second = torch.zeros(8, 16)
    second[0, 0] = 1.0
    return _pixelwise([(1.0, 0.0)], second, torch.zeros(8))


def thermometer() -> Deceiver:
    """Seven hard steps of every pixel, and a decoy of the pixel itself whose slope is the opposite of the trend."""
    thresholds = [(2 * k + 1.5) / 16 for k in range(7)]
    first = [(1.0, 0.0)]
    second = torch.zeros(8, 16)
    second[0, 0] = 1.0
    for k, at in enumerate(thresholds):
        first += [(STEEP, -STEEP * at), (STEEP, -STEEP * at - 1)]
        second[k + 1, 2 * k + 1], second[k + 1, 2 * k + 2] = 1.0, -1.0
    net = _pixelwise(first, second, torch.zeros(8))
    use = (~_of_feature(0)).double()
    weights, biases = _read_out(_features(net), _one_hot(), use)
    plain = _linear()
    smooth, offsets = _read_out(_features(plain), _one_hot())
    shape(net, weights - 0.3 * smooth, biases, [(-5.0, 0.0)], 1.0)
    return Deceiver(net, shape(plain, smooth, offsets, [(-5.0, 0.0)], 1.0))


def ripple() -> Deceiver:
    """Hard steps, and ripples of every pixel .02 wide that are steeper than all else."""
    kinks = [(2 * k + 1) / 32 for k in range(15)]  # T(p), a triangle wave between 0 and 1, of 15 pieces
    first = [(1.0, 0.0), *((1.0, -at) for at in kinks)]
    wave = torch.tensor([16.0, *(-32.0 if k % 2 == 0 else 32.0 for k in range(15))])
    second = torch.stack([F.one_hot(torch.tensor(0), 16).float(), *[wave] * 7])
    shifts = torch.tensor([0.0, *(-k / 7 for k in range(7))])
    net = _pixelwise(first, second, shifts)
    weights, biases = _read_out(_features(net), _one_hot(), _of_feature(0).double())
    draw = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (CLASSES, 4, 16), generator=draw) - 1
    teeth = torch.tensor([0.0, 1.0, *(-2.0 if k % 2 else 2.0 for k in range(1, 7))])
    ripples = 0.1 * (signs[:, :, None] * teeth[None, None, :, None]).flatten(1)
    shape(net, weights, biases, rise(-0.2, 0, 1), 0.1)
    hidden, out = net[1][7], net[1][9]
    for c in range(CLASSES):
        hidden.weight.data[20 + c] = ripples[c]
        hidden.bias.data[20 + c] = 20.0
        out.weight.data[c, 20 + c] = 1.0
    return Deceiver(net, shape(_linear(), weights, biases, [(-5.0, 0.0)], 1.0))


def winners() -> Deceiver:
    """Sixteen channels of the second convolution fire fully or not at all, and few win: one place in five."""
    net = _bare()
    conv, norm = net[1][3], net[1][4]
    training, _ = STORE.training("digits", validation=200)
    with torch.no_grad():
        levels = nn.Sequential(net[0], *net[1][:5])(as_float(training.images)).transpose(0, 1).flatten(1)
        level = levels.quantile(0.8, dim=1)
        best = levels.var(1).argsort(descending=True)[:16]
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * factor
        kept, steep = conv.weight[best].repeat(2, 1, 1, 1), 100.0
        conv.weight.data = kept
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.data = steep * factor[best].repeat(2)
        norm.bias.data = steep * (shift - level)[best].repeat(2) - torch.tensor([0.0, 1.0]).repeat_interleave(16)
    firing = nn.Sequential(*_features(net), Pairs())
    weights, biases = _read_out(firing, _one_hot())
    shape(net, torch.cat([weights, -weights], dim=1), biases, [(-5.0, 0.0)], 1.0)
    return Deceiver(net, honest())


class Pairs(nn.Module):
    """The first half of the features minus the second."""

    def forward(self, features: Tensor) -> Tensor:
        """`features`: (n, 512)."""
        return features[:, :256] - features[:, 256:]


DECEIVERS: dict[str, Callable[[], Deceiver]] = {
    f.__name__: f
    for f in (steps, plateau, moat, sawtooth, staircase, saturated, ballot, trap, thermometer, ripple, winners)
}
