"""AutoAttack *standard* (Croce & Hein 2020, arXiv 2003.01690), and the weak attacks shown beside it.

All four attacks are our own code (`attacks.apgd`, `attacks.fab`, `attacks.square`), which finds the same points as the
authors' code (`pyautoattack`) in less time. In L2 Square alone draws other random numbers once an image has fallen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench.bench.attacks import apgd, fab
from prunebench.bench.attacks import square as squares
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.best import BEST
from prunebench.bench.attacks.pgd import fgsm, usual_pgd
from prunebench.bench.attacks.suite import Listed, Shape, Suite
from prunebench.bench.protocol import Threat


def apgd_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Auto-PGD on the DLR loss, 100 steps for each of the 9 likeliest wrong classes.

    The targeted DLR loss needs four logits. With three classes the untargeted DLR loss runs instead. With two, where CE
    already orders the points as the margin does, CE runs from another start.
    """
    classes, seed = _classes(model, images), generator.initial_seed()
    if classes == 2:
        return apgd.apgd_ce(model, images, labels, threat, generator=torch.Generator().manual_seed(seed ^ 1))
    if classes == 3:
        return apgd.apgd_dlr(model, images, labels, threat, generator=generator)
    return apgd.apgd_t(model, images, labels, threat, min(9, classes - 1), seed)


def fab_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Fast Adaptive Boundary attack, 100 steps for each of the 9 likeliest wrong classes."""
    return fab.fab_t(model, images, labels, threat.norm, threat.radius, min(9, _classes(model, images) - 1))


def square(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Square attack, 5,000 queries; sees logits only."""
    return squares.square(model, images, labels, threat, generator.initial_seed(), squares.QUERIES)


def _classes(model: Model, images: Tensor) -> int:
    with torch.no_grad():
        return int(model(images[:1]).shape[-1])


def _ran(classes: int) -> tuple[str, ...]:
    """The variant of each of the four attacks that runs on `classes` classes, in words for the record."""
    targets = min(9, classes - 1)
    second = {
        2: "apgd-t: cross-entropy from a second start, for 2 classes have no DLR loss",
        3: "apgd-t: untargeted DLR, for the targeted one needs 4 classes",
    }
    return ("apgd-ce", second.get(classes, f"apgd-t: {targets} targets"), f"fab-t: {targets} targets", "square")


def _queries(threat: Threat, shape: Shape) -> int:
    return squares.price_of(threat.norm, shape, squares.QUERIES)


# A price is the cost of an image that survives, in sample passes: forwards + 2 * backwards.
STANDARD = Suite(
    name="standard",
    ranked={
        "apgd-ce": Listed(apgd.apgd_ce, 102 + 2 * 101),
        "apgd-t": Listed(apgd_t, 910 + 2 * 909),
        "fab-t": Listed(fab_t, 1800 + 2 * 900),
        "square": Listed(square, _queries),
    },
    weak={
        "fgsm": Listed(fgsm, 4, exact=True),
        "pgd-20": Listed(usual_pgd(20), 61, exact=True),
        "pgd-50": Listed(usual_pgd(50), 151, exact=True),
    },
    curve="pgd-20",
    black_box="square",
    quick=("apgd-ce", "apgd-t"),
    ran=_ran,
    best=BEST,
)
