"""APGD: gradient ascent with momentum, with steps halved when they stop helping, in Linf and L2.

Croce & Hein 2020, arXiv 2003.01690. In Linf it reproduces the published attack's arithmetic operation for operation,
without its copies; in L2 it takes the same steps, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.bench.attacks.ball import Ball, ball
from prunebench.bench.attacks.base import Model, lanes, pulled
from prunebench.bench.attacks.losses import Loss, cross_entropy, dlr
from prunebench.bench.protocol import Threat

STEPS = 100
MOMENTUM = 0.75  # weight of the new step; the rest is the previous step
_FIRST_CHECK, _SOONER, _SHORTEST = 0.22, 0.03, 0.06  # of all steps: to the first check; decrease per check; minimum
_RISES = 0.75  # steps are halved if the loss rose in at most this share of them


@torch.no_grad()
def apgd_ce(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on cross-entropy, 100 steps, one start."""
    standing, losses = model(images).argmax(1) == labels, [lambda now: cross_entropy(labels[now])]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses)


@torch.no_grad()
def apgd_dlr(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """As `apgd_ce`, on the untargeted DLR loss, which needs three classes."""
    standing, losses = model(images).argmax(1) == labels, [lambda now: dlr(labels[now])]
    return climbed(model, images, labels, standing, threat, generator.initial_seed(), losses)


@torch.no_grad()
def apgd_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, targets: int, seed: int) -> Tensor:
    """As `apgd_ce`, on the targeted DLR loss, towards each of the `targets` likeliest wrong classes in turn."""
    ranked = model(images).sort(dim=1).indices.flip(1)
    standing = ranked[:, 0] == labels
    losses = [lambda index, k=k: dlr(labels[index], ranked[index, k]) for k in range(1, targets + 1)]
    return climbed(model, images, labels, standing, threat, seed, losses)


@torch.no_grad()
def climbed(
    model: Model,
    images: Tensor,
    labels: Tensor,
    standing: Tensor,
    threat: Threat,
    seed: int,
    losses: Sequence[Callable[[Tensor], Loss]],
    steps: int = STEPS,
) -> Tensor:
    """Climb each loss in turn, with the images that survived those before; all others come back unchanged.

    `standing`: bool (n,), the images to attack. `losses`: each maps the indices of the images now attacked, int64 (k,),
    to a loss on their logits.

    Where few images are left, several losses run at once, as if no image were fooled. What follows the first loss that
    fools one is discarded, with its random numbers, so the result is that of one loss after the other. Its passes still
    count, and a referee still checks its points: logits that only the kernels cannot compute rerun the attack.
    """
    generator = torch.Generator().manual_seed(seed)
    proposals, standing = images.clone(), standing.clone()
    room, done = lanes(model, images), 0
    while done < len(losses) and len(index := standing.nonzero().squeeze(1)):
        around = ball(images[index], threat)
        turns = [
            _Turn(loss(index), around.start(generator), generator.get_state())
            for loss in losses[done : done + max(1, room // len(index))]
        ]
        for turn, fooled, points in _climbed(model, images[index], labels[index], threat, turns, steps):
            done += 1
            if fooled.any():
                proposals[index[fooled]], standing[index[fooled]] = points[fooled], False
                generator.set_state(turn.after)
                break
    return proposals


@dataclass(frozen=True)
class _Turn:
    """A loss to climb, the points where it starts, (n, c, h, w), and the state of the generator that drew them."""

    loss: Loss
    start: Tensor
    after: Tensor


def _climbed(
    model: Model, images: Tensor, labels: Tensor, threat: Threat, turns: Sequence[_Turn], steps: int
) -> list[tuple[_Turn, Tensor, Tensor]]:
    """Each turn with the images fooled on the way, bool (n,), and the last adversarial of each; all in one batch."""
    around = ball(images.repeat(len(turns), 1, 1, 1), threat)
    losses = [turn.loss for turn in turns]
    loss = losses[0] if len(turns) == 1 else _side_by_side(losses)
    point = torch.cat([turn.start for turn in turns])
    fooled, points = _climb(model, around, labels.repeat(len(turns)), loss, point, steps)
    return list(zip(turns, fooled.chunk(len(turns)), points.chunk(len(turns)), strict=True))


def _side_by_side(losses: Sequence[Loss]) -> Loss:
    """A loss on logits of which equal parts belong to one loss each."""

    def loss(logits: Tensor) -> tuple[Tensor, Tensor]:
        found = [each(part) for each, part in zip(losses, logits.chunk(len(losses)), strict=True)]
        return torch.cat([values for values, _ in found]), torch.cat([slopes for _, slopes in found])

    return loss


def _climb(model: Model, around: Ball, labels: Tensor, loss: Loss, point: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The images fooled on the way from `point`, bool (n,), and the last adversarial of each."""

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
    history = torch.zeros(steps, len(labels), device=labels.device)
    step = torch.full((len(labels), 1, 1, 1), 2.0 * around.radius, device=labels.device)
    halved, highest_then = torch.ones_like(fooled), highest.clone()
    every, sooner, shortest = (max(int(share * steps), 1) for share in (_FIRST_CHECK, _SOONER, _SHORTEST))
    check = every - 1
    for number in range(steps):
        towards = around.inside(around.stepped(point, gradient, step))
        share = MOMENTUM if number else 1.0
        before, last = point, before
        point = around.inside(towards.sub_(before).mul_(share).add_(before).add_((before - last).mul_(1 - share)))

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
            every = max(every - sooner, shortest)
            check += every
    return fooled, adversarial


def _put(target: Tensor, source: Tensor, rows: Tensor) -> None:
    """Copy the `rows`, bool (n,), of `source` to `target`."""
    index = rows.nonzero().squeeze(1)
    if len(index):
        target.index_copy_(0, index, source.index_select(0, index))
