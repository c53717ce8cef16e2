"""Whether attacks find an adversarial image that is known to exist: the binarization test.

Zimmermann, Brendel, Tramer & Carlini 2022, arXiv 2206.13991.

The ball around an image holds many inner points, and one plant on its surface. In place of the last layer, a linear
probe on the net's features separates them: class 0 inside, class 1 at the plant. An attack that finds no point of
class 1, where random search finds none either, also misses adversarial images of the net itself.

The paper leaves some choices open. These are ours, measured on dense nets of the digits and MNIST:

- The plant is a random point of the surface, as in the paper; with corners of the Linf ball, each of AutoAttack's four
  misses one in ten or more on the digits. Of CANDIDATES points it is the farthest out: sparse nets do not see some.
- The probe is Fisher's discriminant in closed form: the plant's distance from the inner points in units of their
  spread. A ridge keeps it off units that are active at the plant alone, where an attack has no gradient to follow.
- The boundary lies PLACE of the way from the outermost inner point to the plant. Nearer to the inner points (.5),
  random search finds one plant in five on the digits; nearer to the plant (.95), FAB begins to miss some.
- The logits span 1, as in the paper, so that no loss saturates.

All images are attacked at once: their balls do not overlap, so one net answers a point by the nearest image's probe.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunebench.bench.attacks.base import Model, within
from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beyond import Planted
from prunebench.bench.data import Split, as_float
from prunebench.bench.executor import Fast, fast
from prunebench.bench.protocol import Threat
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

IMAGES = 64
INNER = 1000  # points per image, besides the image itself
SHRUNK = 0.95  # radius of the inner points, in units of the ball's
CANDIDATES = 16
RIDGE = 1.0  # in units of the mean variance of a feature
APART = 0.05  # the least distance from inner points to plant, in units of the spread of all scores
PLACE = 0.75
QUERIES = 200  # of random search inside the ball, and as many on its surface
_CONTROL = "random search"


@dataclass(frozen=True)
class Probe:
    """A linear function of features, positive at a plant alone: `weights` (f,), and `bias`.

    `plant`: the number of the plant among the candidates.
    """

    weights: Tensor
    bias: float
    plant: int


@dataclass(frozen=True)
class Plants:
    """Images (m, c, h, w), as many plants, their probes, and the number of images passed over before the last."""

    images: Tensor
    plants: Tensor
    probes: tuple[Probe, ...]
    passed_over: int


class Probed(nn.Module):
    """A net of two classes: the probe of the nearest image, in `norm`, on the net's features."""

    centres: Tensor
    weights: Tensor
    biases: Tensor

    def __init__(self, features: nn.Module, images: Tensor, probes: Sequence[Probe], norm: str) -> None:
        super().__init__()
        self.features, self.order = features, _order(norm)
        self.register_buffer("centres", images.flatten(1))
        self.register_buffer("weights", torch.stack([probe.weights for probe in probes]))
        self.register_buffer("biases", torch.tensor([probe.bias for probe in probes]))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 2) of `images` (n, c, h, w)."""
        return self.answers(images, self.features(images))

    def answers(self, images: Tensor, features: Tensor) -> Tensor:
        """Logits (n, 2) of `images` (n, c, h, w) with these `features` (n, f)."""
        nearest = torch.cdist(images.detach().flatten(1), self.centres, p=self.order).argmin(1)
        score = (features * self.weights[nearest]).sum(1) + self.biases[nearest]
        return torch.stack([-score, score], dim=1) / 2


class FastProbed(Fast):
    """A `Probed` net whose features come from an accelerated copy."""

    def __init__(self, probed: Probed, leak: float = 0.0) -> None:
        super().__init__(probed)
        self.probed, self.features = probed, fast(probed.features, leak=leak)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, 2) of `images` (n, c, h, w)."""
        return self.probed.answers(images, self.features(images))

    def leaking(self, leak: float) -> FastProbed:
        """The same with gradients that leak; see `executor.fast`."""
        return FastProbed(self.probed, leak)

    def differs(self, shape: Sequence[int]) -> bool:
        """Whether the features of images of this shape (c, h, w) come from kernels or folded norms."""
        return self.features.differs(shape)

    def bits(self, shape: Sequence[int]) -> str:
        """What besides torch decides the bits for images of this shape (c, h, w)."""
        return self.features.bits(shape)


def measure_planted(
    referee: Referee,
    test: Split,
    clean: Tensor,
    robust: Tensor,
    seed: int,
    *,
    attacks: Mapping[str, Listed] | None = None,
    images: int = IMAGES,
) -> tuple[Planted, dict[str, np.ndarray]]:
    """How many plants each of `attacks` (by default, the suite's ranked ones) finds, and random search; no arrays.

    `clean`: bool (n,) on the CPU; the first `images` of them that can be separated from a plant are used. `robust` is
    not. Raises Refused as the referee does.
    """
    listed = suite_of(referee.rules).ranked if attacks is None else attacks
    tried = dict(listed) | {_CONTROL: Listed(random_search, 2 * QUERIES)}
    found = dict.fromkeys(tried, 0)
    features = features_of(referee.net, as_float(test.images[:1]).to(referee.device))
    plants = planted(referee, features, test, clean, seed, images)
    count = together = 0
    if plants.probes:
        judge = judging(referee, features, plants)
        sound = (judge.answers(plants.images) == 0) & (judge.logits(plants.plants).argmax(1) == 1)
        count, kept = int(sound.sum()), plants.images[sound]
        for number, shard in enumerate(judge.shards(count)):
            inner = torch.zeros(len(kept[shard]), dtype=torch.long)
            any_of_them = torch.zeros_like(inner, dtype=torch.bool)
            for name, attack in tried.items():
                stream = derive(seed, name, f"shard-{number}")
                measured = judge.fooled(attack.attack, kept[shard], inner, stream, surrogate=attack.surrogate)
                judge.passes += measured.passes
                found[name] += int(measured.fooled.sum())
                any_of_them |= measured.fooled & (name != _CONTROL)
            together += int(any_of_them.sum())
        referee.passes += judge.passes
    control = found.pop(_CONTROL)
    skipped = plants.passed_over + len(plants.probes) - count
    return Planted(images=count, passed_over=skipped, found=found, together=together, control=control), {}


def features_of(net: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `net` that returns what its last layer receives, or `net` itself if that layer is not linear.

    `images`: one or more (n, c, h, w), on which the net is run to see which layer makes the logits.
    """
    calls: list[tuple[str, Tensor]] = []

    def listener(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: calls.append((name, output))

    layers = {name: module for name, module in net.named_modules() if name and isinstance(module, nn.Linear)}
    hooks = [module.register_forward_hook(listener(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in calls]
    if not calls or names.count(names[-1]) > 1 or calls[-1][1] is not logits:
        return net
    cut = copy.deepcopy(net)
    parent, _, last = names[-1].rpartition(".")
    setattr(cut.get_submodule(parent), last, nn.Identity())
    return cut


def planted(referee: Referee, features: nn.Module, test: Split, clean: Tensor, seed: int, wanted: int) -> Plants:
    """Up to `wanted` plants, one for each of the first images of `clean`; tries at most twice as many images.

    Images whose ball overlaps with an earlier one, or without a plant that can be separated, are passed over.
    """
    threat, reader = referee.rules.threat, Referee(features, referee.rules, referee.batch, referee.device)
    index = clean.nonzero().squeeze(1)[: 2 * wanted]
    images = as_float(test.images[index])
    kept: list[int] = []
    plants, probes = [images[:0]], []
    passed_over = 0
    for number, place in enumerate(index.tolist()):
        if len(kept) == wanted:
            break
        image = images[number : number + 1]
        draw = torch.Generator().manual_seed(derive(seed, f"image-{place}"))
        found = None
        if not kept or _length(images[kept] - image, threat.norm).min() > 2.01 * threat.radius:
            inner = _inside(image.expand(INNER, -1, -1, -1), threat.norm, SHRUNK * threat.radius, draw)
            surface = _on_surface(image.expand(CANDIDATES, -1, -1, -1), threat.norm, threat.radius, draw)
            inner, surface = within(inner, image, threat), within(surface, image, threat)
            values = reader.logits(torch.cat([image, inner, surface])).double()
            found = separated(values[:-CANDIDATES], values[-CANDIDATES:])
        if found is None:
            passed_over += 1
        else:
            kept.append(number)
            plants.append(surface[found.plant : found.plant + 1])
            probes.append(found)
    referee.passes += reader.passes
    return Plants(images[kept], torch.cat(plants), tuple(probes), passed_over)


def separated(inner: Tensor, candidates: Tensor) -> Probe | None:
    """The probe between `inner` (n, f) and the candidate of (k, f) farthest from them; None if that is not APART.

    All are float64. The scores of the inner points and the plant span 1.
    """
    mean = inner.mean(0)
    inner, candidates = inner - mean, candidates - mean
    spread = inner.T @ inner / len(inner)
    unit = float(spread.diagonal().mean())
    if not (math.isfinite(unit) and unit > 0):
        return None
    ridge = RIDGE * unit * torch.eye(len(mean), dtype=spread.dtype)
    directions = torch.linalg.solve(spread + ridge, candidates.T)  # (f, k)
    scores, own = inner @ directions, (candidates.T * directions).sum(0)
    top, span = scores.amax(0), own - scores.amin(0)
    apart = (own - top) / span
    best = int(apart.argmax())
    if not apart[best] >= APART:
        return None
    weights = directions[:, best] / span[best]
    edge = (top[best] + PLACE * (own[best] - top[best])) / span[best]
    return Probe(weights.float(), float(-edge - mean @ weights), best)


def judging(referee: Referee, features: nn.Module, plants: Plants) -> Referee:
    """A referee of the probed net, whose attacks see the features as accelerated as those of `referee` do."""
    probed = Probed(features, plants.images, plants.probes, referee.rules.threat.norm).eval()
    judge = Referee(probed, referee.rules, referee.batch, referee.device)
    judge.fast = judge.wide if referee.fast is referee.wide else FastProbed(probed)
    return judge


def random_search(
    model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
) -> Tensor:
    """The control: QUERIES points drawn as the inner points are, from the whole ball, and QUERIES as the plants are."""
    found = images.clone()
    standing = torch.ones_like(labels, dtype=torch.bool)
    for draw in [_inside] * QUERIES + [_on_surface] * QUERIES:
        points = within(draw(images, threat.norm, threat.radius, generator), images, threat)
        left = standing.nonzero().squeeze(1)
        if not len(left):
            break
        with torch.no_grad():
            across = left[model(points[left]).argmax(1) != labels[left]]
        found[across], standing[across] = points[across], False
    return found


def _inside(images: Tensor, norm: str, radius: float, generator: torch.Generator) -> Tensor:
    """A uniform point of each image's ball; it may leave [0, 1]."""
    if norm == "Linf":
        return images + radius * (2 * torch.rand(images.shape, generator=generator, device=images.device) - 1)
    offsets = torch.randn(images.shape, generator=generator, device=images.device)
    depth = torch.rand(len(images), generator=generator, device=images.device) ** (1 / images[0].numel())
    return images + offsets * (radius * depth / _length(offsets, norm)).view(-1, 1, 1, 1)


def _on_surface(images: Tensor, norm: str, radius: float, generator: torch.Generator) -> Tensor:
    """A random point on the surface of each image's ball, inside [0, 1]."""
    uniform = norm == "Linf"
    drawn = (torch.rand if uniform else torch.randn)(images.shape, generator=generator, device=images.device)
    offsets = 2 * drawn - 1 if uniform else drawn
    for _ in range(8):  # where [0, 1] cuts pixels off, the others make up for it
        offsets = offsets * (radius / _length(offsets, norm)).view(-1, 1, 1, 1)
        offsets = (images + offsets).clamp(0.0, 1.0) - images
    return images + offsets


def _length(offsets: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(offsets.flatten(1), _order(norm), dim=1).clamp_min(1e-12)


def _order(norm: str) -> float:
    return math.inf if norm == "Linf" else 2.0
