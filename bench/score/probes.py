"""Small measurements of a net through its referee, on which the flags rest beside the attacks' outcomes.

Probes use the net itself, never sparse kernels, so that a flag about the net says nothing about kernels; `turned`
compares the two. When a probe runs an attack, that attack sees what every attack sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.bench.adversarials import Pairs
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.pgd import usual_pgd
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

VANISHED = 1e-12  # a gradient whose largest entry is not above this counts as zero
PROBE = usual_pgd(50)  # the attack for the transfer test and for the adversarials shown
NUDGE = 1e-5
ALIKE = 0.9  # two gradients with at least this cosine count as pointing the same way
SHOWN, TRIED = 12, 48  # pairs kept, and images attacked to find them


def vanishing(referee: Referee, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """The number of images on which the input gradient is zero or vanishes: of cross-entropy, and of the DLR loss.

    Only images that the net gets right count, for no others are attacked. On others the DLR loss may be constant: where
    the label has the third largest logit, it is 1.
    """
    right = referee.answers(images) == labels
    images, labels = images[right], labels[right]
    return _vanishing(referee, images, labels, _cross_entropy), _vanishing(referee, images, labels, _dlr)


def _vanishing(referee: Referee, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> int:
    largest = _gradients(referee, referee.itself, images, labels, loss).abs().amax(1)
    return int((~(largest > VANISHED)).sum())  # NaN has no direction either


def turned(referee: Referee, images: Tensor, labels: Tensor) -> int:
    """The number of images on which the gradient that attacks see, through kernels, points elsewhere than the net's.

    Uses the input gradient of the DLR loss, which does not saturate; images where the net's own vanishes do not count.
    """
    if not referee.fast.differs(images.shape[1:]):
        return 0
    own, seen = (_gradients(referee, net, images, labels, _dlr).double() for net in (referee.itself, referee.attacked))
    alike = F.cosine_similarity(own, seen, eps=1e-30) >= ALIKE
    return int(((own.abs().amax(1) > VANISHED) & ~alike).sum())


def _gradients(
    referee: Referee, net: Model, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The input gradient of `loss` for each image, (n, values) on the CPU; zero where there is none."""
    found = []
    for part, right in zip(images.split(referee.batch), labels.split(referee.batch), strict=True):
        at = part.to(referee.device).requires_grad_()
        with torch.enable_grad():
            value = loss(net(at), right.to(referee.device)).sum()
            (gradient,) = torch.autograd.grad(value, at, allow_unused=True) if value.requires_grad else (None,)
        found.append((torch.zeros_like(at) if gradient is None else gradient).detach().flatten(1).cpu())
    return torch.cat(found)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin divided by the spread of the logits (Croce & Hein 2020, arXiv 2003.01690, equation 6).

    With two classes the spread is the margin itself, so the margin alone is returned.
    """
    ordered = logits.sort(dim=1, descending=True).values
    right = logits.gather(1, labels[:, None]).squeeze(1)
    other = torch.where(right == ordered[:, 0], ordered[:, 1], ordered[:, 0])
    spread = ordered[:, 0] - ordered[:, 2] + 1e-12 if logits.shape[1] > 2 else 1.0
    return (other - right) / spread


def unmoved(referee: Referee, images: Tensor, seed: int) -> int:
    """The number of images whose logits are identical, bit for bit, after all pixels move by up to NUDGE.

    The images are first moved at random inside the ball, because pixels of data sets have round values.
    """
    noise = torch.Generator().manual_seed(seed)
    radius = referee.rules.threat.radius if referee.rules.threat.norm == "Linf" else 0.1
    start = (images + torch.empty_like(images).uniform_(-radius, radius, generator=noise)).clamp(0, 1)
    moved = (start + torch.empty_like(images).uniform_(-NUDGE, NUDGE, generator=noise)).clamp(0, 1)
    return int((referee.logits(start) == referee.logits(moved)).all(1).sum())


def probabilities(logits: Tensor) -> int:
    """The number of images whose outputs (n, classes) are all at least 0 and sum to 1."""
    return int(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)).sum())


def transferred(referee: Referee, parent: Referee, test: Split, standing: Tensor, seed: int) -> int:
    """The number of images in `standing`, bool (n,), on which PGD-50 against `parent` fools the referee's net."""

    def on_parent(
        model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
    ) -> Tensor:
        return PROBE(parent.attacked, images, labels, threat, generator=generator)

    count = 0
    for number, shard in enumerate(referee.shards(len(test))):
        if standing[shard].any():
            part = test.take(shard).take(standing[shard].nonzero().squeeze(1))
            stream = derive(seed, f"shard-{number}")
            found = referee.fooled(on_parent, as_float(part.images), part.labels, stream)
            referee.passes += found.passes
            count += int(found.fooled.sum())
    return count


def pairs(referee: Referee, test: Split, clean: Tensor, seed: int) -> Pairs:
    """Up to SHOWN of the first test images on which PGD-50 fools the net, with their adversarials."""
    index = clean.nonzero().squeeze(1)[:TRIED]
    part = test.take(index)
    if not len(index):
        fooled, lent = torch.zeros(0, dtype=torch.bool), as_float(part.images)
    else:
        found = referee.fooled(PROBE, as_float(part.images), part.labels, seed)
        referee.passes += found.passes
        fooled, lent = found.fooled, found.images
    predicted = referee.logits(lent).argmax(1) if len(index) else index
    shown = (fooled & (predicted != part.labels)).nonzero().squeeze(1)[:SHOWN]  # excludes images with two equal logits
    eight_bits = [(images[shown] * 255).round().to(torch.uint8).numpy() for images in (as_float(part.images), lent)]
    return Pairs(index[shown].numpy(), part.labels[shown].numpy(), predicted[shown].numpy(), *eight_bits)
