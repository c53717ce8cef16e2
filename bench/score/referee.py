"""A net under measurement: the view that attacks get of it, and our own measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunebench.bench.attacks.base import Attack, within
from prunebench.bench.attacks.blocks import in_blocks
from prunebench.bench.errors import Refused
from prunebench.bench.executor import Fast, fast
from prunebench.bench.executor.surrogate import OWN, Replaced, Surrogate
from prunebench.bench.models import ARCHITECTURES
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.score.arithmetic import FLOAT32, Arithmetic
from prunebench.bench.score.samples import corners, plain_and_noisy
from prunebench.bench.wide import Sizes, Wide, undecided, unheld

NO_ANSWER = -1  # in place of a class
_BATCH = 256  # images, for architectures without a batch size


def batch_size(protocol: Protocol, arch: str, device: str) -> int:
    """The number of images measured at once; depends only on protocol, architecture and kind of device."""
    known = ARCHITECTURES.get(arch)
    return min(protocol.shard, known.batch.get(device, _BATCH) if known else _BATCH)


@dataclass(frozen=True)
class Measured:
    """The result of one attack by our own measurement; all tensors are on the CPU.

    `fooled`: bool (n,), the images that the net itself misclassifies. `images`: float32 (n, c, h, w), the images
    measured. `rejected`: proposals that moved an image and fooled nothing. `kernel_only`: proposals that fool only the
    fast net, with sparse kernels or folded norms; or the number of images without finite logits there, if larger.
    `repaired`: images attacked again in exact float32. `passes`: sample passes of the attack and its measurement, which
    `Referee.passes` excludes.
    """

    fooled: Tensor
    images: Tensor
    rejected: int
    kernel_only: int
    repaired: int
    passes: int


@dataclass(frozen=True)
class _Call:
    """An attack with everything it needs besides images and labels."""

    attack: Attack
    threat: Threat
    seed: int
    surrogate: Surrogate


@dataclass(frozen=True)
class View:
    """The net as an attack sees it; `lanes`: see `attacks.base.lanes`."""

    ask: Callable[[Tensor], Tensor]
    lanes: Callable[[Sequence[int]], int]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of `images`."""
        return self.ask(images)


class Referee:
    """A net, frozen and in float32, whose outcomes are always measured on whole batches of one shape.

    Results therefore do not depend on how the work is split: the same shape gives the same bits in any order. Attacks
    query `fast`, which uses sparse kernels or folded norms, but outcomes are measured on `net`. Wrong kernels may
    weaken an attack, but images that fool only the kernels are counted.

    An image is right when its label's logit is strictly the largest in float32 and float32 holds the logits: they equal
    those of float64 except for an offset and the last bits. Attacks see a net in float64 when its numbers leave
    float32's sensible range. A net is refused if its logits are not finite on any measured or queried image in [0, 1].

    `arithmetic`: for attacks of a suite, which hand it to `fooled`; all else expects to run inside `exact_float32`.
    """

    def __init__(
        self, module: nn.Module, rules: Protocol, batch: int, device: torch.device, arithmetic: Arithmetic = FLOAT32
    ) -> None:
        self.net = module.to(device).eval().requires_grad_(False)
        self.fast: Fast | Wide = fast(self.net)
        self.wide, self.sizes = Wide(self.net), Sizes(0.0, 0.0, 0.0)  # before the first look
        self._leaky: dict[float, Fast] = {}
        self.rules, self.batch, self.device, self.arithmetic = rules, batch, device, arithmetic
        self.passes = 0
        self._listen: Callable[[int], None] | None = None  # while an attack runs
        self._silent: list[Tensor] = []  # images to which attacks got no finite logits

    def shards(self, count: int) -> list[slice]:
        """The slices of `count` images that are attacked together, by the protocol's shard size."""
        size = self.rules.shard
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def attacked(self, images: Tensor, surrogate: Surrogate = OWN) -> Tensor:
        """The net as attacks see it; counts sample passes (a forward with a gradient counts as 3).

        `surrogate`: the gradient in place of the net's own; logits do not change.
        """
        passes = self._count(images)
        if self._listen is not None:
            self._listen(passes)
        asked = self.fast if surrogate == OWN else partial(self._replaced, surrogate=surrogate)
        # A soft surrogate looks at the whole batch, which padding would change.
        logits = asked(images) if surrogate.soft else in_blocks(asked, images)
        if not math.isfinite(float(logits.detach().sum())):  # checking each logit costs several times as much
            self._silent.append(self._answerless(images.detach(), logits.detach()))
        return logits

    def _replaced(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """The logits for attacks, with the gradient of `surrogate`; a soft one takes the net itself, not its copy."""
        if isinstance(self.fast, Fast) and not surrogate.soft:
            if surrogate.leak not in self._leaky:
                self._leaky[surrogate.leak] = self.fast.leaking(surrogate.leak)
            return self._leaky[surrogate.leak](images)
        with Replaced(surrogate):
            found: Tensor = (self.net if isinstance(self.fast, Fast) else self.fast)(images)
        return found

    def _answerless(self, images: Tensor, logits: Tensor) -> Tensor:
        """The `images` (n, c, h, w) inside [0, 1] whose logits are not finite; at most one batch per attack."""
        real = ((images >= 0) & (images <= 1)).flatten(1).all(1)
        room = max(self.batch - sum(len(part) for part in self._silent), 0)
        return images[real & ~logits.isfinite().all(1)][:room].clone()

    def itself(self, images: Tensor) -> Tensor:
        """The net itself for probes, in batches of any shape and with gradients; counts passes as `attacked` does."""
        self._count(images)
        logits: Tensor = self.net(images)
        return logits

    def _count(self, images: Tensor) -> int:
        passes = len(images) * (3 if images.requires_grad and torch.is_grad_enabled() else 1)
        self.passes += passes
        return passes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes), on the CPU, of `images` (n, c, h, w), measured in padded batches."""
        measured = []
        for part in images.split(self.batch):
            padded = torch.cat([part, part.new_zeros(self.batch - len(part), *part.shape[1:])])
            measured.append(self.net(padded.to(self.device))[: len(part)].cpu())
            self.passes += self.batch
        return torch.cat(measured)

    def steady_logits(self, images: Tensor) -> Tensor:
        """Logits as from `logits`. Raises Refused when they are not finite or differ in a second measurement.

        They must also be finite at two points of each image's ball. The sizes of the net's numbers are checked too: if
        they are too large, attacks see the net in float64.
        """
        return self._steady(images)[0]

    def _steady(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The logits of `steady_logits`, and two points of each image's ball with their logits."""
        self.sizes = self._looked(images.shape[1:])
        if self.sizes.excess > 1:
            self.fast = self.wide
        first, second = self.logits(images), self.logits(images)
        _finite(first, "images")
        if not torch.equal(first, second):
            bad = int((first != second).any(1).sum())
            raise Refused(
                "nondeterministic",
                f"Given the same {len(first)} images twice, the net changed its logits on {bad} of them; an attack on "
                "a random net measures luck, so remove the randomness.",
            )
        moved = [within(images + point, images, self.rules.threat) for point in corners(self.rules, images.shape[1:])]
        beside = [(points, self.logits(points)) for points in moved]
        for _, logits in beside:
            _finite(logits, "images moved inside the ball")
        return first, beside

    def answers(self, images: Tensor) -> Tensor:
        """The predicted class of each of `images`, int64 (n,) on the CPU; NO_ANSWER where there is none.

        There is none where two logits share first place, or where float32 does not hold the logits of the image or of
        either of two points of its ball. Raises Refused as `steady_logits` does.
        """
        logits, beside = self._steady(images)
        held = self._held(images, logits)
        for points, there in beside:
            held &= self._held(points, there)
        return torch.where(held & ~undecided(logits), logits.argmax(1), NO_ANSWER)

    @torch.no_grad()
    def _held(self, images: Tensor, logits: Tensor) -> Tensor:
        """Whether float32 holds the `logits` (n, classes) it gives for `images`: bool (n,) on the CPU."""
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
        surrogate: Surrogate = OWN,
        arithmetic: Arithmetic = FLOAT32,
    ) -> Measured:
        """The images that `attack` gets misclassified, by our own measurement.

        Proposals are projected into the ball of `threat` (by default the protocol's) and [0, 1], then measured on the
        plain net; a proposal that is not finite is replaced by its image. An attack that never queries logits, such as
        a replay, cannot be misled by them, so none of its proposals counts as `kernel_only`. `listen` receives the
        sample passes of every forward that the attack requests. `surrogate`: as for `attacked`. `arithmetic`: that of
        the attack; where the plain net does not confirm its success, or that the image is wrong from the start, the
        image is attacked again in exact float32.
        Raises Refused when the plain net has no finite logits for a proposal, or for a queried image on which the fast
        net had none either.
        """
        call = _Call(attack, threat or self.rules.threat, seed, surrogate)
        clean, before = images.to(self.device), self.passes
        self._listen = listen
        try:
            proposals, silent = self._proposals(call, clean, labels, arithmetic)
            asked = self.passes > before
            measured, proposed, fooled = self._judged(proposals, clean, labels, call.threat)
            again = torch.zeros_like(fooled)
            if asked and arithmetic.repairs:
                again = (proposed | self._misread(clean, labels, arithmetic)) & ~fooled
            if again.any():
                part, right = clean[again.to(self.device)], labels[again]
                proposals, more = self._proposals(call, part, right, FLOAT32)
                measured[again], proposed[again], fooled[again] = self._judged(proposals, part, right, call.threat)
                silent = max(silent, more)
        finally:
            self._listen = None
        kernel_only = int((self._mistaken(measured, labels) & ~fooled).sum()) if asked else 0
        passes, self.passes = self.passes - before, before
        rejected, repaired = int((proposed & ~fooled).sum()), int(again.sum())
        return Measured(fooled, measured, rejected, max(kernel_only, silent), repaired, passes)

    def _judged(
        self, proposals: Tensor, clean: Tensor, labels: Tensor, threat: Threat
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `proposals` as measured, which of them differ from `clean`, and which fool the plain net; on the CPU."""
        usable = proposals.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        proposals = torch.where(usable, proposals, clean)
        proposed = (proposals != clean).flatten(1).any(1).cpu()
        measured = within(proposals, clean, threat).cpu()
        logits = self.logits(measured)
        _finite(logits, f"proposals within {threat.eps} of the images")
        fooled = (logits.argmax(1) != labels) | undecided(logits)
        standing = (~fooled).nonzero().squeeze(1)
        fooled[standing] = ~self._held(measured[standing], logits[standing])
        return measured, proposed, fooled

    def _proposals(self, call: _Call, clean: Tensor, labels: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, int]:
        """The proposals of an attack, and the number of queried images without finite logits from the fast net.

        If there are any, only the kernels overflowed (otherwise the net is refused), so the attack reruns on the net.
        """
        proposals = self._asked(call, clean, labels, arithmetic)
        if not self._silent:
            return proposals, 0
        silent = min(sum(len(part) for part in self._silent), len(clean))
        kernels, self.fast = self.fast, self.wide
        try:
            return self._asked(call, clean, labels, arithmetic), silent
        finally:
            self.fast = kernels

    def _asked(self, call: _Call, clean: Tensor, labels: Tensor, arithmetic: Arithmetic) -> Tensor:
        """The proposals of an attack; queried images without finite logits are measured again on the net itself."""
        generator = torch.Generator(self.device).manual_seed(call.seed)
        lent = clean.clone(), labels.to(self.device, copy=True)  # an attack may write into what it is given
        self._silent = []
        with arithmetic.active():
            proposals = call.attack(self.view(call.surrogate), *lent, call.threat, generator=generator)
        self._silent = [part for part in self._silent if len(part)]
        if self._silent:
            _finite(self.logits(torch.cat(self._silent)), "images that an attack queried")
        return proposals

    def view(self, surrogate: Surrogate = OWN) -> View:
        """The net as an attack sees it; a surrogate other than a leak runs dense, one image after the other."""
        lanes = self.fast.lanes if isinstance(self.fast, Fast) and not surrogate.soft else lambda shape: 1
        return View(partial(self.attacked, surrogate=surrogate), lanes)

    def _looked(self, shape: torch.Size) -> Sizes:
        """The sizes of the net's numbers on fixed images of this shape."""
        samples = plain_and_noisy(self.rules, shape)
        self.passes += len(samples)
        return self.wide.look(samples.to(self.device))

    @torch.no_grad()
    def _misread(self, images: Tensor, labels: Tensor, arithmetic: Arithmetic) -> Tensor:
        """The images that the net gets wrong in `arithmetic`, bool (n,), on the CPU: attacks skip them as fooled."""
        self.passes += len(images)
        with arithmetic.active():
            return in_blocks(self.fast, images).argmax(1).cpu() != labels

    @torch.no_grad()
    def _mistaken(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images that the fast net gets wrong, bool (n,); none where attacks see the net itself."""
        if not self.fast.differs(images.shape[1:]):
            return torch.zeros(len(images), dtype=torch.bool)
        self.passes += len(images)
        return in_blocks(self.fast, images.to(self.device)).argmax(1).cpu() != labels


def _finite(logits: Tensor, what: str) -> None:
    """Raise Refused if `logits` (n, classes) are not all finite; `what` describes the images, for the message."""
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise Refused(
            "non-finite",
            f"The net gives NaN or infinite logits on {bad} of {len(logits)} {what}; a net must answer every image "
            "in [0, 1], so make its weights smaller or train it again.",
        )
