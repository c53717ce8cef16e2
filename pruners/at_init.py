"""Masks chosen at initialisation, before any training: SNIP and GraSP on the adversarial loss, SynFlow without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.bench.job import Job
from prunebench.bench.lab.checks import refuse_infinite
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import Masks, State, keep_largest, masked, rescaled, shuffled


def gradient(
    net: nn.Module, weights: State, images: Tensor, labels: Tensor, temperature: float = 1.0, along: State | None = None
) -> State:
    """The gradient g of the mean cross-entropy by `weights`, or H v for its Hessian H by them and v = `along`.

    `images`: (n, c, h, w). `weights`: some parameters of `net`, by name. The logits are divided by `temperature`.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(functional_call(net, leaves, (images,)) / temperature, labels)
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=along is not None)
    if along is not None:
        dot = torch.stack([(g * along[name]).sum() for name, g in zip(leaves, found, strict=True)]).sum()
        found = torch.autograd.grad(dot, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def flow(lab: Lab, weights: State) -> State:
    """SynFlow's scores |w| dR/d|w|, float64 on the lab's device; R is the sum of the logits of a linear net.

    That net has |weights|, no biases, and batch norm and normalisation that change nothing; it reads an image of ones.
    R is then the sum, over all paths from a pixel to a logit, of the product of |w| along the path (of a pooling
    layer, through the largest). In double precision, since R grows with depth. Price: 3 sample passes.
    """
    net = nn.Sequential(nn.Identity(), lab.model().get_submodule("1")).double().to(lab.device).eval()
    plain = {name: torch.full_like(p, 0.0 if name.endswith("bias") else 1.0) for name, p in net.named_parameters()}
    sizes = {name: weights[name].to(lab.device).double().abs().requires_grad_() for name in lab.shapes}
    ones = torch.ones(1, *lab.info.shape, dtype=torch.float64, device=lab.device)
    slopes = torch.autograd.grad(functional_call(net, plain | sizes, (ones,)).sum(), list(sizes.values()))
    return {name: sizes[name].detach() * slope for name, slope in zip(sizes, slopes, strict=True)}


def train(lab: Lab, masks: Masks, start: str, shuffle: bool) -> State:
    """The weights after the rest of the budget under `masks`, shuffled first if so asked.

    `start`: "masked" for the initial weights under the masks, as in the papers; "rescaled" to divide them by the square
    root of their layer's density, as `random` does. That restores the norm of a layer whose weights were kept at
    random, so shuffled masks always start so; weights kept by score are larger than average, and it overshoots.
    """
    if shuffle:
        masks = shuffled(masks, lab.generator("shuffle"))
    begin = (rescaled if shuffle or start == "rescaled" else masked)(lab.initial(), masks)
    return lab.fit("train", begin, epochs=lab.left, masks=masks).weights


def _check_start(start: str) -> None:
    if start not in ("masked", "rescaled"):
        raise ValueError(f"start = {start!r} must be masked or rescaled")


@dataclass(frozen=True)
class SNIP:
    """Keep the weights whose removal at initialisation would change the adversarial loss most: the largest |g * w|.

    Lee et al. 2019, arXiv 1810.02340, ranked over all layers together; g is the gradient of the mean loss. Our reading,
    here and in `GraSP`: the loss is that of adversarial images, found on the dense net and then held fixed;
    batch norm is in eval mode with the dense net's statistics (`lab.calibrated`), so that images do not depend on each
    other. Layers may collapse, as they do in the paper's setting too: only a mask without any path from the image to a
    logit is refused.

    `batches`: of the protocol's size, for the statistics and for the scores. `start`: "masked" or "rescaled", see
    `train`. `shuffle`: permute the kept positions within each layer before training.
    """

    PRICES: ClassVar[Mapping[str, int]] = {"gradient": 3}  # sample passes per image of a stage, besides the attack

    batches: int = 4
    start: str = "masked"
    shuffle: bool = False

    def __post_init__(self) -> None:
        _check_start(self.start)
        if self.batches < 1:
            raise ValueError(f"batches = {self.batches} must be at least 1")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Score, cut, train. Raises PrunebenchError if the scores would leave no epoch."""
        images = self.batches * min(lab.protocol.training.batch, len(lab.train))
        passes = 1 + sum(lab.attack_passes + price for price in self.PRICES.values())  # 1: to calibrate
        lab.refuse_short({"train": lab.left_after(images * passes)}, way_out="lower batches")
        scores = self.scores(lab)
        refuse_infinite("scores", scores)
        return train(lab, keep_largest(scores, lab.keep), self.start, self.shuffle)

    def scores(self, lab: Lab) -> State:
        """|g * w| of every prunable weight."""
        return {name: score.abs() for name, score in _products(lab, self.batches, 1.0, self.PRICES).items()}


@dataclass(frozen=True)
class GraSP(SNIP):
    """Keep the weights whose removal at initialisation would lower the adversarial loss's gradient norm most.

    Wang et al. 2020, arXiv 2002.07376. Removing w_q changes |g|^2 by -2 w_q (H g)_q to first order, H the
    Hessian. The paper's score -w * (H g) is largest where removal does least harm or even raises the gradient flow;
    those weights go. So the largest w * (H g) stay, ranked over all layers together. g and H are both means over the
    same images; H is by the prunable weights. Otherwise as `SNIP`.

    `temperature`: divides the logits in the scores. The authors' code has 200, which keeps the softmax near uniform.
    We took 1 for its higher mean on the digits' validation images at .98, although three seeds cannot tell the two
    apart: 60, 83 and 66 of 200 robust with 1, and 22, 86 and 54 with 200.
    `batches`, `start`, `shuffle`: as in `SNIP`.
    """

    PRICES: ClassVar[Mapping[str, int]] = {"gradient": 3, "curvature": 9}

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be above 0")

    def scores(self, lab: Lab) -> State:
        """w * (H g) of every prunable weight."""
        return _products(lab, self.batches, self.temperature, self.PRICES)


def _products(lab: Lab, batches: int, temperature: float, prices: Mapping[str, int]) -> State:
    """w * g of the initial weights w, or w * (H g) if the stage "curvature" has a price, over the same images."""
    dense = lab.calibrated("calibrate", lab.initial(), batches=batches)
    net = lab.model(dense).to(lab.device).eval().requires_grad_(False)
    weights = {name: dense[name].to(lab.device) for name in lab.shapes}
    size = min(lab.protocol.training.batch, len(lab.train))

    def mean(stage: str, along: State | None) -> State:
        def step(now: State, index: int) -> State:
            images, labels = lab.sample(f"score {index}", size)
            adversarial = lab.attack(net, images, labels, name=f"score {index}")
            found = gradient(net, weights, adversarial, labels, temperature, along)
            return {name: now[name] + found[name] / batches for name in now}

        begin = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        passes = batches * size * (lab.attack_passes + prices[stage])
        return lab.loop(stage, begin, step, steps=batches, passes=passes, facts=[stage, batches, temperature])

    found = mean("gradient", None)
    if "curvature" in prices:
        found = mean("curvature", {name: g.to(lab.device) for name, g in found.items()})
    return {name: dense[name] * found[name] for name in lab.shapes}


@dataclass(frozen=True)
class SynFlow:
    """Cut, little by little and without data, the weights that carry the least of the flow through the net.

    Tanaka et al. 2020, arXiv 2006.05467, algorithm 1: score by `flow`, keep the largest over all layers together, score
    the rest again; after k of n `iterations` the density is d^(k / n). A layer's scores sum to R in a chain of
    layers, so a small layer's weights score high and no layer collapses at once; one that does is refused. The search
    sees no image, so "adversarial" has no meaning in it.

    `iterations`: 100 in the paper. `start`, `shuffle`: as in `SNIP`; on the digits at .98 a rescaled start ended at one
    class in one seed of three, and a masked one in none.
    """

    iterations: int = 100
    start: str = "masked"
    shuffle: bool = False

    def __post_init__(self) -> None:
        _check_start(self.start)
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations} must be at least 1")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Score and cut `iterations` times, then train. Raises PrunebenchError if the search would leave no epoch."""
        n = self.iterations
        lab.refuse_short({"train": lab.left_after(3 * n)}, way_out="lower iterations")
        weights = {name: weight.to(lab.device) for name, weight in lab.initial().items()}

        def cut(masks: Masks, done: int) -> Masks:
            scores = flow(lab, masked(weights, masks))
            refuse_infinite("scores", scores)
            keep = max(lab.keep, round(lab.prunable * (lab.keep / lab.prunable) ** (done / n)))
            return keep_largest(scores, keep, masks)

        begin = {name: torch.ones(shape, dtype=torch.bool) for name, shape in lab.shapes.items()}
        masks = lab.loop(
            "search", begin, lambda now, index: cut(now, index + 1), steps=n - 1, passes=3 * n, facts=[n, lab.keep]
        )
        masks = cut({name: mask.to(lab.device) for name, mask in masks.items()}, n)
        return train(lab, {name: mask.cpu() for name, mask in masks.items()}, self.start, self.shuffle)
