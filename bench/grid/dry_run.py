"""A job gone through without its trainings: which stages its pruner asks for, and what each of them would take."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from prunebench.bench import machine
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.timing import Pace
from prunebench.bench.lab.backend import Calibration, Fit, Loop, calibrate
from prunebench.bench.lab.lab import Lab, Pruner
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.mask import State, masked
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import Job, Protocol
from prunebench.bench.score.progress import expected

STEPS = 4  # of a search, that are really run: the first warms up


@dataclass(frozen=True)
class Work:
    """A stage: its `key` in the store of stages (None: computed by every job), sample passes, seconds, bytes kept."""

    key: str | None
    stage: str
    passes: int
    seconds: float
    bytes: int = 0


@dataclass(frozen=True)
class Shares:
    """What share of the test images is assumed to be classified rightly, `clean`, and under attack, `robust`."""

    clean: float
    robust: float

    def __post_init__(self) -> None:
        if not 0 <= self.robust <= self.clean <= 1:
            raise PrunebenchError(
                f"--robust {self.robust} and --clean {self.clean} are shares of the test images, and what is robust is "
                "clean too; give 0 <= robust <= clean <= 1."
            )


@dataclass(frozen=True)
class Rehearsed:
    """What one job would take: its stages in order, and its score. `bytes`: of its net."""

    job: Job
    works: tuple[Work, ...]
    score: Work
    bytes: int

    @property
    def passes(self) -> int:
        """What its training is charged."""
        return sum(work.passes for work in self.works)


def rehearse(
    jobs: list[tuple[Pruner, Job]],
    protocol: Protocol,
    store: Store,
    *,
    device: str,
    threads: int,
    examples: int | None,
    shares: Shares,
    seconds: float,
    resolve: Callable[[str], Pruner],
) -> tuple[list[Rehearsed], float]:
    """Go through `jobs` in this process: every pruner runs, and every training it asks for gives back its start.

    Each kind of work is tried for some `seconds`, on nets of the sparsity that is asked for. Returns also the seconds
    that a process takes once, before its first training. Raises PrunebenchError where a job would fail for its options
    or its budget.
    """
    torch.set_num_threads(threads)
    where = machine.device_named(device)
    began = time.perf_counter()
    train, validation = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    build(protocol.model, info=store.info(protocol.data))  # the first one imports what it is made of
    loaded = time.perf_counter() - began
    pace = Pace(protocol, train.to(where), validation.to(where), where, seconds)
    found = [
        _Rehearsal(pruner, job, protocol, store, where, pace, resolve).ended(examples, shares) for pruner, job in jobs
    ]
    return found, loaded + pace.once


class _Rehearsal:
    """One job on its way through."""

    def __init__(
        self,
        pruner: Pruner,
        job: Job,
        protocol: Protocol,
        store: Store,
        device: torch.device,
        pace: Pace,
        resolve: Callable[[str], Pruner],
    ) -> None:
        self.job, self.protocol, self.store, self.pace = job, protocol, store, pace
        began, before = time.perf_counter(), pace.spent
        dry = _Dry(pace)
        self.lab = Lab(job, protocol, store, dry, device=device, resolve=resolve)
        try:
            self.net = self.lab.model(pruner(job, self.lab))
        except PrunebenchError as error:
            raise PrunebenchError(f"{job.name} would fail: {error}") from error
        except Exception as error:  # a pruner may be anybody's code
            source = inspect.getfile(type(pruner))
            at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
            raise PrunebenchError(
                f"{job.name} fails where no net is trained: {type(error).__name__}: {error} ({source}, line "
                f"{at[-1] if at else '?'}); mend the pruner, or name the others with --pruner."
            ) from error
        own = time.perf_counter() - began - (pace.spent - before)
        self.works = [*dry.works, Work(None, "the pruner's own", 0, own)]

    def ended(self, examples: int | None, shares: Shares) -> Rehearsed:
        """With the score of the net that it would leave."""
        test = self.store.testing(self.protocol.data, examples or self.protocol.test)
        net, weights = self.net, prunable(self.net)
        kept = sum(int(weight.count_nonzero()) for weight in weights.values())
        passes = expected(self.protocol, test, clean=shares.clean, robust=shares.robust)
        reached = dict.fromkeys(passes, shares.robust) | {"apgd-ce": shares.clean, "pgd": shares.clean}
        density = kept / self.lab.prunable
        pace = self.pace.attacks(lambda: net, density, test, reached)
        seconds = sum(cost * pace.get(attack, pace["pgd"]) for attack, cost in passes.items())
        plain = sum(tensor.nbytes for tensor in net.state_dict().values()) - 4 * self.lab.prunable
        score = Work(None, "score", round(sum(passes.values())), seconds)
        return Rehearsed(self.job, tuple(self.works), score, plain + 4 * kept + self.lab.prunable // 8)


class _Dry:
    """A backend that trains nothing: what is asked for is noted, with what it would take."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.works: list[Work] = []

    def train(self, asked: Fit) -> Trained:
        """What the training begins with, a little moved."""
        plan, model = asked.plan, asked.model
        seconds = self.pace.epochs(plan, model, asked.masks, asked.density).seconds(plan)
        state = _moved(masked(model().state_dict(), asked.masks or {}), asked.key)
        size = 2 * sum(tensor.nbytes for tensor in state.values())
        self.works.append(Work(asked.key, asked.stage, asked.passes, seconds, size))
        rows = [{"epoch": e, "loss": 0.0, "lr": 0.0, "clean": 0.0, "robust": 0.0} for e in range(plan.start, plan.last)]
        return Trained(state, state, rows, [0.0] * len(rows))

    def loop(self, asked: Loop) -> tuple[State, float]:
        """What a few steps make of the start; they tell what all of them take."""
        began = time.perf_counter()
        state = {name: tensor.to(asked.device) for name, tensor in asked.start.items()}
        ends = []
        for index in range(min(asked.steps, STEPS)):
            state = asked.step(state, index)
            self.pace.wait()
            ends.append(time.perf_counter())
        each = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - began if ends else 0.0
        size = sum(tensor.nbytes for tensor in asked.start.values())
        self.works.append(Work(asked.key, asked.stage, asked.passes, each * asked.steps, size))
        self.pace.spent += time.perf_counter() - began
        return {name: tensor.cpu() for name, tensor in state.items()}, 0.0

    def calibrate(self, asked: Calibration) -> State:
        """Statistics of one batch, which tells what all of them take."""
        began = time.perf_counter()
        state = calibrate(replace(asked, batches=1))
        self.pace.wait()
        seconds = time.perf_counter() - began
        self.works.append(Work(None, asked.stage, asked.passes, asked.batches * seconds))
        self.pace.spent += seconds
        return state


def _moved(state: State, key: str) -> State:
    """`state` with all numbers a little larger, by a share that `key` decides: other trainings leave other weights."""
    factor = 1 + 1e-3 * int(key[:8], 16) / 2**32
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}
