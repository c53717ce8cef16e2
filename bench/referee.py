"""A net under measurement: what attacks see of it, and what we measure ourselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.attacks import Attack, within
from bench.errors import Refused
from bench.executor import fast
from bench.protocol import Protocol, Threat

_BATCH = {("resnet18", "cpu"): 64, ("vgg16-bn", "cpu"): 64}


def batch_size(protocol: Protocol, arch: str, device: str) -> int:
    """How many images are measured at once: a function of protocol, architecture and device kind alone."""
    return min(protocol.shard, _BATCH.get((arch, device), 256))


@dataclass(frozen=True)
class Measured:
    """What one attack came to, by our own measurement; everything lies on the CPU.

    `fooled`: bool (n,), which images the net itself gets wrong. `images`: float32 (n, c, h, w), what was measured.
    `disagreements`: proposals that moved an image and fooled nothing. `unconfirmed`: proposals that the net gets wrong
    as the attack saw it, on sparse kernels or folded, and the net itself does not.
    """

    fooled: Tensor
    images: Tensor
    disagreements: int
    unconfirmed: int


class Referee:
    """A net, frozen and in float32, whose outcomes are always measured on whole batches of one shape.

    A result then does not depend on how the work was cut: the same shape gives the same bits in any order. Attacks see
    the net through `fast`, on sparse kernels or with its norms folded, and `net` is what is measured: wrong kernels may
    make an attack weaker, but what they call fooled is counted when it is not.
    """

    def __init__(self, module: nn.Module, rules: Protocol, batch: int, device: torch.device) -> None:
        self.net = module.to(device).eval().requires_grad_(False)
        self.fast = fast(self.net)
        self.rules, self.batch, self.device = rules, batch, device
        self.passes = 0
        self.listener: Callable[[int], None] | None = None

    def shards(self, count: int) -> list[slice]:
        """The parts in which `count` images are attacked, by the protocol's shard size."""
        size = self.rules.shard
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def attacked(self, images: Tensor) -> Tensor:
        """The net as attacks see it; counts sample passes (a forward that leads to a gradient is 3)."""
        passes = self._count(images)
        if self.listener is not None:
            self.listener(passes)
        return self.fast(images)

    def itself(self, images: Tensor) -> Tensor:
        """The net itself, in batches of any shape and with gradients: for probes; counts passes as above."""
        self._count(images)
        logits: Tensor = self.net(images)
        return logits

    def _count(self, images: Tensor) -> int:
        passes = len(images) * (3 if images.requires_grad and torch.is_grad_enabled() else 1)
        self.passes += passes
        return passes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of `images` (n, c, h, w), measured in padded batches; on the CPU."""
        measured = []
        for part in images.split(self.batch):
            padded = torch.cat([part, part.new_zeros(self.batch - len(part), *part.shape[1:])])
            measured.append(self.net(padded.to(self.device))[: len(part)].cpu())
            self.passes += self.batch
        return torch.cat(measured)

    def steady_logits(self, images: Tensor) -> Tensor:
        """Logits as above. Raises Refused when they are not finite, or not the same when they are measured again."""
        first, second = self.logits(images), self.logits(images)
        if not first.isfinite().all():
            bad = int((~first.isfinite().all(1)).sum())
            raise Refused(
                "non-finite", f"The net gives NaN or infinite logits on {bad} of {len(first)} images; train it anew."
            )
        if not torch.equal(first, second):
            bad = int((first != second).any(1).sum())
            raise Refused(
                "nondeterministic",
                f"The same {len(first)} images gave other logits the second time on {bad} of them; an attack on a net "
                "that draws at random measures luck, so take the randomness out.",
            )
        return first

    def fooled(
        self, attack: Attack, images: Tensor, labels: Tensor, seed: int, threat: Threat | None = None
    ) -> Measured:
        """Which images `attack` gets misclassified, by our own measurement.

        A proposal is brought into the ball of `threat` (the protocol's by default) and into [0, 1] and measured on the
        plain net; one that is not finite counts as the image itself. An attack that never asked for logits, as a
        replay, was not misled by them, and nothing of it counts as unconfirmed.
        """
        threat = threat or self.rules.threat
        generator = torch.Generator(self.device).manual_seed(seed)
        clean = images.to(self.device)
        lent = clean.clone(), labels.to(self.device, copy=True)  # an attack may write into what it is given
        before = self.passes
        proposals = attack(self.attacked, *lent, threat, generator=generator)
        asked = self.passes > before
        usable = proposals.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        proposals = torch.where(usable, proposals, clean)
        proposed = (proposals != clean).flatten(1).any(1).cpu()
        measured = within(proposals, clean, threat).cpu()
        fooled = self.logits(measured).argmax(1) != labels
        unconfirmed = int((self._mistaken(measured, labels) & ~fooled).sum()) if asked else 0
        return Measured(fooled, measured, int((proposed & ~fooled).sum()), unconfirmed)

    @torch.no_grad()
    def _mistaken(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images the net gets wrong as attacks see it, bool (n,); none where they see the net itself."""
        if not self.fast.differs(images.shape[1:]):
            return torch.zeros(len(images), dtype=torch.bool)
        self.passes += len(images)
        return self.fast(images).argmax(1) != labels


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 off while we measure; put back as it was."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
