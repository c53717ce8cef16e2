"""What a pruner is lent: nets, data to train on, the common training, named randomness, and a metered budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol as Interface

import torch
from torch import nn

from bench import machine
from bench.checkpoint import pack, unpack
from bench.data import Info, Split, Store
from bench.errors import BudgetExceeded, PrunebenchError, Refused
from bench.files import canonical_json, sha256_of, sole_user, write_bytes
from bench.mask import Masks, State, keep_count
from bench.models import build, prunable
from bench.protocol import Job, Protocol
from bench.record import Stage
from bench.seeds import derive
from bench.train import Plan, Report, Trained, fit

DONE = "done.safetensors"


class Pruner(Interface):
    """A frozen dataclass whose fields are its options; called, it returns the weights of a pruned net.

    The result has the keys and shapes of `lab.model().state_dict()`; its mask is `weight != 0`.
    """

    def __call__(self, job: Job, lab: Lab) -> State: ...


@dataclass
class Meter:
    """Sample passes spent, stage by stage, out of `granted` (forward 1, backward 2)."""

    granted: int
    stages: list[Stage] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """Sample passes so far."""
        return sum(stage.passes for stage in self.stages)

    def check(self, name: str, passes: int) -> None:
        """Raise BudgetExceeded when `passes` more would overspend."""
        if self.spent + passes > self.granted:
            raise BudgetExceeded(
                f"Stage {name!r} costs {passes} sample passes and {self.granted - self.spent} of {self.granted} are "
                "left; train fewer epochs or leave a stage out."
            )

    def charge(self, name: str, passes: int, seconds: float | None = None) -> None:
        """Spend `passes` on the stage `name`. Raises BudgetExceeded, with nothing spent, when they are not left."""
        self.check(name, passes)
        self.stages.append(Stage(name=name, passes=passes, seconds=seconds))


class Lab:
    """One job's workplace. The test split is not reachable from here."""

    def __init__(
        self, job: Job, protocol: Protocol, store: Store, stages: Path, *,
        device: torch.device | None = None, report: Report | None = None,
    ) -> None:  # fmt: skip
        self.job, self.protocol = job, protocol
        self.device = device or torch.device("cpu")
        self.info: Info = store.info(protocol.data)
        train, validation = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
        self.train_sha256 = train.sha256
        self.train: Split = train.to(self.device)
        self.validation: Split = validation.to(self.device)
        self._stages, self._report = stages, report
        unit = Plan(protocol.training, protocol.threat, protocol.training.epochs).passes(len(train))
        self.meter = Meter(int(protocol.units * unit))

    @property
    def epochs(self) -> int:
        """How many epochs of the protocol's training the whole budget buys."""
        return int(self.protocol.units * self.protocol.training.epochs)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The prunable tensors of the net and their shapes."""
        with torch.device("meta"):
            return {name: tuple(weight.shape) for name, weight in prunable(self.model()).items()}

    @property
    def prunable(self) -> int:
        """The number of prunable weights."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def keep(self) -> int:
        """How many of them the job's sparsity leaves."""
        return keep_count(self.prunable, self.job.sparsity)

    def model(self, state: State | None = None) -> nn.Module:
        """A net of the protocol's architecture: with the weights `state`, or fresh ones of the job's seed."""
        net = build(self.protocol.model, info=self.info, seed=derive(self.job.seed, "init"))
        if state is not None:
            net.load_state_dict(state, strict=True)
        return net

    def initial(self) -> State:
        """The weights that every pruner starts from under this seed."""
        return self.model().state_dict()

    def generator(self, name: str) -> torch.Generator:
        """Randomness under a name: the same job and name give the same numbers, whatever ran before."""
        return torch.Generator().manual_seed(derive(self.job.seed, "pruner", name))

    def fit(
        self, stage: str, start: State, *, epochs: int, masks: Masks | None = None,
        first: int = 0, stop: int | None = None, lr: float | None = None, objective: str | None = None,
    ) -> Trained:  # fmt: skip
        """Train adversarially from `start` by the protocol's recipe, charged under the name `stage`.

        The schedule is laid over `epochs` epochs, of which `first` to `stop` (default: all) are trained. `masks` hold
        their weights at zero; `lr` replaces the peak learning rate, `objective` the loss ("pgd", "trades", "fgsm-rs").
        The same training asked for twice, by whatever pruner, is computed once and charged each time. Raises
        BudgetExceeded before anything is computed when the passes are not left.
        """
        recipe = self.protocol.training
        changes = {"lr": lr, "objective": objective}
        recipe = recipe.model_validate(
            recipe.model_dump() | {key: value for key, value in changes.items() if value is not None}
        )
        plan = Plan(recipe, self.protocol.threat, epochs, first, stop)
        if not 0 <= first < plan.last <= epochs:
            raise PrunebenchError(
                f"Stage {stage!r} would train from epoch {first} to {plan.last} of {epochs}, which is nothing; the "
                "budget is too small for these options: raise the epochs or let the other stages take less."
            )
        passes = plan.passes(len(self.train))
        self.meter.check(stage, passes)

        def compute(partial: Path) -> Trained:
            report = None if self._report is None else _named(self._report, stage)
            return fit(
                self.model(start),
                plan,
                self.train,
                self.validation,
                seed=self.job.seed,
                masks=masks,
                partial=partial,
                report=report,
            )

        facts = [recipe.model_dump(mode="json"), self.protocol.threat.model_dump(mode="json"), epochs, first, stop]
        trained = self._remembered([*facts, _digest(start), _digest(masks or {})], compute)
        self.meter.charge(stage, passes, trained.seconds)
        return trained

    def _remembered(self, facts: list[object], compute: Callable[[Path], Trained]) -> Trained:
        """The training that `facts` describe: from the store if it is there, else computed and put there."""
        where = [machine.training_code(), machine.env_key(self.device), self.train_sha256, self.validation.sha256]
        key = sha256_of(canonical_json([*where, self.protocol.model, self.job.seed, *facts]))
        folder = self._stages / key
        partial = folder / "partial.safetensors"
        with sole_user(folder, wait=True):
            if (trained := _load(folder / DONE)) is None:
                trained = compute(partial)
                _save(folder / DONE, trained)
            partial.unlink(missing_ok=True)
        return trained


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(path: Path, trained: Trained) -> None:
    tensors = {f"weights/{name}": tensor for name, tensor in trained.weights.items()}
    tensors |= {f"last/{name}": tensor for name, tensor in trained.last.items()}
    write_bytes(path, pack(tensors, {"curve": trained.curve, "seconds": trained.seconds}))


def _load(path: Path) -> Trained | None:
    if not path.exists():
        return None
    try:
        tensors, about = unpack(path.read_bytes(), str(path))
    except Refused:
        return None
    weights, last = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("weights/", "last/")
    )
    return Trained(weights, last, about["curve"], about["seconds"])


def _named(report: Report, stage: str) -> Report:
    return lambda what, done, total: report(f"{stage}: {what}", done, total)
