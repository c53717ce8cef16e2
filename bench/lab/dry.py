"""Dry runs of pruners: training is stubbed out, to see which stages are requested and whether the budget has room."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.lab.backend import Calibration, Fit, Loop, calibrate
from prunebench.bench.lab.lab import Lab, Pruner
from prunebench.bench.lab.meter import Meter
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.mask import State, masked

MOST = 64  # times the budget, up to which `least_epochs` looks


def moved(state: State, key: str) -> State:
    """`state` with every number slightly larger, by a factor derived from `key`: each training gets its own weights."""
    factor = 1 + 1e-3 * int(key[:8], 16) / 2**32
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@dataclass
class Dry:
    """A backend that trains nothing: stages return their starting weights, slightly changed.

    `steps`: of a search that are actually run.
    """

    steps: int = 1

    def train(self, asked: Fit) -> Trained:
        """Return the starting weights under the masks, slightly changed, and a curve of zeros."""
        plan, net = asked.plan, asked.model()
        plan.scheme.attach(net)
        state = moved(masked(net.state_dict(), asked.masks or {}), asked.key)
        rows = [
            {"epoch": e + 1, "loss": 0.0, "lr": 0.0, "clean": 0.0, "robust": 0.0} for e in range(plan.start, plan.last)
        ]
        return Trained(state, state, rows, [0.0] * len(rows))

    def loop(self, asked: Loop) -> tuple[State, float]:
        """Run the first few steps."""
        state = {name: tensor.to(asked.device) for name, tensor in asked.start.items()}
        for index in range(min(asked.steps, self.steps)):
            state = asked.step(state, index)
        return {name: tensor.cpu() for name, tensor in state.items()}, 0.0

    def calibrate(self, asked: Calibration) -> State:
        """Calibrate on one batch."""
        return calibrate(replace(asked, batches=1))


def needs(lab: Lab, pruner: Pruner) -> str:
    """A sentence on how many epochs `pruner` needs at least, " ..."; empty unless the budget of `lab` is too small."""
    found, rules = least_epochs(lab, pruner), lab.protocol
    if found is None:
        return ""
    units = f"{rules.units:g} {'unit' if rules.units == 1 else 'units'} of {rules.training.epochs}"
    return (
        f" {lab.job.pruner} needs at least {found} epochs in its budget here, which holds {lab.epochs} ({units}): use "
        f"{ceil(found / rules.units)} or more per unit."
    )


def least_epochs(lab: Lab, pruner: Pruner) -> int | None:
    """The fewest epochs in a budget with which `pruner` ends, if the budget of `lab` is too small; otherwise None.

    `lab` needs a backend that is dry. None, too, if no budget of up to `MOST` times as many epochs is enough: then the
    pruner fails for another reason. The search assumes that what fits into a budget fits into a larger one.
    """
    fails, most = max(1, lab.epochs), MOST * max(1, lab.epochs)
    if _ends(lab, pruner, lab.epochs, lab.meter.granted):
        return None
    fits = 2 * fails
    while not _ends(lab, pruner, fits, _price(lab, fits)):
        fails, fits = fits, 2 * fits
        if fits > most:
            return None
    while fits - fails > 1:
        middle = (fits + fails) // 2
        if _ends(lab, pruner, middle, _price(lab, middle)):
            fits = middle
        else:
            fails = middle
    return fits


def _price(lab: Lab, epochs: int) -> int:
    return TrainingPlan(lab.protocol.training, lab.protocol.threat, epochs).passes(len(lab.train))


def _ends(lab: Lab, pruner: Pruner, epochs: int, granted: int) -> bool:
    """Whether a dry run with this budget ends without a complaint; a fault in the pruner's code is none."""
    room = copy.copy(lab)
    room.epochs, room.meter = epochs, Meter(granted)
    with suppress(Exception):
        try:
            pruner(room.job, room)
        except PrunebenchError:
            return False
    return True
