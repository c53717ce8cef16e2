"""A net in training: its optimiser, its running average, the attack on it, and its history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.sgd import sgd

from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.data import Split, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import Fast, fast
from prunebench.bench.lab.compiled import Captured, captured
from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.lab.schedule import Trained, TrainingPlan
from prunebench.bench.mask import Masks, State, enforce
from prunebench.bench.schema import exact

VALIDATED = 1000  # images of the robust validation accuracy in the curve, which affects no result


class Trainer:
    """A net in training by `plan` under `masks`; `fit` drives it through batches and epochs."""

    def __init__(self, model: nn.Module, plan: TrainingPlan, masks: Masks, device: torch.device) -> None:
        cuda = device.type == "cuda"
        plan.scheme.attach(model)
        self.model = model.to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autocast = torch.autocast("cuda", torch.bfloat16) if cuda else None
        self.compiled: Captured | None = None
        live = dict(self.model.named_parameters())
        self.plan, self.recipe, self.threat, self.scheme = plan, plan.recipe, plan.threat, plan.scheme
        self.masks = _on(live, masks)
        enforce(self.model, self.masks)
        self.quick = _quick(self.model, self.masks, device)
        self.momentum: State = {}  # none before the first step
        self.live = self.model.state_dict()  # the tensors themselves, which training changes in place
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}
        self.held: State = {
            name: tensor.to(device).detach().clone() for name, tensor in self.scheme.begin(self.model).items()
        }
        self.epoch, self.steps, self.progress = plan.start, 0, 0.0
        self.rate: float | Tensor = 0.0  # of the step in progress; in a tensor if a graph is to replay the step
        self.pull: float | Tensor = 0.0  # how far the average then moves toward the weights; likewise
        self.curve: list[dict[str, Any]] = []
        self.times: list[float] = []

    def capture(self, images: Tensor, *, graphs: bool = True, fill: int = 1) -> None:
        """From now on, train on batches like these through a compiled net, if it works; it becomes `model`.

        `graphs`, `fill`: as for `captured`.
        """
        clean = OBJECTIVES[self.recipe.objective].clean
        images = self.laid_out(images)
        made = captured(self.model, images, self.autocast, clean=clean, user=self, graphs=graphs, fill=fill)
        if made is not None:
            self.compiled, self.model, self.live = made, made.net, made.net.state_dict()
            self.quick = _quick(self.model, self.masks, images.device)

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the memory layout that this device's layers prefer."""
        cuda = images.device.type == "cuda"
        return images.contiguous(memory_format=torch.channels_last) if cuda else images

    @contextmanager
    def attacked(self, *, batch: bool = True) -> Iterator[Model]:
        """The net as attacks see it, in eval mode, with its current weights.

        `batch`: for training batches, the only ones that a net is compiled for.
        """
        with _attacking(self.model):
            if batch and self.compiled is not None:
                yield self.compiled.attacked()
            elif self.quick is not None:
                self.quick.refresh()
                yield self.quick
            else:
                yield self.model

    def attack(
        self,
        model: Model,
        images: Tensor,
        target: Tensor,
        noise: torch.Generator,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        start: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images by PGD against `model`, from `attacked`, with the recipe's steps and step size."""
        return pgd(
            model,
            images,
            target,
            self.threat,
            generator=noise,
            steps=self.recipe.steps if steps is None else steps,
            step_size=float(exact(self.recipe.step_size)) if step_size is None else step_size,
            loss=loss,
            start=start,
            autocast=self.autocast,
        )

    def logits(self, images: Tensor, model: Model | None = None) -> Tensor:
        """Logits, float32 (n, classes), of `images` from the net in training mode, or from a `model` of `attacked`."""
        model = model or (self.model if self.compiled is None else self.compiled.trained)
        images = images.contiguous(memory_format=torch.channels_last)
        if self.autocast is None:
            return model(images)
        with self.autocast:
            logits = model(images)
        return logits.float()

    def step(self, images: Tensor, labels: Tensor, progress: float, noise: torch.Generator) -> Tensor:
        """Train on one batch; returns the loss, not yet read back from the device."""
        self.turn(progress)
        return self.work(images, labels, noise)

    def turn(self, progress: float) -> None:
        """Set the numbers that differ from step to step, float32 like the tensors that hold them for a graph."""
        decay = min(self.recipe.ema, (self.steps + 1) / (10 + self.steps))  # the initial weights must not linger
        self.progress, rate, pull = progress, self.plan.lr(progress), 1 - decay
        if isinstance(self.rate, Tensor) and isinstance(self.pull, Tensor):
            self.rate.fill_(rate)
            self.pull.fill_(pull)
        else:
            self.rate, self.pull = float(torch.tensor(rate)), float(torch.tensor(pull))

    def work(self, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """What `step` does on the device; returns the loss."""
        objective = OBJECTIVES[self.recipe.objective]
        with parametrize.cached():  # compute a mask from scores once per gradient, not per forward
            adversarial = objective.attack(self, images, labels, noise)
            loss = self._differentiate(objective.loss(self, images, adversarial, labels))

        more = iter(range(self.scheme.gradients - 1))

        def again() -> Tensor:
            if next(more, None) is None:
                raise PrunebenchError(
                    f"A scheme asks for more gradients per step than the {self.scheme.gradients} that it pays for; "
                    "raise its `gradients`."
                )
            with parametrize.cached():
                return self._differentiate(objective.loss(self, images, adversarial, labels))

        self.scheme.after_gradient(self, again)
        self._descend()
        enforce(self.model, self.masks)
        self._follow()
        self.scheme.after_step(self)
        return loss

    def _differentiate(self, loss: Tensor) -> Tensor:
        """Leave the gradients of the loss and the scheme's penalty in the parameters; returns their sum, detached."""
        penalty = self.scheme.penalty(self)
        loss = loss if penalty is None else loss + penalty
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def remask(self, masks: Masks) -> None:
        """Train under `masks` from now on: pruned weights are zero, and weights that enter have no momentum."""
        before, self.masks = self.masks, _on(dict(self.model.named_parameters()), masks)
        enforce(self.model, self.masks)
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.average[name].mul_(mask)
                if name in self.momentum:
                    self.momentum[name].mul_(mask & before.get(name, mask))
        self.quick = _quick(self.model, self.masks, next(self.model.parameters()).device)

    @torch.no_grad()
    def _descend(self) -> None:
        """One SGD step by torch's function; `torch.optim.SGD` imports torch's compiler, which takes seconds."""
        moved = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        momentum = [self.momentum.get(name) for name in moved]
        sgd(
            list(moved.values()),
            [p.grad for p in moved.values() if p.grad is not None],
            momentum,
            lr=self.rate,  # type: ignore[arg-type]
            momentum=self.recipe.momentum,
            nesterov=self.recipe.momentum > 0,
            weight_decay=self.recipe.weight_decay,
            dampening=0,
            maximize=False,
            fused=self.autocast is not None or isinstance(self.rate, Tensor),
        )
        self.momentum |= {name: held for name, held in zip(moved, momentum, strict=True) if held is not None}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average toward the weights."""
        self.steps += 1
        live, pull = self.live, self.pull
        floating = [name for name in live if live[name].is_floating_point()]
        shares = [pull] * len(floating) if isinstance(pull, Tensor) else pull
        torch._foreach_lerp_([self.average[name] for name in floating], [live[name] for name in floating], shares)
        for name in live.keys() - set(floating):
            self.average[name].copy_(live[name])

    def validate(self, validation: Split, seed: int) -> dict[str, float]:
        """Clean and PGD accuracy of the averaged net on validation images, in [0, 1]."""
        part = validation.take(slice(0, VALIDATED))
        images, labels = as_float(part.images), part.labels
        raw = {name: tensor.clone() for name, tensor in self.live.items()}
        self.model.load_state_dict(self.average)
        with self.attacked(batch=False) as model:
            noise = torch.Generator(images.device).manual_seed(seed)
            adversarial = self.attack(model, images, labels, noise)
            with torch.no_grad():
                rates = [
                    (self.logits(x, self.model).argmax(1) == labels).float().mean().item()
                    for x in (images, adversarial)
                ]
        self.model.load_state_dict(raw)
        return {"clean": rates[0], "robust": rates[1]}

    def close_epoch(self, row: dict[str, Any], seconds: float) -> None:
        """Record the epoch's row of the curve and its duration."""
        self.epoch = row["epoch"]
        self.curve.append(row)
        self.times.append(seconds)

    def result(self) -> Trained:
        """The average and the raw weights, on the CPU, pruned weights exactly zero."""
        weights, last = (
            {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
            for state in (self.average, self.live)
        )
        return Trained(weights, last, self.curve, self.times)


def _on(live: Mapping[str, Tensor], masks: Masks) -> Masks:
    """The masks in the memory layout and on the device of their weights."""
    return {name: torch.empty_like(live[name], dtype=torch.bool).copy_(mask) for name, mask in masks.items()}


def _quick(model: nn.Module, masks: Masks, device: torch.device) -> Fast | None:
    """The net with less work per attack; which layers run sparse depends only on the net and `masks`.

    None on a card, and for a net whose weights are computed from others, which its masks do not describe.
    """
    if device.type != "cpu" or any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    with _attacking(model):
        return fast(model, masks=masks)


@contextmanager
def _attacking(model: nn.Module) -> Iterator[None]:
    """Batch normalisation in eval mode, so that the attacked net is the net to be scored."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
