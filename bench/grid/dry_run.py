"""Jobs gone through with trainings stubbed out: which stages a pruner asks for, and what each would take."""

from __future__ import annotations

import inspect
import math
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from prunebench.bench import machine
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of
from prunebench.bench.grid.timing import attack_paces, training_pace
from prunebench.bench.lab.lab import Lab
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
    found, lines = Found(seconds), []
    for spec, job in jobs:
        before, lab = len(found.stages), DryLab(job, protocol, store, where, found)
        net = lab.pruned(spec)
        fresh = list(found.stages.values())[before:]
        kept = sum(int(weight.count_nonzero()) for weight in prunable(net).values())
        size = _bytes(net.state_dict()) - 4 * (lab.prunable - kept) + lab.prunable // 8 + RECORD_BYTES
        kind = _alike(kept / lab.prunable)
        if kind not in found.attacks:
            found.attacks[kind] = attack_paces(net, protocol, test, shares.robust, where, seconds)
        each = found.attacks[kind]
        lines.append(
            Line(
                job.label,
                job.sparsity,
                jobs=1,
                train_passes=lab.meter.spent,
                score_passes=round(sum(passes.values())),
                train_seconds=sum(taken for taken, _ in fresh),
                score_seconds=sum(cost * each.get(attack, each["pgd"]) for attack, cost in passes.items()),
                bytes=size + sum(size for _, size in fresh),
            )
        )
    return began, lines


@dataclass
class Found:
    """What jobs of one rehearsal share: paces by kind of work, timed for `seconds` each, and stages.

    `trainings`: seconds of a start and of a sample pass. `attacks`: seconds of a sample pass, by attack. `stages`:
    seconds and bytes, by the stage's key.
    """

    seconds: float
    trainings: dict[object, tuple[float, float]] = field(default_factory=dict)
    attacks: dict[int, dict[str, float]] = field(default_factory=dict)
    stages: dict[str, tuple[float, int]] = field(default_factory=dict)


class DryLab(Lab):
    """A lab that trains nothing: it returns what training starts from, and notes in `found` what it would take."""

    def __init__(self, job: Job, protocol: Protocol, store: Store, device: torch.device, found: Found) -> None:
        super().__init__(job, protocol, store, Path(), device=device, resolve=lambda spec: parse(spec).pruner)
        self.found = found

    def pruned(self, spec: str) -> nn.Module:
        """The net that the pruner `spec` makes of stubs. Raises PrunebenchError where it fails."""
        try:
            return self.model(parse(spec).pruner(self.job, self))
        except PrunebenchError as error:
            raise PrunebenchError(f"{self.job.name} would fail: {error}") from error
        except Exception as error:  # a pruner may be anybody's code
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise PrunebenchError(
                f"{self.job.name} fails where no net is trained: {type(error).__name__}: {error} ({at.filename}, line "
                f"{at.lineno}); mend the pruner, or name the others with --pruner."
            ) from error

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
        if kind not in self.found.trainings:
            self.found.trainings[kind] = training_pace(plan, model, masks, self.train, self.found.seconds)
        start, each = self.found.trainings[kind]
        passes = plan.passes(len(self.train)) + validation_passes(plan, len(self.validation))
        self.found.stages.setdefault(key, (start + each * passes, 2 * _bytes(state)))
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
        self.found.stages.setdefault(key, (statistics.median(times[-3:] or [0.0]) * steps, _bytes(start)))
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
