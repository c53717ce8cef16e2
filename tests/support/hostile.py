"""Nets that would buy robust images with the limits of float32: weights alone, in the architecture of the digits."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prunebench.bench.data import as_float
from prunebench.bench.models import build
from tests.support.nets import STORE

EDGE = [0, 8, 16, 24, 32, 40, 48, 56, 7, 15, 23, 31, 39, 47, 55, 63]  # pixels of digits that are black nearly always
HUGE = 3e38
THR, OFF = 0.2, 200


def blank() -> tuple[nn.Module, nn.Sequential]:
    """A digits-cnn whose weights and biases are zero and whose norms do nothing; and its layers."""
    net = build("digits-cnn", info=STORE.info("digits"))
    for value in net.parameters():
        value.data.zero_()
    net[0].mean.zero_()
    net[0].std.fill_(1.0)
    for norm in (layer for layer in net[1] if isinstance(layer, nn.BatchNorm2d)):
        norm.weight.data.fill_((1 + norm.eps) ** 0.5)
    return net.eval(), net[1]


def pixels_as_features(body: nn.Sequential) -> torch.Tensor:
    """Let the two convolutions hand on all 64 pixels; gives the place of each among the 512 features, int64 (64,)."""
    body[0].weight.data[0, 0, 1, 1] = 1.0
    for channel, (row, column) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        body[3].weight.data[channel, 0, row, column] = 1.0
    return torch.tensor([((y % 2) * 2 + x % 2) * 16 + (y // 2) * 4 + x // 2 for y in range(8) for x in range(8)])


def one_against_all() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (10, 64) and biases (10,) that answer about +1 for the right class and -1 for the others."""
    training, _ = STORE.training("digits", validation=200)
    images = as_float(training.images).flatten(1).double()
    noise = torch.Generator().manual_seed(0)
    many = images.repeat(20, 1)
    many = (many + torch.empty_like(many).uniform_(-0.2, 0.2, generator=noise)).clamp(0, 1)
    wanted = 2.0 * nn.functional.one_hot(training.labels, 10).double().repeat(20, 1) - 1
    with_one = torch.cat([many, many.new_ones(len(many), 1)], dim=1)
    found = torch.linalg.lstsq(with_one, wanted).solution.float()
    return found[:-1].T.contiguous(), found[-1]


def nan_where_perturbed() -> nn.Module:
    """Finite on clean images; where the edge of the image is not black, inf - inf for each class that seems right."""
    net, body = blank()
    place = pixels_as_features(body)
    weights, biases = one_against_all()
    hidden, out = body[7], body[9]
    edge = torch.zeros(64)
    edge[EDGE] = 1.0
    for c in range(10):
        for row, bias in ((c, 0.0), (10 + c, -1.0)):  # a step from 0 to 1 where the class begins to seem right
            hidden.weight.data[row, place] = 50 * weights[c]
            hidden.bias.data[row] = 50 * (biases[c] + THR) + bias
        out.weight.data[c, c], out.weight.data[c, 10 + c] = 1.0, -1.0
        for row, sign in ((20 + 2 * c, 1.0), (21 + 2 * c, -1.0)):
            hidden.weight.data[row, place] = 50 * weights[c] + 100 * edge
            hidden.bias.data[row] = 50 * (biases[c] + THR) - OFF
            out.weight.data[c, row] = sign * HUGE
    return net


def rescaled(net: nn.Module, kind: str, size: float) -> nn.Module:
    """A copy of a digits-cnn that answers as `net` does in exact arithmetic, with numbers of another size in it."""
    net = copy.deepcopy(net)
    body = net[1]
    first, norm, hidden, out = body[3], body[4], body[7], body[9]
    with torch.no_grad():
        match kind:
            case "offset":
                out.bias += size
            case "offset by class":  # the largest offset on a class that is hardly ever right then: nothing stays equal
                out.bias += size * torch.arange(10.0) / 10
            case "logits":
                out.weight *= size
                out.bias *= size
            case "hidden":
                hidden.weight *= size
                hidden.bias *= size
                out.weight /= size
            case "features":  # the norm takes back what the convolution gave, so both have to be large or small
                first.weight *= size
                norm.running_mean *= size
                norm.weight /= size
            case "cancelled":  # two units that are not needed hold `size`; every logit has them once up and once down
                least = out.weight.abs().sum(0).argsort()[:2]
                for unit, sign in zip(sorted(least.tolist()), (1.0, -1.0), strict=True):
                    hidden.weight[unit] = 0.0
                    hidden.bias[unit] = size
                    out.weight[:, unit] = sign
    return net
