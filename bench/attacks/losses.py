"""Losses on logits that attacks climb, with their gradients written out.

A loss maps logits (n, classes) to its values (n,) and their gradient with respect to the logits. It is above what the
correct class allows where the net is fooled, and grows towards it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


def cross_entropy(labels: Tensor) -> Loss:
    """Minus the logarithm of the label's probability."""
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        shares = logits.log_softmax(1)
        values = -shares.gather(1, label).squeeze(1)
        return values, shares.exp_().scatter_add_(1, label, torch.full_like(values, -1.0).unsqueeze(1))

    return loss


def dlr(labels: Tensor, targets: Tensor | None = None) -> Loss:
    """Minus the margin between label and target, in units of z1 - (z3 + z4) / 2, where z are the ordered logits.

    The targeted DLR loss (Croce & Hein 2020, arXiv 2003.01690, equation 7); needs four classes. Without targets the
    untargeted one (equation 6): the margin to the largest other logit, in units of z1 - z3; needs three classes.
    """
    ends = torch.tensor([[-1.0, 1.0]], device=labels.device)
    weights = torch.tensor([[1.0, 0.0, -1.0] if targets is None else [1.0, 0.0, -0.5, -0.5]], device=labels.device)
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        other = _largest_other(logits, label) if targets is None else targets.unsqueeze(1)
        pair = torch.cat([label, other], dim=1)
        ordered, order = logits.topk(weights.shape[1], dim=1)
        unit = (ordered * weights).sum(1, keepdim=True) + 1e-12
        values = (logits.gather(1, pair) * ends).sum(1, keepdim=True) / unit
        slopes = torch.zeros_like(logits).scatter_add_(1, pair, ends / unit)
        return values.squeeze(1), slopes.scatter_add_(1, order, -values / unit * weights)

    return loss


def margin(labels: Tensor, targets: Tensor | None = None) -> Loss:
    """The target's logit minus the label's (Carlini & Wagner 2017, arXiv 1608.04644); by default the largest other."""
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        other = _largest_other(logits, label) if targets is None else targets.unsqueeze(1)
        values = (logits.gather(1, other) - logits.gather(1, label)).squeeze(1)
        return values, _between(logits, label, other)

    return loss


def own_logit(labels: Tensor) -> Loss:
    """Minus the label's logit, the first term of the margin (Ma et al. 2020, arXiv 2006.13726)."""
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        down = torch.zeros_like(logits).scatter_(1, label, -1.0)
        return -logits.gather(1, label).squeeze(1), down

    return loss


def other_logit(labels: Tensor) -> Loss:
    """The largest logit of another class, the second term of the margin (Ma et al. 2020, arXiv 2006.13726)."""
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        other = _largest_other(logits, label)
        return logits.gather(1, other).squeeze(1), torch.zeros_like(logits).scatter_(1, other, 1.0)

    return loss


def probability_margin(labels: Tensor) -> Loss:
    """The largest probability of another class minus the label's (arXiv 2411.15210)."""
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        shares = logits.softmax(1)
        other = _largest_other(logits, label)
        theirs, ours = shares.gather(1, other), shares.gather(1, label)
        values = theirs - ours
        # d p_i / d z_j = p_i (delta_ij - p_j)
        slopes = -values * shares
        return values.squeeze(1), slopes.scatter_add_(1, other, theirs).scatter_add_(1, label, -ours)

    return loss


def unit_spread(loss: Loss) -> Loss:
    """`loss` on logits divided by their standard deviation, so that neither saturation nor scale matters.

    The slopes take the deviation for a constant, so `loss` itself must not depend on scale, as `dlr` does not.
    """

    def scaled(logits: Tensor) -> tuple[Tensor, Tensor]:
        spread = logits.std(1, keepdim=True).clamp_min(1e-12)
        values, slopes = loss((logits - logits.mean(1, keepdim=True)) / spread)
        return values, slopes / spread

    return scaled


def _largest_other(logits: Tensor, label: Tensor) -> Tensor:
    """The class, int64 (n, 1), of the largest logit besides the label's."""
    return logits.scatter(1, label, -torch.inf).argmax(1, keepdim=True)


def _between(logits: Tensor, label: Tensor, other: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter_(1, other, 1.0).scatter_(1, label, -1.0)
