"""Jobs gone through with trainings stubbed out: which stages a pruner asks for, and what each would take."""

from __future__ import annotations

import inspect
import math
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunebench.bench import machine
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of
from prunebench.bench.grid.timing import attack_paces, training_pace
from prunebench.bench.lab.lab import Lab, Meter
from prunebench.bench.lab.train import VALIDATED, Plan, Trained
from prunebench.bench.mask import Masks, State, masked
from prunebench.bench.models import prunable
from prunebench.bench.protocol import Job, Protocol
from prunebench.bench.score.cascade import expected
from prunebench.pruners import parse

STEPS = 4  # of a search that are really run; the last three are timed
RECORD_BYTES = 100_000  # about: a record, its outcomes and pairs, twice, and the journal


@dataclass(frozen=True)
class Shares:
    """The assumed shares of test images that are right, `clean`, and right after every attack, `robust`."""

    clean: float
    robust: float

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= self.clean <= 1:
            raise PrunebenchError(
                f"--robust {self.robust} and --clean {self.clean} are shares of the test images, and what is robust is "
                "clean too; give 0 <= robust <= clean <= 1."
            )


@dataclass(frozen=True)
class Line:
    """What `jobs` jobs of a pruner at one sparsity take: sample passes charged, one worker's seconds, bytes kept.

    Seconds and bytes of a stage that several pruners share count for the first of them.
    """

    pruner: str
    sparsity: float
    jobs: int
    train_passes: int
    score_passes: int
    train_seconds: float
    score_seconds: float
    bytes: int


def rehearse(
    jobs: list[tuple[str, Job]],
    protocol: Protocol,
    store: Store,
    *,
    device: str,
    threads: int,
    examples: int | None,
    shares: Shares,
    seconds: float,
) -> tuple[float, list[Line]]:
    """Run the pruners of `jobs` (each with its spec) with trainings stubbed out.

    Each kind of work is timed for about `seconds`. Returns when this began, by `time.time()`, and a line for each job.
    Raises PrunebenchError where a job would fail.
    """
    began = time.time()
    torch.set_num_threads(threads)
    where = machine.device_named(device)
    test = store.testing(protocol.data, examples or protocol.test)
    passes = expected(protocol.threat, test, clean=shares.clean, robust=shares.robust)
    lab = DryLab(jobs[0][1], protocol, store, where, seconds)
    paces: dict[int, dict[str, float]] = {}  # of attacks, by density
    lines = []
    for spec, job in jobs:
        before = len(lab.stages)
        net, meter = lab.pruned(spec, job)
        fresh = list(lab.stages.values())[before:]
        kept = sum(int(weight.count_nonzero()) for weight in prunable(net).values())
        size = _bytes(net.state_dict()) - 4 * (lab.prunable - kept) + lab.prunable // 8 + RECORD_BYTES
        kind = _alike(kept / lab.prunable)
        if kind not in paces:
            paces[kind] = attack_paces(net, protocol, test, shares.robust, where, seconds)
        each = paces[kind]
        lines.append(
            Line(
                job.label,
                job.sparsity,
                jobs=1,
                train_passes=meter.spent,
                score_passes=round(sum(passes.values())),
                train_seconds=sum(taken for taken, _ in fresh),
                score_seconds=sum(cost * each.get(attack, each["pgd"]) for attack, cost in passes.items()),
                bytes=size + sum(size for _, size in fresh),
            )
        )
    return began, lines


class DryLab(Lab):
    """A lab that trains nothing: it returns what training starts from, and notes what training would take.

    `trainings`: seconds of a start and of a sample pass, by kind of work. `stages`: seconds and bytes, by key.
    """

    def __init__(self, job: Job, protocol: Protocol, store: Store, device: torch.device, seconds: float) -> None:
        super().__init__(job, protocol, store, Path(), device=device, resolve=lambda spec: parse(spec).pruner)
        self.seconds = seconds
        self.trainings: dict[object, tuple[float, float]] = {}
        self.stages: dict[str, tuple[float, int]] = {}

    def pruned(self, spec: str, job: Job) -> tuple[nn.Module, Meter]:
        """The net that the pruner `spec` makes of stubs, and its charges. Raises PrunebenchError where it fails."""
        self.job, self.meter = job, Meter(self.meter.granted)
        try:
            return self.model(parse(spec).pruner(job, self)), self.meter
        except Exception as error:  # a pruner may be anybody's code
            at = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
            why = error if isinstance(error, PrunebenchError) else fault
            raise PrunebenchError(f"{job.name} would fail: {why}") from error

    def _train(
        self,
        stage: str,
        plan: Plan,
        facts: list[object],
        model: Callable[[], nn.Module],
        masks: Masks | None = None,
        *,
        kept: int,
    ) -> Trained:
        self.meter.charge(stage, plan.passes(len(self.train)))
        key = self._train_key(plan, facts)
        state = _moved(masked(model().state_dict(), masks or {}), key)
        kind = (plan.recipe.objective, masks is None, _alike(kept / self.prunable))
        if kind not in self.trainings:
            self.trainings[kind] = training_pace(plan, model, masks, self.train, self.seconds)
        start, each = self.trainings[kind]
        passes = plan.passes(len(self.train)) + validation_passes(plan, len(self.validation))
        self.stages.setdefault(key, (start + each * passes, 2 * _bytes(state)))
        rows = [{"epoch": e, "loss": 0.0, "lr": 0.0, "clean": 0.0, "robust": 0.0} for e in range(plan.start, plan.last)]
        return Trained(state, state, rows, [0.0] * len(rows))

    def loop(
        self, stage: str, start: State, step: Callable[[State, int], State], *, steps: int, passes: int, facts: object
    ) -> State:
        """What a few steps make of `start`; they tell what all of them take."""
        self.meter.charge(stage, passes)
        state = {name: tensor.to(self.device) for name, tensor in start.items()}
        times = []
        for index in range(min(steps, STEPS)):
            began = time.perf_counter()
            state = step(state, index)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - began)
        key = self._loop_key(sha256_of(Path(inspect.getfile(step)).read_bytes()), start, steps, facts)
        self.stages.setdefault(key, (statistics.median(times[-3:] or [0.0]) * steps, _bytes(start)))
        return {name: tensor.cpu() for name, tensor in state.items()}


def validation_passes(plan: Plan, images: int) -> int:
    """Sample passes of all validations of the training by `plan`, on at most that many images."""
    every = 1 if plan.recipe.objective == "fgsm-rs" else plan.recipe.validate_every
    times = -(-plan.last // every) - plan.start // every  # there is one after the last epoch
    return times * min(VALIDATED, images) * (3 * plan.recipe.steps + 2)


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _moved(state: State, key: str) -> State:
    """`state` with all numbers a little larger, by a share that `key` decides: other trainings leave other weights."""
    factor = 1 + 1e-3 * int(key[:8], 16) / 2**32
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _alike(density: float) -> int:
    """The same number for densities that differ by less than about a fifth."""
    return round(4 * math.log2(max(density, 1e-6)))  # a pruner may leave nothing
