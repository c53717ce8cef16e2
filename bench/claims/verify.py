"""Claims measured again: replay the stored adversarial images, attack a tenth of the images, or all of them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunebench.bench import adversarials, machine
from prunebench.bench.attacks.base import Model
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.claims import verdict
from prunebench.bench.claims.claim import Claim, claimed_of, load_claim, outcomes_of, rules_of, sound
from prunebench.bench.claims.verdict import Verdict
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.outcomes import standing_of
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.score import flags, probes
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.cascade import Found, attack_all, facts_of
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.progress import ProgressEstimate
from prunebench.bench.score.pursuit import pursue_all, pursue_sample
from prunebench.bench.score.referee import Referee, batch_size
from prunebench.bench.seeds import order

Level = Literal["replay", "quick", "full"]

SHARE, FEWEST = 10, 200  # quick attacks one image in SHARE, but at least FEWEST if that many are claimed robust


def verify(
    claim: str | Path,
    level: Level = "replay",
    *,
    store: Store | None = None,
    device: str = "auto",
    seed: int | None = None,
    out: Path | None = None,
    report: ProgressCallback | None = None,
) -> Verdict:
    """Check the claim in the file `claim` against a new measurement.

    `replay` measures the stored adversarials again. `quick` runs APGD-CE and APGD-T on images drawn by `seed`, by
    default a new one each time, so that no forger can predict them. `full` runs all of AutoAttack on all images and
    keeps a journal in `out`, from which a killed run resumes. A claim of the best-known number is attacked by its suite
    as well: by the short attacks at level quick, by all at level full. Raises PrunebenchError before measuring for a
    claim that breaks its format, whose net or other files are not those it names, or that lacks what the level needs.
    Raises it afterwards when no evidence was found but wrong sparse kernels here showed the attacks another net.
    """
    path = Path(claim)
    check = _prepare(path, store or Store(Path("data")))
    if level != "replay":
        check.require_suite()
    where = machine.device_named(device)
    with exact_float32():
        match level:
            case "replay":
                found = _replay(check, where)
            case "quick":
                found = _quick(check, where, secrets.randbelow(2**31) if seed is None else seed, report)
            case "full":
                found = _full(check, where, out, report)
    return replace(found, sentence=f"{found.sentence}{check.claim.explained}")


@dataclass(frozen=True)
class _Check:
    """A claim whose files match those it names, with its opened net and images."""

    path: Path
    claim: Claim
    rules: Protocol
    net: Net
    test: Split
    outcomes: dict[str, np.ndarray] | None

    @property
    def claimed(self) -> np.ndarray | None:
        """The images claimed to be standing, bool (n,); None when only a count is claimed."""
        return None if self.outcomes is None else claimed_of(self.claim, self.outcomes)

    def labels(self, predicted: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """The clean labels as claimed and as `predicted` now, int (n,) both; None when only a count is claimed."""
        return None if self.outcomes is None else (self.outcomes["predicted"], predicted.numpy())

    def require_suite(self) -> None:
        """Raise PrunebenchError if the claim is by a suite that the rules do not select today."""
        by, today = self.claim.by, suite_of(self.rules).best.name
        if by not in (None, today):
            raise PrunebenchError(
                f"{self.path} claims a number by {by}, but the suite for the best-known number is now {today}; score "
                "the net again with --best and claim the new number, or verify this claim at level replay."
            )

    def estimate(self, test: Split, report: ProgressCallback | None, only: Sequence[str]) -> ProgressEstimate | None:
        """The progress of the ranked attacks `only` and of the claim's suite on the images `test`."""
        if report is None:
            return None
        return ProgressEstimate(self.rules, test, len(test), report, {}, only, best=self.claim.by is not None)

    def referee(self, device: torch.device) -> Referee:
        """The net under measurement."""
        batch = batch_size(self.rules, self.net.header.arch, device.type)
        return Referee(self.net.module, self.rules, batch, device)


def _prepare(path: Path, store: Store) -> _Check:
    claim = load_claim(path)
    weights = sound(path, claim.net, "a net")
    rules = rules_of(path, claim)
    outcomes = outcomes_of(path, claim)
    if claim.proposals is not None:
        sound(path, claim.proposals, "adversarial images")
    net = open_net(weights)
    if net.id.sha256 != claim.net.sha256:
        raise Refused("hash", f"{weights} changed while it was read; verify {path} again.")
    info, header = store.info(rules.data), net.header
    if (header.classes, header.shape) != (info.classes, info.shape):
        raise Refused(
            "protocol",
            f"{weights} takes {header.shape} images of {header.classes} classes, but {rules.name} has {info.shape} of "
            f"{info.classes}; claim it under a protocol that fits.",
        )
    if rules.test is not None and claim.n > rules.test:
        raise Refused(
            "images",
            f"{path} claims {claim.n} images, but {rules.name} has only {rules.test}; claim at most {rules.test}.",
        )
    test = store.testing(rules.data, claim.n)
    same = claim.data in (None, test.sha256)
    if not same or (outcomes is not None and not np.array_equal(outcomes["labels"], test.labels.numpy())):
        raise Refused(
            "images", f"{path} was measured on other images of {rules.data} than the data folder holds; check --data."
        )
    return _Check(path, claim, rules, net, test, outcomes)


def _replay(check: _Check, device: torch.device) -> Verdict:
    """Measure the stored adversarials as if an attack had just proposed them."""
    claim, referee = check.claim, check.referee(device)
    if claim.proposals is None:
        raise PrunebenchError(
            f"{check.path} stores no adversarial images to replay; verify it at level quick or full, or score the net "
            "again with --keep-proposals."
        )
    images, labels = as_float(check.test.images), check.test.labels
    where = sound(check.path, claim.proposals, "adversarial images")
    kept = adversarials.load(where, claim.proposals.sha256, images.numpy(), check.rules.threat.radius)
    predicted = referee.answers(images)
    standing = predicted == labels
    index = torch.from_numpy(kept.index)
    if len(index):
        stored = torch.from_numpy(kept.images)

        def proposing(
            model: Model, images: Tensor, labels: Tensor, threat: Threat, *, generator: torch.Generator
        ) -> Tensor:
            return stored.to(images.device)

        standing[index] &= ~referee.fooled(proposing, images[index], labels[index], 0).fooled
    claimed, lacking = _replayable(check, kept.index)
    fewer = claim.robust is None or claim.by is not None
    said = verdict.replayed(claimed, kept.index, standing.numpy(), check.labels(predicted), at_least=fewer)
    return replace(said, sentence=f"{said.sentence}{lacking}")


def _replayable(check: _Check, stored: np.ndarray) -> tuple[np.ndarray | int, str]:
    """The images claimed to survive the stored adversarials, bool (n,), or their count; and a sentence after a space.

    A scoring stores no adversarials of the images that only the suite for the best-known number fools; the sentence
    counts them. `stored`: int (k,), the images with a stored adversarial.
    """
    if check.outcomes is None or check.claimed is None:
        return check.claim.needed, ""
    lacking = standing_of(check.outcomes) & ~check.claimed
    lacking[stored] = False
    if not lacking.any():
        return check.claimed, ""
    return check.claimed | lacking, (
        f" The {int(lacking.sum())} images that only {check.claim.by} is claimed to fool count as robust here, because "
        "no adversarials of them are stored."
    )


def _quick(check: _Check, device: torch.device, seed: int, report: ProgressCallback | None) -> Verdict:
    """Attack a random part of the images, leaving out those already claimed to be fooled."""
    n, referee, claimed = check.claim.n, check.referee(device), check.claimed
    predicted = referee.answers(as_float(check.test.images))
    shuffled = [i for i in order(n, "claim", check.claim.sha256, seed) if claimed is None or claimed[i]]
    index = torch.tensor(sorted(shuffled[: max(FEWEST, -(-n // SHARE))]), dtype=torch.int64)
    drawn, standing = check.test.take(index), predicted[index] == check.test.labels[index]
    by, only = check.claim.by, suite_of(referee.rules).quick
    if len(index):
        progress = check.estimate(drawn, report, only)
        found = attack_all(referee, drawn, standing, Journal(None, []), only=only, seed=seed, progress=progress)
        standing = list(found.standing.values())[-1]
        if by is not None:
            standing = pursue_sample(referee, drawn, standing, seed, progress=progress)
    if claimed is None:
        said = verdict.sampled_count(check.claim.needed, n, len(index), int(standing.sum()))
    else:
        said = verdict.sampled(claimed, index.numpy(), standing.numpy(), check.labels(predicted))
    short = "" if by is None else f" Of {by} only the short attacks ran."
    said = replace(said, sentence=f"{said.sentence}{short} The images were drawn with seed {seed}.")
    return _believed(said, referee, drawn, predicted[index] == drawn.labels, found) if len(index) else said


def _full(check: _Check, device: torch.device, out: Path | None, report: ProgressCallback | None) -> Verdict:
    """Run all of AutoAttack, and the claim's suite, on all images, with the protocol's seeds."""
    claim, referee, test = check.claim, check.referee(device), check.test
    journal = Journal(None if out is None else out / "journal", facts_of(referee, check.net, test))
    predicted = referee.answers(as_float(test.images))
    clean = predicted == test.labels
    only = tuple(suite_of(referee.rules).ranked)
    progress = check.estimate(test, report, only)
    found = attack_all(referee, test, clean, journal, only=only, progress=progress)
    after = list(found.standing.values())
    if claim.by is not None:
        after += pursue_all(referee, test, found, journal, progress=progress).standing.values()
    measured = after[-1].numpy()
    if check.claimed is None:
        said = verdict.counted(claim.needed, int(measured.sum()), claim.n)
    else:
        said = verdict.whole(check.claimed, measured, check.labels(predicted))
    return _believed(said, referee, test, clean, found)


def _believed(said: Verdict, referee: Referee, test: Split, clean: Tensor, found: Found) -> Verdict:
    """Return `said`; raise PrunebenchError if no image counts against the claim and the attacks saw another net."""
    proposed = sum(int(bits.sum()) for bits in (clean, *list(found.standing.values())[:-1]))
    turned = probes.turned(referee, as_float(test.images), test.labels)
    flag = flags.kernel_disagrees(found.kernel_only, proposed, turned, len(test))
    if flag.up and not said.images:
        raise PrunebenchError(flag.sentence)
    return said
