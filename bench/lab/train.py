"""Adversarial training: the same for every pruner, deterministic on the CPU, resumable after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.sgd import sgd

from prunebench.bench.attacks.suite import Model, pgd
from prunebench.bench.checkpoint import pack, unpack
from prunebench.bench.data import Split, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import Fast, fast
from prunebench.bench.files import read_outside, write_bytes
from prunebench.bench.lab.compiled import captured, frozen
from prunebench.bench.mask import Masks, State, enforce
from prunebench.bench.protocol import Threat, Training, exact
from prunebench.bench.seeds import derive

Report = Callable[[str, float, float], None]  # what is at work, how much is done, of how much
Log = Callable[[dict[str, Any], float], None]  # a row of the curve, and the seconds that its epoch took
LARGEST_PARTIAL = 2**31  # bytes of what a training writes down after an epoch
VALIDATED = 1000  # images; the robust accuracy on validation guides people, it enters no result


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the averaged `weights` (EMA), the `last` raw ones, and a `curve` of a row an epoch.

    `times`: the seconds that each of those epochs took.
    """

    weights: State
    last: State
    curve: list[dict[str, Any]]
    times: list[float]

    @property
    def seconds(self) -> float:
        """What the training took, without writing down where it is."""
        return sum(self.times)


@dataclass(frozen=True)
class Plan:
    """Which part of which schedule is trained: epochs `start` to `stop` of a schedule of `epochs`."""

    recipe: Training
    threat: Threat
    epochs: int
    start: int = 0
    stop: int | None = None

    @property
    def last(self) -> int:
        """The epoch to stop before."""
        return self.epochs if self.stop is None else self.stop

    def batches(self, images: int) -> int:
        """Whole batches in an epoch; what is left over comes in another epoch."""
        return images // min(self.recipe.batch, images)

    def seen(self, images: int) -> int:
        """How many of so many images an epoch trains on."""
        return self.batches(images) * min(self.recipe.batch, images)

    def passes(self, images: int) -> int:
        """The price in sample passes."""
        return max(0, self.last - self.start) * self.seen(images) * self.recipe.passes

    def lr(self, progress: float) -> float:
        """The learning rate when `progress`, in [0, 1), of the schedule is done."""
        if self.recipe.schedule == "cosine":
            return self.recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.recipe.lr * (1.0 if progress < 0.75 else 0.1)


def fit(
    model: nn.Module,
    plan: Plan,
    train: Split,
    validation: Split,
    *,
    seed: int,
    masks: Masks | None = None,
    partial: Path | None = None,
    report: Report | None = None,
    log: Log | None = None,
    compiled: bool | None = None,
) -> Trained:
    """Train `model` in place by `plan` and return the averaged weights.

    `masks` hold their weights at zero. Batches, augmentation and noise of an epoch depend on `seed` and its number
    alone. After every epoch all that the next one needs is written to `partial`; a run that finds that file goes on
    from there and ends in the same bytes. `log` is told every epoch, those before such a start as well. `compiled`:
    whether the net is compiled, by default on a CUDA card. Raises PrunebenchError when the loss is no longer finite,
    and when one-step training (fgsm-rs) overfits to its own attack.
    """
    device = train.images.device
    trainer = _Trainer(model, plan, masks or {}, device)
    trainer.restore(partial)
    if log is not None:
        for row, seconds in zip(trainer.curve, trainer.times, strict=True):
            log(row, seconds)
    batch = min(plan.recipe.batch, len(train))
    batches = plan.batches(len(train))
    began = time.perf_counter()  # compiling is part of the first epoch
    if compiled or (compiled is None and device.type == "cuda"):
        trainer.capture(as_float(train.take(slice(0, batch)).images))
    for epoch in range(trainer.epoch, plan.last):
        shuffle = torch.Generator().manual_seed(derive(seed, "order", epoch))
        noise = torch.Generator(device).manual_seed(derive(seed, "noise", epoch))
        order = torch.randperm(len(train), generator=shuffle).to(device)
        losses = torch.zeros((), device=device)
        for i in range(batches):
            part = train.take(order[i * batch : (i + 1) * batch])
            images = as_float(part.images)
            if plan.recipe.augment == "crop-flip":
                images = crop_flip(images, noise)
            losses += trainer.step(trainer.laid_out(images), part.labels, (epoch + i / batches) / plan.epochs, noise)
        row = {"epoch": epoch + 1, "loss": losses.item() / batches, "lr": plan.lr((epoch + 1) / plan.epochs)}
        if not math.isfinite(row["loss"]):
            raise PrunebenchError(
                f"Training diverged: the loss of epoch {epoch + 1} is {row['loss']}; lower the learning rate."
            )
        one_step = plan.recipe.objective == "fgsm-rs"
        if one_step or (epoch + 1) % plan.recipe.validate_every == 0 or epoch + 1 == plan.last:
            row |= trainer.validate(validation, derive(seed, "validation", epoch))
        if one_step:
            _refuse_collapse([*trainer.curve, row], chance=1 / (int(train.labels.max()) + 1))
        trainer.close_epoch(row, time.perf_counter() - began, partial)
        if log is not None:
            log(row, trainer.times[-1])
        if report is not None:
            report(f"epoch {epoch + 1}/{plan.last}", epoch + 1 - plan.start, plan.last - plan.start)
        began = time.perf_counter()
    return trainer.result()


class _Trainer:
    """A net in training: its optimiser, its running average, and what has happened so far."""

    def __init__(self, model: nn.Module, plan: Plan, masks: Masks, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.model = model.to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autocast = torch.autocast("cuda", torch.bfloat16) if cuda else None
        self.compiled: Model | None = None
        live = dict(self.model.named_parameters())
        self.plan = plan
        self.masks = {name: torch.empty_like(live[name], dtype=torch.bool).copy_(mask) for name, mask in masks.items()}
        enforce(self.model, self.masks)
        self.quick = _quick(self.model, self.masks, device)
        self.momentum: State = {}  # none before the first step
        self.live = self.model.state_dict()  # the tensors themselves, which training changes in place
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}
        self.epoch, self.steps = plan.start, 0
        self.curve: list[dict[str, Any]] = []
        self.times: list[float] = []

    def capture(self, images: Tensor) -> None:
        """Train through a compiled net from now on, if one works, on batches like these."""
        self.compiled = captured(self.model, self.laid_out(images), self.autocast)

    def laid_out(self, images: Tensor) -> Tensor:
        """The images as the layers of this device like them in memory."""
        cuda = images.device.type == "cuda"
        return images.contiguous(memory_format=torch.channels_last) if cuda else images

    @contextmanager
    def attacked(self, *, batch: bool = True) -> Iterator[Model]:
        """The net as attacks see it, in eval mode, with the weights that it has now; `batch`: on batches of training.

        A net is compiled for these alone.
        """
        with _attacking(self.model):
            if batch and self.compiled is not None:
                with frozen(self.model):
                    yield self.compiled
            elif self.quick is not None:
                self.quick.refresh()
                yield self.quick
            else:
                yield self.model

    def step(self, images: Tensor, labels: Tensor, progress: float, noise: torch.Generator) -> Tensor:
        """Train on one batch; returns the loss, not yet read back from the device."""
        with parametrize.cached():  # a mask made of scores is made once a step, not once a forward
            loss = self._loss(images, labels, noise)
            self.model.zero_grad(set_to_none=True)
            loss.backward()
        self._descend(self.plan.lr(progress))
        enforce(self.model, self.masks)
        self._follow()
        return loss.detach()

    @torch.no_grad()
    def _descend(self, lr: float) -> None:
        """One step of SGD. Its function, not `torch.optim.SGD`, which imports torch's compiler and so takes seconds."""
        recipe = self.plan.recipe
        moved = {name: p for name, p in self.model.named_parameters() if p.grad is not None}
        momentum = [self.momentum.get(name) for name in moved]
        sgd(
            list(moved.values()),
            [p.grad for p in moved.values() if p.grad is not None],
            momentum,
            lr=lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            dampening=0,
            maximize=False,
            fused=self.autocast is not None,
        )
        self.momentum |= {name: held for name, held in zip(moved, momentum, strict=True) if held is not None}

    def _loss(self, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        recipe, threat = self.plan.recipe, self.plan.threat
        step_size = float(exact(recipe.step_size))
        if recipe.objective == "trades":  # Zhang et al. 2019, arXiv 1901.08573, equation 5
            with self.attacked() as model:  # not under no_grad: what is cached there would have no gradient
                clean = F.softmax(self._logits(images, model), dim=1).detach()
                start = images + 0.001 * torch.empty_like(images).normal_(generator=noise)
                adversarial = pgd(
                    model,
                    images,
                    clean,
                    threat,
                    generator=noise,
                    steps=recipe.steps,
                    step_size=step_size,
                    loss=_divergence,
                    start=start.clamp(0, 1),
                    autocast=self.autocast,
                )
            logits = self._logits(images)
            return F.cross_entropy(logits, labels) + recipe.beta * _divergence(
                self._logits(adversarial), F.softmax(logits, dim=1)
            )
        steps = recipe.steps
        if recipe.objective == "fgsm-rs":  # Wong et al. 2020, arXiv 2001.03994: one step of 1.25 eps
            steps, step_size = 1, 1.25 * threat.radius
        with self.attacked() as model:
            adversarial = pgd(
                model,
                images,
                labels,
                threat,
                generator=noise,
                steps=steps,
                step_size=step_size,
                autocast=self.autocast,
            )
        return F.cross_entropy(self._logits(adversarial), labels)

    def _logits(self, images: Tensor, model: Model | None = None) -> Tensor:
        model = model or self.compiled or self.model
        images = images.contiguous(memory_format=torch.channels_last)
        if self.autocast is None:
            return model(images)
        with self.autocast:
            logits = model(images)
        return logits.float()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average toward the weights; early on it forgets faster, so that the start does not linger."""
        self.steps += 1
        decay = min(self.plan.recipe.ema, self.steps / (9 + self.steps))
        live = self.live
        floating = [name for name in live if live[name].is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floating], [live[name] for name in floating], 1 - decay)
        for name in live.keys() - set(floating):
            self.average[name].copy_(live[name])

    def validate(self, validation: Split, seed: int) -> dict[str, float]:
        """Clean and PGD accuracy of the average on validation images, in [0, 1]."""
        part = validation.take(slice(0, VALIDATED))
        images, labels = as_float(part.images), part.labels
        raw = {name: tensor.clone() for name, tensor in self.live.items()}
        self.model.load_state_dict(self.average)
        recipe = self.plan.recipe
        with self.attacked(batch=False) as model:
            adversarial = pgd(
                model,
                images,
                labels,
                self.plan.threat,
                steps=recipe.steps,
                step_size=float(exact(recipe.step_size)),
                generator=torch.Generator(images.device).manual_seed(seed),
                autocast=self.autocast,
            )
            with torch.no_grad():
                rates = [
                    (self._logits(x, self.model).argmax(1) == labels).float().mean().item()
                    for x in (images, adversarial)
                ]
        self.model.load_state_dict(raw)
        return {"clean": rates[0], "robust": rates[1]}

    def close_epoch(self, row: dict[str, Any], seconds: float, partial: Path | None) -> None:
        """Note what the epoch brought and write down where to go on."""
        self.epoch = row["epoch"]
        self.curve.append(row)
        self.times.append(seconds)
        if partial is None:
            return
        tensors = {f"net/{name}": tensor for name, tensor in self.live.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"momentum/{name}": tensor for name, tensor in self.momentum.items()}
        about = {"epoch": self.epoch, "steps": self.steps, "times": self.times, "curve": self.curve}
        write_bytes(partial, pack(tensors, about))

    def restore(self, partial: Path | None) -> None:
        """Go on from where an earlier run of the same training was cut off, if it left a whole file."""
        if partial is None:
            return
        try:
            tensors, about = unpack(read_outside(partial, "a training cut off", LARGEST_PARTIAL), str(partial))
        except PrunebenchError:
            return
        if not self._fits(tensors, about):
            return
        self.model.load_state_dict(
            {name.removeprefix("net/"): t for name, t in tensors.items() if name.startswith("net/")}
        )
        for name, average in self.average.items():
            average.copy_(tensors[f"average/{name}"])
        for name, parameter in self.model.named_parameters():
            if f"momentum/{name}" in tensors:
                momentum = torch.empty_like(parameter).copy_(tensors[f"momentum/{name}"])  # fused SGD wants its strides
                self.momentum[name] = momentum.detach()
        self.epoch, self.steps, self.times, self.curve = (about[key] for key in ("epoch", "steps", "times", "curve"))

    def _fits(self, tensors: State, about: Any) -> bool:
        """Whether these are the tensors and facts of this training, and not of another that lies in its place."""
        live = {name: tensor.shape for name, tensor in self.live.items()}
        moving = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        wanted = {f"{kind}/{name}": shape for kind in ("net", "average") for name, shape in live.items()}
        extra = {f"momentum/{name}": shape for name, shape in moving.items()}
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        return (
            isinstance(about, dict)
            and about.keys() == {"epoch", "steps", "times", "curve"}
            and wanted.items() <= shapes.items() <= (wanted | extra).items()
        )

    def result(self) -> Trained:
        """The average and the raw weights, on the CPU, pruned weights exactly zero."""
        weights, last = (
            {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
            for state in (self.average, self.live)
        )
        return Trained(weights, last, self.curve, self.times)


def _quick(model: nn.Module, masks: Masks, device: torch.device) -> Fast | None:
    """The net with less work an attack: what runs sparse depends on the net and `masks` alone.

    None on a card, and for a net whose weights are made of others, which its masks do not know.
    """
    if device.type != "cpu" or any(parametrize.is_parametrized(module) for module in model.modules()):
        return None
    with _attacking(model):
        return fast(model, masks=masks)


@contextmanager
def _attacking(model: nn.Module) -> Iterator[None]:
    """Batch normalisation in eval mode: the net under attack is the one that will be scored."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), the batch mean."""
    return F.kl_div(F.log_softmax(logits, dim=1), probabilities, reduction="batchmean")


def crop_flip(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Each image padded by `pad` black pixels, cut at a random place to its old size, and mirrored half the time."""
    n, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=images.device)

    top, left, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    pick = torch.arange(n, device=images.device)[:, None, None]
    return padded[pick, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _refuse_collapse(curve: list[dict[str, Any]], chance: float = 0.1) -> None:
    """Stop one-step training whose PGD accuracy has fallen to less than half of its best (catastrophic overfitting).

    A best below three times `chance` is no fall: a net that knows one class alone may show that much.
    """
    seen = [row["robust"] for row in curve]
    if max(seen) >= min(3 * chance, 0.9) and seen[-1] < 0.5 * max(seen):
        raise PrunebenchError(
            f"Catastrophic overfitting: PGD accuracy on validation fell from {max(seen):.0%} to {seen[-1]:.0%} in "
            f"epoch {curve[-1]['epoch']}; train with the objective pgd, or with fewer epochs."
        )
