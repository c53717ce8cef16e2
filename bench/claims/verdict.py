"""Verdicts of a new measurement on a claimed number: it holds, it is refuted, or there are too few images to tell.

A claim is about fixed images, so sampling error does not matter; only the attack's own noise does. Only an
overstatement counts against a claim; an understated claim holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunebench.bench.errors import some
from prunebench.bench.stats import noise, noise_gap, sampled_noise

REFUTED, DOUBTED = 1e-3, 1e-2  # a claim is refuted at p below REFUTED, undecided below DOUBTED
# The chance that an image robust in one run of AutoAttack is fooled in a run with other random numbers (another seed,
# batch shape or kind of device). From docs/claims/attack-noise.md: the noisiest net's rate, rounded up, which is above
# the upper 99 % bound of all nets together.
NOISE = 0.018
POINTS = 5  # per cent of images; a measurement that could not refute an overstatement this large decides nothing

_REPLAY = "A replay cannot show that more images can be fooled; levels quick and full search for them."

Word = Literal["reproduced", "not reproduced", "holds", "refuted", "undecided", "refused"]


@dataclass(frozen=True)
class Verdict:
    """A word, a sentence with the numbers behind it, the images that count against the claim, and the p-value."""

    word: Word
    sentence: str
    images: tuple[int, ...] = ()
    p: float | None = None

    @property
    def line(self) -> str:
        """Word and sentence."""
        return f"{self.word}: {self.sentence}"

    @property
    def good(self) -> bool:
        """Whether the claim holds or is reproduced."""
        return self.word in ("reproduced", "holds")


Labels = tuple[np.ndarray, np.ndarray]


def whole(claimed: np.ndarray, measured: np.ndarray, labels: Labels | None = None) -> Verdict:
    """The verdict when all images were measured again and the claim says which are robust: bool (n,) both.

    Three tests run at a third of the level each; the harshest counts. They compare the attack's noise with the images
    claimed robust and now fooled, with the count, and with the clean `labels`, int (n,), as claimed and as now.
    """
    n, fallen, risen = len(claimed), claimed & ~measured, measured & ~claimed
    b, c, robust, found = int(fallen.sum()), int(risen.sum()), int(claimed.sum()), int(measured.sum())
    told = (
        f"{found} of {n} are robust, {robust} were claimed: {b} claimed robust are now fooled, {c} the other way round"
    )
    return _harshest(
        told,
        [noise(b, robust, NOISE), noise_gap(robust - found, robust, NOISE)],
        fallen,
        labels,
        reach=noise_gap(min(robust, _points(n)), robust, NOISE),
        overstated=robust - found,
        exhaustive=True,
        foreign=noise(c, found, NOISE),
    )


def counted(claimed: int, measured: int, n: int) -> Verdict:
    """The verdict when all `n` images were measured again and the claim is only a count of robust images."""
    p = noise_gap(claimed - measured, claimed, NOISE)
    told = f"{measured} of {n} are robust, {claimed} were claimed"
    reach = noise_gap(min(claimed, _points(n)), claimed, NOISE)
    return _decide(told, p, reach, claimed - measured, exhaustive=True)


def sampled(claimed: np.ndarray, index: np.ndarray, standing: np.ndarray, labels: Labels | None = None) -> Verdict:
    """The verdict when a sample of the images claimed robust was measured with weaker attacks.

    `claimed`: bool (n,); `index`: int (k,), the sample; `standing`: bool (k,); `labels`: the clean labels of all
    images, int (n,), as claimed and as now. Survival of a weaker attack is no evidence, so only the newly fooled
    images and the labels are compared with the attack's noise, each at half the level; the harsher verdict counts.
    """
    fallen = np.zeros(len(claimed), bool)
    fallen[index] = claimed[index] & ~standing
    k, robust, count = len(index), int(claimed.sum()), int(fallen.sum())
    told = f"{count} of {k} images drawn from the {robust} claimed robust are now fooled"
    expected = min(robust, _points(len(claimed))) * k // max(robust, 1)
    return _harshest(
        told,
        [noise(count, k, NOISE)],
        fallen,
        labels,
        reach=noise(expected, k, NOISE) if robust else 0.0,
        overstated=count,
    )


def sampled_count(claimed: int, n: int, sample: int, standing: int) -> Verdict:
    """The verdict when `standing` images of a random `sample` survive, and the claim is only a count of all `n`."""

    def p(found: int) -> float:
        return sampled_noise(max(0, found), sample, claimed, n, NOISE)

    expected = sample * claimed / n
    told = f"{standing} of {sample} images survive, but about {expected:.0f} would if {claimed} of {n} were robust"
    return _decide(told, p(standing), p(int(expected) - _points(sample)), expected - standing)


def replayed(
    claimed: np.ndarray | int, index: np.ndarray, standing: np.ndarray, labels: Labels | None, *, at_least: bool = False
) -> Verdict:
    """The verdict when stored adversarials were measured again: does the net still behave as recorded?

    `claimed`: bool (n,), or a count, which `at_least` allows to be exceeded; `index`: int (k,), the images with a
    stored adversarial; `standing`: bool (n,), right when clean and not fooled by the adversarial; `labels`: the clean
    labels, int (n,), as claimed and as now. A replay cannot expose an inflated claim: its author would not store the
    image that disproves it.
    """
    n, found = len(standing), int(standing.sum())
    if isinstance(claimed, (int, np.integer)):
        odd = np.zeros(n, bool)
        odd[index] = standing[index]
        if (found == claimed or (at_least and found > claimed)) and not odd.any():
            return Verdict(
                "reproduced", f"{found} of {n} images survive the stored adversarial images, as claimed. {_REPLAY}"
            )
        return Verdict(
            "not reproduced",
            f"{found} of {n} images survive the stored adversarial images, {claimed} were "
            f"claimed{_which(odd, 'no longer fool the net')}.",
            _index(odd),
        )
    other = labels[0] != labels[1] if labels is not None else np.zeros(n, bool)
    kept, lost = standing & ~claimed, claimed & ~standing
    if not (other | kept | lost).any():
        return Verdict(
            "reproduced",
            f"{found} of {n} images survive the stored adversarial images, exactly those claimed. {_REPLAY}",
        )
    parts = [
        _which(kept, "were claimed to be fooled but are not"),
        _which(lost, "were claimed robust but are wrong here"),
        _which(other, "get another clean label"),
    ]
    said = "".join(parts).removeprefix("; ")
    return Verdict("not reproduced", f"Of {n} images {said}.", _index(other | kept | lost))


def _harshest(
    told: str,
    tests: list[float],
    fallen: np.ndarray,
    labels: Labels | None,
    *,
    reach: float,
    overstated: float,
    exhaustive: bool = False,
    foreign: float = 1.0,
) -> Verdict:
    """The verdict of several tests, each at its share of the level (Bonferroni); `tests`: their p-values.

    The clean `labels` add one more test. `fallen`: bool (n,), the images claimed robust and now fooled. `foreign`: the
    p-value of the images claimed fooled and now robust. They are no overstatement, but when both are beyond noise, the
    outcomes are another net's.
    """
    other = np.zeros(len(fallen), bool) if labels is None else labels[0] != labels[1]
    share = len(tests) + (labels is not None)
    found, strange = share * min(tests), share * noise(int(other.sum()), len(other), NOISE)
    if strange < DOUBTED:
        told = f"{told}; {int(other.sum())} images get another clean label"
    if strange < REFUTED or max(found, share * foreign) < REFUTED:
        told = f"{told}; too many to be chance: these outcomes are not this net's"
    against = _index(other | fallen if found < DOUBTED else other) if strange < DOUBTED else _index(fallen)
    return _decide(told, min(1.0, found, strange), share * reach, overstated, against, exhaustive=exhaustive)


def _decide(
    told: str, p: float, reach: float, overstated: float, images: tuple[int, ...] = (), *, exhaustive: bool = False
) -> Verdict:
    """The verdict of a test with p-value `p`, which would be `reach` if the claim overstated by POINTS.

    `overstated`: the apparent overstatement in images; `exhaustive`: all images were measured with all attacks.
    """
    which = f" Images {some(images)}." if images else ""
    if p < REFUTED:
        return Verdict("refuted", f"{told} (p = {p:.2g}).{which}", images, p)
    if p < DOUBTED:
        return Verdict("undecided", f"{told} (p = {p:.2g}, between {REFUTED:g} and {DOUBTED:g}).{which}", images, p)
    if exhaustive and overstated <= 0:
        return Verdict("holds", f"{told}.", (), p)
    if reach >= REFUTED:
        few = f"these images could not refute an overstatement of {POINTS} points"
        return Verdict("undecided", f"{told} (p = {p:.2g}); {few}.", images, p)
    return Verdict("holds", f"{told} (p = {p:.2g}).", (), p)


def _points(n: int) -> int:
    """The fewest images that are at least POINTS per cent of `n`."""
    return -(-POINTS * n // 100)


def _index(bits: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(bits).tolist())


def _which(bits: np.ndarray, what: str) -> str:
    return f"; {int(bits.sum())} {what}: {some(_index(bits))}" if bits.any() else ""
