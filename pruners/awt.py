"""AWT: the adversarial winning ticket, a mask found at initialisation by matching the dense net's training dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.optim.adam import adam

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import (
    LAYERS,
    Masks,
    State,
    keep_largest_by_layer,
    layer_counts,
    masked,
    refuse_empty,
    rescaled,
    scaled_scores,
    shuffled,
    straight_through,
)

# Sample passes per image and step, besides the attack: the teacher's product (vjp: forward 1, backward 2; jvp: forward
# 1, jvp 2), the student's, and the backward pass through the student's.
PRODUCTS = 6 + 6 + 12


def kernel_product(
    net: nn.Module,
    parameters: State,
    images: Tensor,
    adversarial: Tensor,
    v: Tensor,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """K v for the mixed tangent kernel K = J(images) M J(adversarial)^T at `parameters`, without building K.

    `images`, `adversarial`: (n, c, h, w); `v`: (n, classes), read as one vector of n * classes. J(x) is the Jacobian
    of all logits at x with respect to all `parameters`; M is diagonal, with the entries of `masks` for the parameters
    that have one and 1 for the others. Takes one vjp at the adversarial images and one jvp at the clean ones. Returns
    the logits at the adversarial images and K v, both (n, classes).
    """

    def logits(values: State, at: Tensor) -> Tensor:
        result: Tensor = functional_call(net, values, (at,))
        return result

    at_adversarial, pull = vjp(lambda values: logits(values, adversarial), parameters)  # type: ignore[misc]
    (direction,) = pull(v)
    direction = direction | {name: direction[name] * mask for name, mask in (masks or {}).items()}
    _, product = jvp(lambda values: logits(values, images), (parameters,), (direction,))  # type: ignore[misc]
    return at_adversarial, product


@dataclass(frozen=True)
class AWT:
    """Find, before training, the sparse net whose adversarial training follows the dense one's; then train it.

    Shi et al. 2022, *Finding Dynamics Preserving Adversarial Winning Tickets*, AISTATS, arXiv 2202.06488. Verified (the
    abstract): neural-tangent-kernel theory gives a trainable sparse net at initialisation whose adversarial training
    follows the dense one's. We had access to neither full text nor code: this is a re-implementation after the paper,
    and the rest is our derivation. With the inner maximiser held fixed, df(x)/dt = -(1/N) sum_j K(x, x~_j) grad l_j
    with the mixed kernel K(x, x~) = J(x) J(x~)^T. A student that matches the dense teacher in logits and in K thus
    follows the same dynamics. We minimise mean (f_s - f_t)^2 + weight * E_v |(K_s - K_t) v|^2 / E_v |K_t v|^2 with v ~
    N(0, I). The expectation of |(K_s - K_t) v|^2 is the squared Frobenius norm of the difference; the raw kernel term
    would be about 1e7 times the other. Variant "weights" trains the student's weights, initially theta0 under the mask
    of each layer's largest. It updates the mask every `every` steps until the share `settle` of the search is done, as
    in Neural Tangent Transfer (Liu and Zenke 2020, arXiv 2006.08228; every 100 of its many more steps). Our reading:
    the gradient passes straight through the mask and pruned weights grow from zero, so a weight enters as small as the
    weight that it replaces; entering at its initial value would undo the search. Variant "mask" keeps theta0 and trains
    scores as in HYDRA. The start is not rescaled: the largest weights hold most of a layer's norm, and dividing by the
    square root of the density raises the kernel distance to the dense net, before any search, from .24 to 59 (digits,
    90 %). Batch norm's statistics are those of the dense net on `batches` batches, frozen in the search and shared. The
    search sees labels only through x~. Over the kept weights it ends nearer to the dense kernel than fixed masks,
    random or magnitude, in 16 of 21 settings, but over all weights, which it matches by default, in 11
    (docs/awt-kernel-distance).

    `kernel`: the parameters over which the student's kernel is summed. Under a fixed mask, pruned weights do not move,
    so df_s(x)/dt = -(1/N) sum_j J_s(x) M J_s(x~_j)^T grad l_j, with M the mask, and 1 for biases and batch norm: the
    kernel of the dynamics is that over the "kept" weights. "all" sums over the pruned weights too, as the dense net
    does, and so also matches directions in which training cannot move. In "mask", M's gradient reaches
    the scores straight through; in "weights", M is held fixed in each step.
    `layers`: how the kept weights are divided, "erk", "uniform" or "global": the counts of a global magnitude cut. At
    initialisation such a cut only ranks layers by their fan-in and empties wide ones; so we take the counts, and
    nothing else, from a dense adversarial training of the share `scout` of the budget.
    `search`: share of the budget. `batch`: images per step. `lr`: Adam's learning rate. `weight`: of the kernel term.
    `start`: what the kept weights begin the training with: as "searched", as the dense net has them at initialisation
    ("initial"), or those "rescaled" by the square root of the layer's density. Boards take the latter two for controls.
    `shuffle`: permute the kept positions inside each layer after the search. Searched weights belong to their
    positions, so a shuffle begins with rescaled initial weights: compare it with `start=rescaled`, the same start
    under the searched mask.
    """

    variant: str = "weights"
    search: float = 0.2
    batch: int = 32
    lr: float = 1e-3
    every: int = 2
    settle: float = 0.8
    weight: float = 1.0
    batches: int = 20
    kernel: str = "all"
    layers: str = "erk"
    scout: float = 0.1
    start: str = "searched"
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.variant not in ("weights", "mask"):
            raise ValueError(f"variant = {self.variant!r} must be weights or mask")
        if not (
            0 < self.search < 1 and 0 <= self.settle <= 1 and self.batch > 0 and self.every > 0 and self.batches > 0
        ):
            raise ValueError("search must be in (0, 1), settle in [0, 1], and batch, every and batches above 0")
        if not (self.lr > 0 and self.weight >= 0):
            raise ValueError(f"lr = {self.lr} must be above 0 and weight = {self.weight} at least 0")
        if self.kernel not in ("all", "kept"):
            raise ValueError(f"kernel = {self.kernel!r} must be all or kept")
        if self.start not in ("searched", "initial", "rescaled"):
            raise ValueError(f"start = {self.start!r} must be searched, initial or rescaled")
        if self.layers not in LAYERS:
            raise ValueError(f"layers = {self.layers!r} must be one of {', '.join(LAYERS)}")
        if self.scout <= 0 or (self.layers == "global" and self.scout + self.search >= 1):
            raise ValueError(f"scout = {self.scout} must be above 0 and, with search = {self.search}, below 1")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Calibrate the dense net, search for its sparse student, train the student under its mask."""
        images = self.batches * min(lab.protocol.training.batch, len(lab.train))  # for the calibration
        scout, steps = self._scout(lab), self._steps(lab)
        left = lab.left_after(images + steps * self._price(lab)) - scout
        lab.refuse_short({"train": left}, way_out="lower search or batches")
        keeps = self._counts(lab, scout)
        dense = lab.calibrated("calibrate", lab.initial(), batches=self.batches)
        masks = keep_largest_by_layer({name: dense[name].abs() for name in lab.shapes}, keeps)
        student, masks = self.find(lab, dense, masks)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        if self.start == "initial":
            student = masked(dense, masks)
        elif self.shuffle or self.start == "rescaled":
            student = rescaled(dense, masks)
        return lab.fit("train", student, epochs=lab.left, masks=masks).weights

    def _price(self, lab: Lab) -> int:
        """Sample passes of a step of the search."""
        return self.batch * (lab.attack_passes + PRODUCTS)

    def _steps(self, lab: Lab) -> int:
        """Steps of the search. Raises PrunebenchError if its share of the budget pays for none."""
        steps = int(self.search * lab.meter.granted / self._price(lab))
        if not steps:
            raise PrunebenchError(
                f"search = {self.search} of the budget does not pay for one step of batch = {self.batch} images; lower "
                "batch or raise search."
            )
        return steps

    def _scout(self, lab: Lab) -> int:
        """Epochs of the dense training that only counts weights."""
        return max(1, round(self.scout * lab.epochs)) if self.layers == "global" else 0

    def _counts(self, lab: Lab, scout: int) -> dict[str, int]:
        """How many weights each layer keeps. Raises PrunebenchError if a layer keeps none."""
        weights = lab.initial()
        if scout:
            weights = lab.fit("layers", weights, epochs=scout).weights
        keeps = layer_counts(self.layers, {name: weights[name] for name in lab.shapes}, lab.keep)
        refuse_empty(keeps)
        return keeps

    def find(self, lab: Lab, dense: State, masks: Masks, *, fixed: bool = False) -> tuple[State, Masks]:
        """The student that the search derives from `dense`, starting from `masks`, and its masks.

        `fixed`: keep the initial masks, for a comparison ("weights" only).
        """
        keeps = {name: int(mask.sum()) for name, mask in masks.items()}
        base = {name: dense[name].to(lab.device) for name in masks}
        masks = {name: mask.to(lab.device) for name, mask in masks.items()}
        trained = scaled_scores(base) if self.variant == "mask" else masked(base, masks)
        net = lab.model(dense).to(lab.device).eval().requires_grad_(False)
        teacher = {name: value.detach() for name, value in net.named_parameters()}
        steps = self._steps(lab)

        def seen(values: State, now: State) -> State:
            """The student's parameters: the masked weights that `values` (weights or scores) define."""
            if self.variant == "mask":
                return {name: straight_through(base[name], values[name], keeps[name]) for name in keeps}
            return {name: _under(values[name], now[f"mask/{name}"]) for name in keeps}

        def moving(values: State, now: State) -> State | None:
            """The masks of the weights over which the student's kernel is summed; None for all weights."""
            if self.kernel == "all":
                return None
            if self.variant == "mask":
                return {
                    name: straight_through(torch.ones_like(base[name]), values[name], keeps[name]) for name in keeps
                }
            return {name: now[f"mask/{name}"] for name in keeps}

        def step(now: State, index: int) -> State:
            images, labels = lab.sample(f"search {index}", self.batch)
            values = {name: now[f"value/{name}"].clone().requires_grad_() for name in keeps}
            student = teacher | {name: weight.detach() for name, weight in seen(values, now).items()}
            adversarial = lab.attack(
                lambda at: functional_call(net, student, (at,)), images, labels, name=f"search {index}"
            )
            v = torch.randn(self.batch, lab.info.classes, generator=lab.generator(f"v {index}")).to(lab.device)
            with torch.no_grad():
                f_t, k_t = kernel_product(net, teacher, images, adversarial, v)
            f_s, k_s = kernel_product(net, teacher | seen(values, now), images, adversarial, v, moving(values, now))
            loss = (f_s - f_t).square().mean() + self.weight * (k_s - k_t).square().mean() / k_t.square().mean()
            if not loss.isfinite():
                raise PrunebenchError(
                    f"The loss of AWT's search is {loss.item()} at step {index + 1} of {steps}; lower lr = {self.lr}."
                )
            return self._update(now, values, loss, refresh=not fixed and self._due(index + 1, steps), keeps=keeps)

        begin = {f"value/{name}": value for name, value in trained.items()}
        begin |= {f"mask/{name}": mask for name, mask in masks.items()}
        begin |= {f"{moment}/{name}": torch.zeros_like(base[name]) for name in keeps for moment in ("first", "second")}
        begin["count"] = torch.zeros((), device=lab.device)
        facts = [asdict(replace(self, start="searched", shuffle=False)), fixed]
        end = lab.loop("search", begin, step, steps=steps, passes=steps * self._price(lab), facts=facts)
        values = {name: end[f"value/{name}"] for name in keeps}
        if self.variant == "mask":
            masks = keep_largest_by_layer({name: value.abs() for name, value in values.items()}, keeps)
            return masked(dense, masks), masks
        masks = {name: end[f"mask/{name}"] for name in keeps}
        return masked(dense | values, masks), masks

    def _due(self, done: int, steps: int) -> bool:
        """Whether the mask is updated after `done` of `steps` steps: once where `every` is too long for the search."""
        last = max(1, int(self.settle * steps)) if self.variant == "weights" and self.settle else 0
        return done <= last and done % min(self.every, last) == 0

    def _update(self, now: State, values: State, loss: Tensor, *, refresh: bool, keeps: Mapping[str, int]) -> State:
        """One Adam step on `values` with the gradient clipped to norm 1, then new masks if `refresh`."""
        gradients = list(torch.autograd.grad(loss, list(values.values())))
        parameters: list[Tensor] = [nn.Parameter(value.detach()) for value in values.values()]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        first, second = ({name: now[f"{moment}/{name}"].clone() for name in values} for moment in ("first", "second"))
        with torch.no_grad():  # not the class torch.optim.Adam: it imports torch's compiler, which takes seconds
            adam(
                parameters,
                gradients,
                list(first.values()),
                list(second.values()),
                [],
                [now["count"].cpu().clone() for _ in values],
                lr=self.lr,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
        after = now | {f"value/{name}": p.detach() for name, p in zip(values, parameters, strict=True)}
        after |= {f"first/{name}": first[name] for name in values} | {f"second/{name}": second[name] for name in values}
        after["count"] = now["count"] + 1
        if refresh:
            sizes = {name: after[f"value/{name}"].abs() for name in values}
            after |= {f"mask/{name}": mask for name, mask in keep_largest_by_layer(sizes, keeps).items()}
        return after


def _under(weight: Tensor, mask: Tensor) -> Tensor:
    """The masked weight; its gradient passes to every weight, pruned or not."""
    return weight + torch.where(mask, 0.0, -weight).detach()
