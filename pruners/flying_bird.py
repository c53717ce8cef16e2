"""Flying Bird: one sparse adversarial training whose mask moves: small weights are dropped, wanted ones grow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.exchange import Breathing, Exchange
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.mask import State, draw, erk, refuse_empty, rescaled

LEAST = 4  # updates, below which a mask hardly moves
SEEN = 250  # training images, and validation images, on which `plus` measures robustness


@dataclass(frozen=True)
class FlyingBird:
    """A random mask with Erdos-Renyi-Kernel densities whose weights are exchanged during adversarial training.

    Chen et al. 2022, arXiv 2202.09844. The start is that of `random`, bit for bit. At each update, every layer drops
    its smallest weights and grows as many where the adversarial loss has its largest gradients among pruned weights.
    Grown weights start at zero, without momentum. The share dropped falls along a cosine, and in the last part of the
    training the mask rests. Updates cost nothing extra: they read the gradients of the step just done, and every
    training computes those of all weights, pruned ones too, and pays for them. The released commands differ from the
    paper: they grow at random, from densities by IGQ, and update the mask to the last epoch. Ours are `rest`; `delta`
    as a share of the training, not a number of steps, because the budget sets its length; and `drop`, which begins at
    .25, where the paper has .5, by the mean of three seeds on the digits' validation images.

    `drop`: the share of a layer's weights dropped first, in [0, 1). `delta`: the share of the training between two
    updates; `rest`: the share at its end without updates. `plus`: the kept count falls by a tenth when the gap between
    the PGD accuracy on training and validation images has grown since the last update, and rises by a tenth otherwise,
    within `room` times the asked count; this room closes until the last update. Measuring the gap costs epochs. The
    original's `+` moves the sparsity by other ratios. `shuffle`: grow at random places, which is the control for the
    gradient; the control for the whole method is `random`.
    """

    drop: float = 0.25
    delta: float = 0.005
    rest: float = 0.25
    plus: bool = False
    room: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.drop < 1 and 0 <= self.room < 1):
            raise ValueError(f"drop = {self.drop} and room = {self.room} must be in [0, 1)")
        if not (self.delta > 0 and self.rest >= 0 and LEAST * self.delta + self.rest <= 1):
            raise ValueError(
                f"delta = {self.delta} must be above 0, rest = {self.rest} at least 0, and {LEAST} * delta + rest at "
                "most 1"
            )

    def __call__(self, job: Job, lab: Lab) -> State:
        """Draw, then train while weights are exchanged, for as many epochs as the measurements of `plus` leave."""
        masks = draw(lab.shapes, erk(lab.shapes, lab.keep), lab.generator("mask"))
        refuse_empty(erk(lab.shapes, math.floor((1 - self.room) * lab.keep) if self.plus else lab.keep))
        lab.refuse_short({"train": lab.epochs}, way_out="choose another protocol")
        rules, left = lab.protocol, lab.meter.granted - lab.meter.spent
        for epochs in range(lab.epochs, 0, -1):
            scheme = self._scheme(lab, epochs * TrainingPlan(rules.training, rules.threat, 1).batches(len(lab.train)))
            if TrainingPlan(rules.training, rules.threat, epochs, scheme=scheme).passes(len(lab.train)) <= left:
                break
        return lab.fit("train", rescaled(lab.initial(), masks), epochs=epochs, masks=masks, scheme=scheme).weights

    def _scheme(self, lab: Lab, steps: int) -> Exchange:
        """The updates of a training of `steps` steps."""
        every = max(1, round(self.delta * steps))
        updates = min(int((1 - self.rest) * steps), steps - 1) // every  # what grows last is trained for a step
        if updates < LEAST:
            raise PrunebenchError(
                f"{steps} steps of training with delta = {self.delta} and rest = {self.rest} have {updates} updates of "
                f"the mask, and flying-bird needs {LEAST}; raise the epochs, or lower delta or rest."
            )
        seed = int(torch.randint(2**62, (), generator=lab.generator("shuffle"))) if self.shuffle else None
        if not self.plus:
            return Exchange(self.drop, every, updates, seed)
        parts = lab.train.take(slice(0, SEEN)), lab.validation.take(slice(0, SEEN))
        passes = (len(parts[0]) + len(parts[1])) * (lab.attack_passes + 2)
        return Breathing(self.drop, every, updates, seed, keep=lab.keep, room=self.room, parts=parts, passes=passes)
