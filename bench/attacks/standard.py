"""AutoAttack *standard* (Croce & Hein 2020, arXiv 2003.01690), and the weak attacks shown beside it.

In Linf all four attacks are our own code (`attacks.apgd`, `attacks.fab`, `attacks.square`), which finds the same points
as the authors' code in less time. In L2 only FAB-T is ours; the others are the authors' own code (`pyautoattack`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from prunebench.bench.attacks import apgd, fab
from prunebench.bench.attacks import square as squares
from prunebench.bench.attacks.base import Model, contained
from prunebench.bench.attacks.best import BEST
from prunebench.bench.attacks.pgd import fgsm, usual_pgd
from prunebench.bench.attacks.suite import Listed, Shape, Suite
from prunebench.bench.protocol import Threat

_QUIET = logging.getLogger("prunebench.autoattack")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


def apgd_ce(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Auto-PGD on cross-entropy, 100 steps, one start."""
    if threat.norm == "Linf":
        return apgd.apgd_ce(model, images, labels, threat, generator.initial_seed())
    attack = APGDAttack(model, loss="ce", **_published(threat, images, generator.initial_seed()))
    return contained(attack.perturb, images, labels)


def apgd_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Auto-PGD on the DLR loss, 100 steps for each of the 9 likeliest wrong classes.

    The targeted DLR loss needs four logits. With three classes the untargeted DLR loss runs instead. With two, where CE
    already orders the points as the margin does, CE runs from another start.
    """
    classes, seed = _classes(model, images), generator.initial_seed()
    if classes == 2:
        return apgd_ce(model, images, labels, threat, generator=torch.Generator().manual_seed(seed ^ 1))
    targets = min(9, classes - 1)
    if threat.norm == "Linf" and classes >= 4:
        return apgd.apgd_t(model, images, labels, threat, targets, seed)
    common = _published(threat, images, seed)
    if classes >= 4:
        attack = APGDAttack_targeted(model, n_target_classes=targets, **common)
    else:
        attack = APGDAttack(model, loss="dlr", **common)
    return contained(attack.perturb, images, labels)


def _published(threat: Threat, images: Tensor, seed: int) -> dict[str, Any]:
    """The arguments that AutoAttack *standard* passes to its authors' APGD."""
    where = {"device": images.device, "logger": _QUIET, "seed": seed}
    return where | {
        "n_restarts": 1,
        "n_iter": 100,
        "eps": threat.radius,
        "norm": threat.norm,
        "eot_iter": 1,
        "rho": 0.75,
    }


def fab_t(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Targeted Fast Adaptive Boundary attack, 100 steps for each of the 9 likeliest wrong classes."""
    return fab.fab_t(model, images, labels, threat.norm, threat.radius, min(9, _classes(model, images) - 1))


def square(model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator) -> Tensor:
    """Square attack, 5,000 queries; sees logits only."""
    return squares.square_of(model, images, labels, threat, generator.initial_seed(), squares.QUERIES)


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
    return squares.price_of(threat, shape, squares.QUERIES)


# A price is the cost of an image that survives, in sample passes: forwards + 2 * backwards.
STANDARD = Suite(
    name="standard",
    ranked={
        "apgd-ce": Listed(apgd_ce, 102 + 2 * 101),
        "apgd-t": Listed(apgd_t, 910 + 2 * 909),
        "fab-t": Listed(fab_t, 1800 + 2 * 900),
        "square": Listed(square, _queries),
    },
    weak={
        "fgsm": Listed(fgsm, 4),
        "pgd-20": Listed(usual_pgd(20), 61),
        "pgd-50": Listed(usual_pgd(50), 151),
    },
    curve="pgd-20",
    black_box="square",
    quick=("apgd-ce", "apgd-t"),
    ran=_ran,
    best=BEST,
)
