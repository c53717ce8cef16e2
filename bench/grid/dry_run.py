"""Dry runs of jobs, with training stubbed out: which stages a pruner requests and what each would cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import nn

from prunebench.bench import machine
from prunebench.bench.data import Split, Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.faults import fault
from prunebench.bench.grid.timing import attack_paces, training_pace
from prunebench.bench.job import Job
from prunebench.bench.lab import dry
from prunebench.bench.lab.backend import Fit, Loop
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.meter import Meter
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.trainer import VALIDATED
from prunebench.bench.mask import State
from prunebench.bench.models import prunable
from prunebench.bench.protocol import Protocol
from prunebench.bench.score.arithmetic import arithmetic_named
from prunebench.bench.score.progress import expected
from prunebench.pruners import resolve

STEPS = 4  # of a search that are actually run; the last three are timed
RECORD_BYTES = 100_000  # approximate: two copies of a record, its outcomes and pairs, plus the journal


@dataclass(frozen=True)
class Line:
    """Cost of `jobs` jobs of a pruner at one sparsity: sample passes charged, seconds of one worker, bytes stored.

    The seconds and bytes of a stage that several pruners share are counted for the first of them.
    """

    pruner: str
    sparsity: float
    jobs: int
    train_passes: int
    score_passes: int
    train_seconds: float
    score_seconds: float
    bytes: int


SUMS = tuple(field.name for field in fields(Line))[2:]  # the columns of a line that can be summed


def summed(pruner: str, sparsity: float, lines: Sequence[Line]) -> Line:
    """The sum of `lines`, under another name."""
    return Line(pruner, sparsity, *(sum(getattr(line, column) for line in lines) for column in SUMS))


@dataclass(frozen=True)
class Rehearsal:
    """A dry run of jobs on a device: training is stubbed out, and each kind of work is timed for about `seconds`.

    `clean`, `robust`: assumed shares of test images that are right without attack, and under every attack.
    `best`: whether survivors are attacked again; the long attacks of that suite, which few nets need, are left out.
    `arithmetic`: of attacks, as for `score`; what is attacked again in exact float32 is left out.
    """

    protocol: Protocol
    store: Store
    clean: float
    robust: float
    device: str = "auto"
    threads: int = 1
    examples: int | None = None
    seconds: float = 0.5
    best: bool = False
    arithmetic: str = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= self.clean <= 1:
            raise PrunebenchError(
                f"--robust {self.robust} and --clean {self.clean} are shares of the test images, and what is robust is "
                "clean too; give 0 <= robust <= clean <= 1."
            )

    @property
    def test(self) -> Split:
        """The images to attack."""
        return self.store.testing(self.protocol.data, self.examples or self.protocol.test)

    def __call__(self, jobs: list[tuple[str, Job]]) -> tuple[float, list[Line]]:
        """Run the pruners of `jobs`, each with its spec.

        Returns the start time, by `time.time()`, and one line per job. Raises PrunebenchError if a job would fail.
        """
        began = time.time()
        torch.set_num_threads(self.threads)
        where, test = machine.device_named(self.device), self.test
        passes = expected(self.protocol, test, clean=self.clean, robust=self.robust, best=self.best)
        costs = Dry(STEPS, self.seconds)
        lab = Lab(jobs[0][1], self.protocol, self.store, costs, device=where, resolve=lambda spec: resolve(spec).pruner)
        timed = partial(
            attack_paces,
            rules=self.protocol,
            test=test,
            robust=self.robust,
            device=where,
            seconds=self.seconds,
            best=self.best,
            arithmetic=arithmetic_named(self.arithmetic, where),
        )
        paces: dict[int, dict[str, float]] = {}  # of attacks, by density class
        lines = []
        for spec, job in jobs:
            before = len(costs.stages)
            net, meter = pruned(lab, spec, job)
            fresh = list(costs.stages.values())[before:]
            kept = sum(int(weight.count_nonzero()) for weight in prunable(net).values())
            size = _bytes(net.state_dict()) - 4 * (lab.prunable - kept) + lab.prunable // 8 + RECORD_BYTES
            kind = _alike(kept / lab.prunable)
            if kind not in paces:
                paces[kind] = timed(net)
            lines.append(
                Line(
                    job.label,
                    job.sparsity,
                    jobs=1,
                    train_passes=meter.spent,
                    score_passes=round(sum(passes.values())),
                    train_seconds=sum(taken for taken, _ in fresh),
                    score_seconds=sum(cost * paces[kind][attack] for attack, cost in passes.items()),
                    bytes=size + sum(size for _, size in fresh),
                )
            )
        return began, lines


@dataclass
class Dry(dry.Dry):
    """A backend that trains nothing, and notes what training would cost.

    `trainings`: seconds per start and per sample pass, by kind of work. `stages`: seconds and bytes, by key.
    """

    seconds: float = 0.5
    trainings: dict[object, tuple[float, float]] = field(default_factory=dict)
    stages: dict[str, tuple[float, int]] = field(default_factory=dict)

    def train(self, asked: Fit) -> Trained:
        """Return the starting weights, slightly changed."""
        plan, trained = asked.plan, super().train(asked)
        kind = (plan.recipe.objective, type(plan.scheme), asked.masks is None, _alike(asked.density))
        if kind not in self.trainings:
            self.trainings[kind] = training_pace(plan, asked.model, asked.masks, asked.train, self.seconds)
        start, each = self.trainings[kind]
        passes = asked.passes + validation_passes(plan, len(asked.validation))
        self.stages.setdefault(asked.key, (start + each * passes, 2 * _bytes(trained.weights)))
        return trained

    def loop(self, asked: Loop) -> tuple[State, float]:
        """Run the first few steps; estimate the time of all steps from them."""
        times: list[float] = []

        def timed(state: State, index: int) -> State:
            began = time.perf_counter()
            state = asked.step(state, index)
            if asked.device.type == "cuda":
                torch.cuda.synchronize(asked.device)
            times.append(time.perf_counter() - began)
            return state

        found = super().loop(replace(asked, step=timed))
        taken = statistics.median(times[-3:] or [0.0]) * asked.steps
        self.stages.setdefault(asked.key, (taken, _bytes(asked.start)))
        return found


def pruned(lab: Lab, spec: str, job: Job) -> tuple[nn.Module, Meter]:
    """The net that pruner `spec` makes in a dry `lab`, and its charges. Raises PrunebenchError if the pruner fails."""
    lab.job, lab.meter = job, Meter(lab.meter.granted)
    try:
        return lab.model(resolve(spec).pruner(job, lab)), lab.meter
    except Exception as error:  # a pruner may be third-party code
        ours = isinstance(error, PrunebenchError)
        why = f"{error}{dry.needs(lab, resolve(spec).pruner)}" if ours else fault(error, [spec])
        raise PrunebenchError(f"{job.name} would fail: {why}") from error


def validation_passes(plan: TrainingPlan, images: int) -> int:
    """Sample passes of all validations in the training by `plan`, each on at most `images` images."""
    every = plan.validate_every
    times = -(-plan.last // every) - plan.start // every  # the last epoch is always validated
    return times * min(VALIDATED, images) * (3 * plan.recipe.steps + 2)


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _alike(density: float) -> int:
    """A number shared by densities that differ by less than about a fifth."""
    return round(4 * math.log2(max(density, 1e-6)))  # a pruner may remove every weight
