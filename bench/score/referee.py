"""A net under measurement: what attacks see of it, and what we measure ourselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.bench.attacks.base import Attack, within
from prunebench.bench.errors import Refused
from prunebench.bench.executor import Fast, fast
from prunebench.bench.models import ARCHITECTURES
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.seeds import derive
from prunebench.bench.wide import Sizes, Wide, undecided, unheld

NO_ANSWER = -1  # in the place of a class
_BATCH = 256  # images, where the architecture says nothing


def batch_size(protocol: Protocol, arch: str, device: str) -> int:
    """How many images are measured at once: a function of protocol, architecture and device kind alone."""
    known = ARCHITECTURES.get(arch)
    return min(protocol.shard, known.batch.get(device, _BATCH) if known else _BATCH)


@dataclass(frozen=True)
class Measured:
    """What one attack came to, by our own measurement; everything lies on the CPU.

    `fooled`: bool (n,), which images the net itself does not get right. `images`: float32 (n, c, h, w), what was
    measured. `rejected`: proposals that moved an image and fooled nothing. `kernel_only`: proposals that the net gets
    wrong as the attack saw it, on sparse kernels or folded, and the net itself does not; or images without finite
    logits there, if these are more. `passes`: sample passes of all this, which `Referee.passes` leaves out.
    """

    fooled: Tensor
    images: Tensor
    rejected: int
    kernel_only: int
    passes: int


class Referee:
    """A net, frozen and in float32, whose outcomes are always measured on whole batches of one shape.

    A result then does not depend on how the work was cut: the same shape gives the same bits in any order. Attacks see
    the net through `fast`, on sparse kernels or with its norms folded, and `net` is what is measured: wrong kernels may
    make an attack weaker, but what they call fooled is counted when it is not.

    An image is right when its label's logit is strictly the largest in float32, and float32 holds the logits: they are
    those of float64 but for an offset and the last bits. Attacks see a net in float64 when its numbers leave float32's
    sensible range. A net without finite logits on any image in [0, 1] that is measured or asked about is refused.
    """

    def __init__(self, module: nn.Module, rules: Protocol, batch: int, device: torch.device) -> None:
        self.net = module.to(device).eval().requires_grad_(False)
        self.fast: Fast | Wide = fast(self.net)
        self.wide, self.sizes = Wide(self.net), Sizes(0.0, 0.0, 0.0)  # before the first look
        self.rules, self.batch, self.device = rules, batch, device
        self.passes = 0
        self._listen: Callable[[int], None] | None = None  # while an attack runs
        self._silent: list[Tensor] = []  # images to which attacks got no finite logits

    def shards(self, count: int) -> list[slice]:
        """The parts in which `count` images are attacked, by the protocol's shard size."""
        size = self.rules.shard
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def attacked(self, images: Tensor) -> Tensor:
        """The net as attacks see it; counts sample passes (a forward that leads to a gradient is 3)."""
        passes = self._count(images)
        if self._listen is not None:
            self._listen(passes)
        logits = self.fast(images)
        if not math.isfinite(float(logits.detach().sum())):  # a look at each costs several times as much
            self._silent.append(self._answerless(images.detach(), logits.detach()))
        return logits

    def _answerless(self, images: Tensor, logits: Tensor) -> Tensor:
        """Those of `images` (n, c, h, w) that are images and have logits that are not finite; no more than a batch."""
        real = ((images >= 0) & (images <= 1)).flatten(1).all(1)
        room = max(self.batch - sum(len(part) for part in self._silent), 0)
        return images[real & ~logits.isfinite().all(1)][:room].clone()

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
        """Logits as above. Raises Refused when they are not finite, or not the same when they are measured again.

        They have to be finite at two points of each image's ball as well. The sizes of the net's numbers are looked at,
        too: attacks see a net whose sizes are too large in float64.
        """
        return self._steady(images)[0]

    def _steady(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits of `steady_logits`, and two points of the images' balls with theirs."""
        self.sizes = self._looked(images.shape[1:])
        if self.sizes.excess > 1:
            self.fast = self.wide
        first, second = self.logits(images), self.logits(images)
        _finite(first, "images")
        if not torch.equal(first, second):
            bad = int((first != second).any(1).sum())
            raise Refused(
                "nondeterministic",
                f"The same {len(first)} images gave other logits the second time on {bad} of them; an attack on a net "
                "that draws at random measures luck, so take the randomness out.",
            )
        moved = [within(images + point, images, self.rules.threat) for point in self._points(images.shape[1:])]
        beside = [(points, self.logits(points)) for points in moved]
        for _, logits in beside:
            _finite(logits, "images moved inside the ball")
        return first, beside

    def answers(self, images: Tensor) -> Tensor:
        """The class that the net gives each of `images`, int64 (n,) on the CPU; NO_ANSWER where none is right.

        That is so where two logits share the first place, and where float32 does not hold the logits of the image or of
        one of two points of its ball. Raises Refused as `steady_logits` does.
        """
        logits, beside = self._steady(images)
        held = self._held(images, logits)
        for points, there in beside:
            held &= self._held(points, there)
        return torch.where(held & ~undecided(logits), logits.argmax(1), NO_ANSWER)

    def _points(self, shape: Sequence[int]) -> list[Tensor]:
        """Two opposite corners of the ball, the same for every image, so that a result does not depend on the cut."""
        draw = torch.Generator().manual_seed(derive(self.rules.attack_seed, "corner"))
        corner = (2 * torch.rand((1, *shape), generator=draw) - 1).sign()
        radius = self.rules.threat.radius / (math.sqrt(math.prod(shape)) if self.rules.threat.norm == "L2" else 1.0)
        return [radius * corner, -radius * corner]

    @torch.no_grad()
    def _held(self, images: Tensor, logits: Tensor) -> Tensor:
        """Whether float32 holds the `logits` (n, classes) that it gives for `images`: bool (n,) on the CPU."""
        found = [torch.zeros(0, dtype=torch.bool)]
        for start in range(0, len(images), self.batch):
            part, narrow = images[start : start + self.batch], logits[start : start + self.batch]
            found.append(~unheld(narrow, self.wide.logits(part.to(self.device)).cpu()))
            self.passes += len(part)
        return torch.cat(found)

    def fooled(
        self,
        attack: Attack,
        images: Tensor,
        labels: Tensor,
        seed: int,
        threat: Threat | None = None,
        listen: Callable[[int], None] | None = None,
    ) -> Measured:
        """Which images `attack` gets misclassified, by our own measurement.

        A proposal is brought into the ball of `threat` (the protocol's by default) and into [0, 1] and measured on the
        plain net; one that is not finite counts as the image itself. An attack that never asked for logits, as a
        replay, was not misled by them, and nothing of it counts as `kernel_only`. `listen` is
        told the sample passes of every forward that the attack asks for. Raises Refused when the plain net has
        no finite logits for a proposal, or for an image that the attack asked about and the fast net had none for.
        """
        threat = threat or self.rules.threat
        clean, before = images.to(self.device), self.passes
        self._listen = listen
        try:
            proposals, silent = self._proposals(attack, clean, labels, threat, seed)
        finally:
            self._listen = None
        asked = self.passes > before
        usable = proposals.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        proposals = torch.where(usable, proposals, clean)
        proposed = (proposals != clean).flatten(1).any(1).cpu()
        measured = within(proposals, clean, threat).cpu()
        logits = self.logits(measured)
        _finite(logits, f"proposals within {threat.eps} of the images")
        fooled = (logits.argmax(1) != labels) | undecided(logits)
        standing = (~fooled).nonzero().squeeze(1)
        fooled[standing] = ~self._held(measured[standing], logits[standing])
        kernel_only = int((self._mistaken(measured, labels) & ~fooled).sum()) if asked else 0
        passes, self.passes = self.passes - before, before
        return Measured(fooled, measured, int((proposed & ~fooled).sum()), max(kernel_only, silent), passes)

    def _proposals(
        self, attack: Attack, clean: Tensor, labels: Tensor, threat: Threat, seed: int
    ) -> tuple[Tensor, int]:
        """What `attack` proposes, and to how many images the fast net had no finite logits while it did.

        Where there were any, kernels alone overflowed (else the net is refused); the attack then sees the net itself.
        """
        proposals = self._asked(attack, clean, labels, threat, seed)
        if not self._silent:
            return proposals, 0
        silent = min(sum(len(part) for part in self._silent), len(clean))
        kernels, self.fast = self.fast, self.wide
        try:
            return self._asked(attack, clean, labels, threat, seed), silent
        finally:
            self.fast = kernels

    def _asked(self, attack: Attack, clean: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        """What `attack` proposes; what it asked about and got no finite logits for is measured on the net itself."""
        generator = torch.Generator(self.device).manual_seed(seed)
        lent = clean.clone(), labels.to(self.device, copy=True)  # an attack may write into what it is given
        self._silent = []
        proposals = attack(self.attacked, *lent, threat, generator=generator)
        self._silent = [part for part in self._silent if len(part)]
        if self._silent:
            _finite(self.logits(torch.cat(self._silent)), "images that an attack asked about")
        return proposals

    def _looked(self, shape: Sequence[int]) -> Sizes:
        """The sizes of the net's numbers on images of this shape that are the same for every test set and cut."""
        draw = torch.Generator().manual_seed(derive(self.rules.attack_seed, "sizes"))
        noise = torch.rand((29, *shape), generator=draw)
        flat = torch.tensor([0.0, 0.5, 1.0]).view(-1, *[1] * len(shape)).expand(-1, *shape)
        self.passes += len(noise) + len(flat)
        return self.wide.look(torch.cat([flat, noise]).to(self.device))

    @torch.no_grad()
    def _mistaken(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images the net gets wrong as attacks see it, bool (n,); none where they see the net itself."""
        if not self.fast.differs(images.shape[1:]):
            return torch.zeros(len(images), dtype=torch.bool)
        self.passes += len(images)
        return self.fast(images).argmax(1) != labels


def _finite(logits: Tensor, what: str) -> None:
    """Raise Refused where `logits` (n, classes), measured on so many images that are `what`, are not all finite."""
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise Refused(
            "non-finite",
            f"The net gives NaN or infinite logits on {bad} of {len(logits)} {what}; a net has to answer every image "
            "in [0, 1], so make its weights smaller or train it anew.",
        )


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 off while we measure; put back as it was."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
