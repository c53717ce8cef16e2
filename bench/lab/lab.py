"""A pruner's workplace: nets, training data, the common training, named randomness, and a metered budget."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from prunebench.bench import collapse, executor, machine
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, sha256_of
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Backend, Calibration, Fit, Loop
from prunebench.bench.lab.checks import refuse_hopeless, refuse_short
from prunebench.bench.lab.keys import digest, plain, rules_of, source_of
from prunebench.bench.lab.meter import Meter, divided, granted
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.lab.schemes import PLAIN, Scheme, Scores
from prunebench.bench.mask import Masks, State, keep_count, split_scores
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import Protocol
from prunebench.bench.recipe import Training
from prunebench.bench.schema import exact
from prunebench.bench.seeds import derive

_SAY = logging.getLogger("prunebench.lab")
_SAY.addHandler(logging.NullHandler())  # silent unless somebody listens


class Pruner(Interface):
    """A frozen dataclass whose fields are its options; called, it returns the weights of a pruned net.

    The result has the keys and shapes of `lab.model().state_dict()`; its mask is `weight != 0`.
    """

    def __call__(self, job: Job, lab: Lab) -> State: ...


def _no_pruners(name: str) -> Pruner:
    raise PrunebenchError(f"This lab was given no registry of pruners, so it cannot run {name!r} inside a budget.")


class Lab:
    """One job's workplace. The test split is not reachable from here."""

    def __init__(
        self,
        job: Job,
        protocol: Protocol,
        store: Store,
        backend: Backend,
        *,
        device: torch.device | None = None,
        resolve: Callable[[str], Pruner] | None = None,
    ) -> None:
        """`backend`: computes the stages. `resolve`: finds a pruner by name, for `run`."""
        self.job, self.protocol = job, protocol
        self.device = device or torch.device("cpu")
        self.info: Info = store.info(protocol.data)
        train, validation = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
        self.train_sha256 = train.sha256
        self.train: Split = train.to(self.device)
        self.validation: Split = validation.to(self.device)
        self._backend, self._resolve = backend, resolve or _no_pruners
        self.meter = Meter(granted(protocol, len(self.train)))
        self.epochs = int(protocol.units * protocol.training.epochs)  # of the common training in the budget

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch of the common training."""
        return TrainingPlan(self.protocol.training, self.protocol.threat, 1).batches(len(self.train))

    @property
    def left(self) -> int:
        """How many epochs of the protocol's training the remaining budget buys."""
        return self.left_after(0)

    def left_after(self, passes: int) -> int:
        """How many epochs the budget buys once `passes` more sample passes are spent; 0 when they overspend it."""
        return max(0, self.meter.granted - self.meter.spent - passes) // self._price(self.protocol.training, 1)

    def divided(
        self, objective: str | None, shares: Mapping[str, float], gradients: Sequence[int], last: str
    ) -> list[int]:
        """Epochs of the stages that use up the whole budget, all trained with `objective`, None for the protocol's.

        A stage for each of `shares` (name -> share of the budget), of at least one epoch, whose steps take so many
        `gradients` of the loss; and the stage `last` of plain training for the rest. Raises PrunebenchError when
        nothing is left for it.
        """
        changes = {} if objective is None else {"objective": objective}
        plan = TrainingPlan(self.protocol.training.model_copy(update=changes), self.protocol.threat, 1)
        return divided(self.meter.granted, plan, len(self.train), shares, gradients, last)

    def refuse_short(self, stages: Mapping[str, int], *, way_out: str) -> None:
        """Raise PrunebenchError if one of `stages` (name -> epochs) has no epoch; `way_out`: what to change."""
        refuse_short(stages, budget=self.epochs, steps=self.steps, way_out=way_out)

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
        """The number of prunable weights that the job's sparsity allows."""
        return keep_count(self.prunable, self.job.sparsity)

    def model(self, state: State | None = None) -> nn.Module:
        """A net of the protocol's architecture, with the weights `state` or fresh ones from the job's seed."""
        net = build(self.protocol.model, info=self.info, seed=derive(self.job.seed, "init"))
        if state is not None:
            net.load_state_dict(state, strict=True)
        return net

    def initial(self) -> State:
        """The weights that every pruner starts from under this seed."""
        return self.model().state_dict()

    def generator(self, name: str) -> torch.Generator:
        """A named generator: the same job and name give the same numbers, whatever ran before."""
        return torch.Generator().manual_seed(derive(self.job.seed, "pruner", name))

    def fit(
        self,
        stage: str,
        start: State,
        *,
        epochs: int,
        masks: Masks | None = None,
        first: int = 0,
        stop: int | None = None,
        lr: float | None = None,
        objective: str | None = None,
        weight_decay: float | None = None,
        scheme: Scheme = PLAIN,
    ) -> Trained:
        """Train adversarially from `start` by the protocol's recipe, charged under the name `stage`.

        The schedule spans `epochs` epochs, of which `first` to `stop` (default: all) are trained. `masks` hold pruned
        weights at zero. `lr` replaces the peak learning rate, `objective` the loss ("pgd", "trades", "fgsm-rs"), and
        `weight_decay` the recipe's; `scheme` says how the training departs from plain descent. A training requested
        twice, by any pruner, is computed once and charged each time. Raises BudgetExceeded, before any computation,
        when too few passes are left.
        """
        changes = {"lr": lr, "objective": objective, "weight_decay": weight_decay}
        plan = self._plan(stage, changes, epochs, first, stop, scheme)
        pruned = sum(int((~mask).sum()) for mask in (masks or {}).values())
        return self._train(stage, plan, start, masks, kept=self.prunable - pruned)

    def fit_scores(
        self,
        stage: str,
        weights: State,
        scores: State,
        keeps: Mapping[str, int],
        *,
        epochs: int,
        lr: float | None = None,
        objective: str | None = None,
        rho: float = 0.0,
        by_four: bool = False,
    ) -> tuple[State, State]:
        """Train only `scores`, through the masks of the `keeps[name]` largest |scores| in each layer.

        `by_four`: the largest among those that `bench.mask.two_of_four` allows.

        Weights, biases and batch norm's affine part in the state dict `weights` are frozen; batch norm's running
        statistics follow the masked net. `rho`: above 0, the steps are sharpness-aware and cost a second gradient
        (see `Scores`). Otherwise as `fit`, without weight decay. Returns the scores, in the given order, and the state
        dict.
        """
        changes = {"lr": lr, "objective": objective, "weight_decay": 0.0}
        plan = self._plan(stage, changes, epochs, 0, None, Scores(scores, keeps, rho, by_four))
        found, state = split_scores(self._train(stage, plan, weights, None, kept=sum(keeps.values())).last)
        return {name: found[name] for name in scores}, state

    def loop(
        self, stage: str, start: State, step: Callable[[State, int], State], *, steps: int, passes: int, facts: object
    ) -> State:
        """The tensors `start` after `steps` calls of `step`: a custom search that resumes after a kill.

        `step(state, index)` returns the next state and depends only on its arguments, this lab and `facts` (a JSON
        value). The result is stored under the key of `facts`, `start`, the lab and the source file of `step`.
        `passes`: the price of all steps in sample passes, charged under the name `stage`.
        """
        self.meter.check(stage, passes)
        source = source_of(step)
        rules = rules_of(self.protocol.training, self.protocol.threat)
        key = self._key(["loop", source, facts, steps, digest(start), *rules])
        state, seconds = self._backend.loop(Loop(stage, key, start, step, steps, passes, self.device))
        self.meter.charge(stage, passes, seconds)
        return state

    def sample(self, name: str, images: int) -> tuple[Tensor, Tensor]:
        """A sample of `images` training images with replacement, float32 (n, c, h, w) in [0, 1], and their labels."""
        index = torch.randint(len(self.train), (images,), generator=self.generator(f"sample {name}")).to(self.device)
        part = self.train.take(index)
        return as_float(part.images), part.labels

    @property
    def attack_passes(self) -> int:
        """The price of `attack` in sample passes per image."""
        return 3 * self.protocol.training.steps

    def attack(self, model: Model, images: Tensor, labels: Tensor, *, name: str) -> Tensor:
        """The training's PGD attack on any function from images to logits; `name` fixes its random start."""
        recipe = self.protocol.training
        noise = torch.Generator(self.device).manual_seed(derive(self.job.seed, "attack", name))
        return pgd(
            model,
            images,
            labels,
            self.protocol.threat,
            generator=noise,
            steps=recipe.steps,
            step_size=float(exact(recipe.step_size)),
        )

    def calibrated(self, stage: str, state: State, *, batches: int) -> State:
        """`state` with batch norm's statistics averaged over `batches` random batches of clean training images."""
        size = min(self.protocol.training.batch, len(self.train))
        self.meter.charge(stage, batches * size, 0.0)

        def batch(number: int) -> Tensor:
            return self.sample(f"{stage} {number}", size)[0]

        net = self.model(state).to(self.device)
        return self._backend.calibrate(Calibration(stage, net, batch, batches, batches * size))

    def run(self, pruner: str, *, name: str, sparsity: float, epochs: int) -> State:
        """The weights that another pruner produces at `sparsity` within `epochs` epochs of this budget.

        `pruner`: as on the command line. Its stages are charged under `name`. Raises BudgetExceeded when too few
        epochs are left.
        """
        chosen = self._resolve(pruner)
        if sparsity and not getattr(type(chosen), "prunes", True):
            raise PrunebenchError(f"{pruner} does not prune, but sparsity {sparsity} is asked of it; name a pruner.")
        inner = copy.copy(self)
        inner.job = self.job.model_copy(update={"sparsity": sparsity})
        inner.epochs, inner.meter = epochs, Meter(self._price(self.protocol.training, epochs))
        self.meter.check(name, inner.meter.granted)
        state = chosen(inner.job, inner)
        for stage in inner.meter.stages:
            self.meter.charge(f"{name}: {stage.name}", stage.passes, stage.seconds, stage.curve, stage.collapsed)
        return state

    def _price(self, recipe: Training, epochs: int) -> int:
        return TrainingPlan(recipe, self.protocol.threat, epochs).passes(len(self.train))

    def _plan(
        self,
        stage: str,
        changes: Mapping[str, object],
        epochs: int,
        first: int,
        stop: int | None,
        scheme: Scheme,
    ) -> TrainingPlan:
        """The protocol's recipe with `changes` (None: no change) over these epochs; an empty range is refused."""
        recipe = self.protocol.training
        wanted = {key: value for key, value in changes.items() if value is not None}
        plan = TrainingPlan(
            recipe.model_validate(recipe.model_dump() | wanted), self.protocol.threat, epochs, first, stop, scheme
        )
        if not 0 <= first < plan.last <= epochs:
            raise PrunebenchError(
                f"Stage {stage!r} would train from epoch {first} to epoch {plan.last} of {epochs}, which is no "
                "training; the budget is too small for these options: raise the epochs or make other stages cheaper."
            )
        return plan

    def _train(self, stage: str, plan: TrainingPlan, start: State, masks: Masks | None, *, kept: int) -> Trained:
        """`start` trained by `plan` with `kept` weights, and charged even if it comes from the store."""
        if self.keep < len(self.shapes):  # a path has at most one weight of each layer
            refuse_hopeless(self.job.sparsity, self.prunable, collapse.shortest_path(self.model(), self.info.shape))
        span = [plan.epochs, plan.start, plan.stop]
        how = [source_of(type(plan.scheme)), type(plan.scheme).__qualname__, plain(plan.scheme.facts)]
        facts = ["fit", digest(start), digest(masks or {}), *how]
        key = self._key([*facts, *rules_of(plan.recipe, self.protocol.threat), *span])
        density, seed = kept / self.prunable, self.job.seed
        asked = Fit(stage, key, plan, lambda: self.model(start), masks, density, self.train, self.validation, seed)
        self.meter.check(stage, asked.passes)
        trained = self._backend.train(asked)
        self.meter.charge(stage, asked.passes, trained.seconds, trained.validated, trained.collapsed)
        if trained.collapsed is not None:
            _SAY.warning("%s: %s", self.job.name, collapse.of_stage(stage, trained.collapsed))
        return trained

    def _key(self, facts: list[object]) -> str:
        """A stage's key in the store: code, machine, data, net, seed, and the stage's own `facts`."""
        kernels = executor.identity() if self.device.type == "cpu" else None  # cards use none
        where = [machine.training_code(), machine.env_key(self.device), kernels]
        data = [self.train_sha256, self.validation.sha256]
        return sha256_of(canonical_json([*where, *data, self.protocol.model, self.job.seed, *facts]))
