"""Targeted FAB: linear steps to the decision boundary, then along it towards the image.

Croce & Hein 2020, arXiv 1907.02044.

The published attack handles one target at a time. It uses no random numbers and treats images independently, so here
each image has one row per target, and the rows of all targets run in one batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunebench.bench.attacks.base import Model, at_once, pulled

STEPS = 100
OVERSHOOT = 1.05  # of a step to the linear boundary, eta in the paper
BACKWARD = 0.9  # share of the perturbation kept after crossing the boundary, beta
LARGEST_PULL = 0.1  # the largest weight of the step that starts at the image, alpha_max


@torch.no_grad()
def fab_t(model: Model, images: Tensor, labels: Tensor, norm: str, eps: float, targets: int) -> Tensor:
    """Proposals within distance `eps` of `images`, in `norm` ("Linf" or "L2").

    Tries the `targets` likeliest wrong classes for each image; if several succeed, the likeliest class counts.
    """
    proposals = images.clone()
    ranked = model(images).sort(dim=1).indices.flip(1)
    standing = ranked[:, 0] == labels
    image = standing.nonzero().squeeze(1).repeat(targets)  # of each row
    target = ranked[standing, 1 : targets + 1].T.flatten()
    waiting = torch.arange(len(image), device=images.device)
    rows = at_once(images)
    while len(waiting):
        now, waiting = waiting[:rows], waiting[rows:]
        found, length = _nearest(model, images[image[now]], labels[image[now]], target[now], norm)
        for row in (length <= eps).nonzero().squeeze(1).tolist():
            if standing[image[now[row]]]:
                standing[image[now[row]]] = False
                proposals[image[now[row]]] = found[row]
        waiting = waiting[standing[image[waiting]]]
    return proposals


def _nearest(model: Model, images: Tensor, labels: Tensor, targets: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The nearest misclassified point found for each image, and its distance; infinity where there is none."""
    count = len(images)
    origin = images.flatten(1)
    rows = torch.arange(count, device=images.device)
    point, best, length = origin, origin.clone(), origin.new_full((count,), math.inf)
    towards: Tensor | None = None  # target minus label, in logits
    for _ in range(STEPS):
        with torch.enable_grad():
            lent = point.view_as(images).requires_grad_()
            logits = model(lent)
        if towards is None:
            towards = torch.zeros_like(logits)
            towards[rows, targets], towards[rows, labels] = 1.0, -1.0
        gradient = pulled(logits, lent, towards)
        point, normal = lent.detach().flatten(1), gradient.flatten(1)
        gap = (logits.detach() * towards).sum(1)
        gap_of_origin = gap + (normal * (origin - point)).sum(1)
        step = projected(point, normal, gap, norm)
        pull = projected(origin, normal, gap_of_origin, norm)
        near, far = (_length(offsets, norm).clamp_min(1e-8) for offsets in (step, pull))
        weight = (near / (near + far)).clamp_max(LARGEST_PULL).unsqueeze(1)
        point = torch.lerp(point + OVERSHOOT * step, origin + OVERSHOOT * pull, weight).clamp_(0.0, 1.0)

        across = model(point.view_as(images)).argmax(1) != labels
        offsets = point - origin
        far = _length(offsets, norm)
        nearer = (across & (far < length)).nonzero().squeeze(1)
        best[nearer], length[nearer] = point[nearer], far[nearer]
        point = torch.addcmul(origin, offsets, torch.where(across, BACKWARD, 1.0).unsqueeze(1))
    return best.view_as(images), length


def projected(points: Tensor, normals: Tensor, gaps: Tensor, norm: str) -> Tensor:
    """The shortest offsets, in `norm`, that move `points` (n, d) onto hyperplanes and keep them in [0, 1].

    `normals`: (n, d); `gaps`: (n,), the normal's product with the point, minus its value on the hyperplane. If a
    hyperplane misses the cube, the point moves to the point of the cube nearest to it.

    Every pixel moves against the gap: by the same length in Linf, in proportion to its normal in L2, and no further
    than the end of its range. The closed part of the gap is concave and piecewise linear in the length, so Newton's
    method from below reaches the solution in finitely many steps (Cominetti, Mascarenhas & Silva 2014).
    """
    # Masks are numbers because `torch.where` takes as long as forty sums on a CPU.
    away = normals.sign() * torch.where(gaps >= 0, -1.0, 1.0).to(points.dtype).unsqueeze(1)
    room = away.clamp_min(0) - away * points
    pace, goal = normals.abs(), gaps.abs()
    linf = norm == "Linf"
    slope, end = (pace, room) if linf else (pace * pace, room / pace)  # per pixel: rate of closing, time to its limit
    moving, time = torch.empty_like(points), torch.zeros_like(goal)
    enough = goal * (1 - 2 * torch.finfo(goal.dtype).eps)
    while True:
        moved = torch.minimum(time.unsqueeze(1) if linf else time.unsqueeze(1) * pace, room)
        closed = (pace * moved).sum(1)
        speed = (slope * torch.gt(end, time.unsqueeze(1), out=moving)).sum(1)
        later = torch.where((closed < enough) & (speed > 0), time + (goal - closed) / speed, time)
        if not (later > time).any():
            return moved.mul_(away)
        time = later


def _length(offsets: Tensor, norm: str) -> Tensor:
    return offsets.abs().amax(1) if norm == "Linf" else offsets.norm(dim=1)
