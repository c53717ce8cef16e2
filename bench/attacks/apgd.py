"""APGD in Linf: gradient ascent with momentum, with steps halved when they stop helping.

Croce & Hein 2020, arXiv 2003.01690. Reproduces the published attack's arithmetic operation for operation, without its
copies; the gradients of its two losses with respect to the logits are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunebench.bench.attacks.base import Model, pulled

STEPS = 100
MOMENTUM = 0.75  # weight of the new step; the rest is the previous step
_FIRST_CHECK, _SOONER, _SHORTEST = 22, 3, 6  # steps to the first check; decrease per check; minimum
_RISES = 0.75  # steps are halved if the loss rose in at most this share of them

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # maps logits (n, classes) to losses (n,) and their gradients


@torch.no_grad()
def apgd_ce(model: Model, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
    """Proposals within Linf distance `eps` of `images`, by cross-entropy; images that survive come back unchanged."""
    standing = model(images).argmax(1) == labels
    return _proposals(model, images, labels, standing, eps, seed, [lambda index: _cross_entropy(labels[index])])


@torch.no_grad()
def apgd_t(model: Model, images: Tensor, labels: Tensor, eps: float, targets: int, seed: int) -> Tensor:
    """As `apgd_ce`, with the targeted DLR loss, towards each of the `targets` likeliest wrong classes in turn."""
    ranked = model(images).sort(dim=1).indices.flip(1)
    standing = ranked[:, 0] == labels
    losses = [lambda index, k=k: _dlr(labels[index], ranked[index, k]) for k in range(1, targets + 1)]
    return _proposals(model, images, labels, standing, eps, seed, losses)


def _proposals(
    model: Model,
    images: Tensor,
    labels: Tensor,
    standing: Tensor,
    eps: float,
    seed: int,
    losses: Sequence[Callable[[Tensor], Loss]],
) -> Tensor:
    """Climb each loss in turn with the images still standing."""
    generator = torch.Generator().manual_seed(seed)
    proposals = images.clone()
    for loss in losses:
        index = standing.nonzero().squeeze(1)
        if len(index):
            fooled, points = _climbed(model, images[index], labels[index], eps, loss(index), generator)
            proposals[index[fooled]], standing[index[fooled]] = points[fooled], False
    return proposals


def _climbed(
    model: Model, images: Tensor, labels: Tensor, eps: float, loss: Loss, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The images fooled on the way, bool (n,), and the last adversarial of each."""
    noise = 2 * torch.rand(images.shape, generator=generator).to(images.device) - 1
    noise /= noise.flatten(1).abs().amax(1).view(-1, 1, 1, 1) + 1e-12
    low, high = (images - eps).clamp_(0.0, 1.0), (images + eps).clamp_(0.0, 1.0)
    point = (images + eps * noise).clamp_(0.0, 1.0)

    def look() -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            lent = point.requires_grad_()
            logits = model(lent)
        values, slopes = loss(logits.detach())
        gradient = pulled(logits, lent, slopes)
        point.requires_grad_(False)
        return values, gradient.contiguous(), logits.detach().argmax(1) != labels

    highest, gradient, fooled = look()
    adversarial, best, steepest, before = point.clone(), point.clone(), gradient.clone(), point
    history = torch.zeros(STEPS, len(images), device=images.device)
    step = torch.full((len(images), 1, 1, 1), 2.0 * eps, device=images.device)
    halved, highest_then = torch.ones_like(fooled), highest.clone()
    check, every = _FIRST_CHECK - 1, _FIRST_CHECK
    for number in range(STEPS):
        towards = gradient.sign().mul_(step).add_(point).clamp_(low, high)
        share = MOMENTUM if number else 1.0
        before, last = point, before
        point = towards.sub_(before).mul_(share).add_(before).add_((before - last).mul_(1 - share)).clamp_(low, high)

        values, gradient, across = look()
        fooled |= across
        _put(adversarial, point, across)
        rose = values > highest
        _put(best, point, rose)
        _put(steepest, gradient, rose)
        highest, history[number] = torch.maximum(highest, values), values
        if number == check:
            # As published, the loss before the first step counts as 0.
            rises = torch.stack([history[k] > history[k - 1] for k in range(number - every + 1, number + 1)]).sum(0)
            halved = (rises <= _RISES * every) | (~halved & (highest_then >= highest))
            highest_then = highest
            step[halved] /= 2
            _put(point, best, halved)
            _put(gradient, steepest, halved)
            every = max(every - _SOONER, _SHORTEST)
            check += every
    return fooled, adversarial


def _put(target: Tensor, source: Tensor, rows: Tensor) -> None:
    """Copy the `rows`, bool (n,), of `source` to `target`."""
    index = rows.nonzero().squeeze(1)
    if len(index):
        target.index_copy_(0, index, source.index_select(0, index))


def _cross_entropy(labels: Tensor) -> Loss:
    label = labels.unsqueeze(1)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        shares = logits.log_softmax(1)
        values = -shares.gather(1, label).squeeze(1)
        return values, shares.exp_().scatter_add_(1, label, torch.full_like(values, -1.0).unsqueeze(1))

    return loss


def _dlr(labels: Tensor, targets: Tensor) -> Loss:
    """Minus the margin between label and target, in units of z1 - (z3 + z4) / 2, where z are the ordered logits."""
    pair, ends = torch.stack([labels, targets], dim=1), torch.tensor([[-1.0, 1.0]], device=labels.device)
    weights = torch.tensor([[1.0, 0.0, -0.5, -0.5]], device=labels.device)

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        ordered, order = logits.topk(4, dim=1)
        unit = (ordered * weights).sum(1, keepdim=True) + 1e-12
        values = (logits.gather(1, pair) * ends).sum(1, keepdim=True) / unit
        slopes = torch.zeros_like(logits).scatter_add_(1, pair, ends / unit)
        return values.squeeze(1), slopes.scatter_add_(1, order, -values / unit * weights)

    return loss
