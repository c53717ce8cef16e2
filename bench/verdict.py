"""What a new measurement says of a claimed number: it holds, it is refuted, or the images are too few to tell.

A claim speaks of fixed images, so how they were sampled does not enter; what does is the attack's own noise. Only an
overstatement counts against a claim: one that states too little holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.stats import noise, paired, sampled_noise

REFUTED, DOUBTED = 1e-3, 1e-2  # a claim is refuted at p below the one, undecided below the other
NOISE = 1 / 256  # of the images differ between seeds, orders and batch shapes: 0 to 2 in 256 were measured on six nets
POINTS = 5  # per cent of the images; a measurement that could not refute an overstatement of so much decides nothing

Word = Literal["reproduced", "not reproduced", "holds", "refuted", "undecided", "refused"]


@dataclass(frozen=True)
class Verdict:
    """A word, the sentence that gives the numbers behind it, the images that speak against the claim, the p-value."""

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
        """Whether the claim stands."""
        return self.word in ("reproduced", "holds")


def whole(claimed: np.ndarray, measured: np.ndarray) -> Verdict:
    """The verdict when all images were measured again and the claim says which of them stand: bool (n,) both.

    The paired one-sided exact test: images claimed robust and now fooled against those the other way round.
    """
    n, fallen, risen = len(claimed), claimed & ~measured, measured & ~claimed
    b, c = int(fallen.sum()), int(risen.sum())
    told = (
        f"{int(measured.sum())} of {n} are robust, {int(claimed.sum())} are claimed: {b} claimed robust are now fooled"
    )
    return _decide(
        f"{told}, {c} the other way round", paired(b, c), paired(_points(n), 0), b - c, _index(fallen), exhaustive=True
    )


def counted(claimed: int, measured: int, n: int) -> Verdict:
    """The verdict when all `n` images were measured again and the claim is a mere count of those that stand."""
    p = noise(claimed - measured, n, NOISE)
    told = f"{measured} of {n} are robust, {claimed} are claimed"
    return _decide(told, p, noise(_points(n), n, NOISE), claimed - measured, exhaustive=True)


def sampled(claimed: np.ndarray, index: np.ndarray, stands: np.ndarray) -> Verdict:
    """The verdict when a sample was measured with weaker attacks and the claim says which images stand.

    `claimed`: bool (n,); `index`: int (k,), the sample; `stands`: bool (k,). What a weaker attack does not fool is no
    evidence, so the number of newly fooled images is held against the attack's noise.
    """
    fallen = claimed[index] & ~stands
    k, count = len(index), int(fallen.sum())
    told = f"of {k} images drawn {int(claimed[index].sum())} are claimed robust, {count} of these are now fooled"
    return _decide(
        told, noise(count, k, NOISE), noise(_points(k), k, NOISE), count, tuple(sorted(index[fallen].tolist()))
    )


def sampled_count(claimed: int, n: int, sample: int, standing: int) -> Verdict:
    """The verdict when of a random `sample` `standing` images stand, and the claim is a mere count of all `n`."""

    def p(found: int) -> float:
        return sampled_noise(max(0, found), sample, claimed, n, NOISE)

    expected = sample * claimed / n
    told = f"{standing} of {sample} images stand, about {expected:.0f} do if {claimed} of {n} are robust"
    return _decide(told, p(standing), p(int(expected) - _points(sample)), expected - standing)


def replayed(
    claimed: np.ndarray | int, index: np.ndarray, stands: np.ndarray, predicted: tuple[np.ndarray, np.ndarray] | None
) -> Verdict:
    """The verdict when stored adversarial images were measured again: does the net still do what was recorded?

    `claimed`: bool (n,), or a count; `index`: int (k,), the images that have a stored one; `stands`: bool (n,), right
    when clean and not fooled by the stored image; `predicted`: the clean labels int (n,), as claimed and as now. It
    never refutes an overstatement: who claims it stores no image that shows it.
    """
    n, found = len(stands), int(stands.sum())
    if isinstance(claimed, (int, np.integer)):
        odd = np.zeros(n, bool)
        odd[index] = stands[index]
        if found == claimed and not odd.any():
            return Verdict("reproduced", f"The stored images leave {found} of {n} standing, as claimed.")
        return Verdict(
            "not reproduced",
            f"The stored images leave {found} of {n} standing, {claimed} are claimed{_which(odd, 'no longer fool')}.",
            _index(odd),
        )
    other = predicted[0] != predicted[1] if predicted is not None else np.zeros(n, bool)
    kept, lost = stands & ~claimed, claimed & ~stands
    if not (other | kept | lost).any():
        return Verdict(
            "reproduced", f"The stored images leave {found} of {n} standing, the very ones that are claimed."
        )
    parts = [
        _which(kept, "are claimed to be fooled and are not"),
        _which(lost, "are claimed robust and are wrong here"),
        _which(other, "get another label when clean"),
    ]
    said = "".join(parts).removeprefix("; ")
    return Verdict("not reproduced", f"Of {n} images {said}.", _index(other | kept | lost))


def _decide(
    told: str, p: float, reach: float, overstated: float, images: tuple[int, ...] = (), *, exhaustive: bool = False
) -> Verdict:
    """The verdict of a test with value `p`, which would give `reach` if the claim overstated by POINTS.

    `overstated`: by how many images the claim seems to; `exhaustive`: all were measured, and in full.
    """
    which = f" Images {some(images)}." if images else ""
    if p < REFUTED:
        return Verdict("refuted", f"{told} (p = {p:.2g}).{which}", images, p)
    if exhaustive and overstated <= 0:
        return Verdict("holds", f"{told}.", (), p)
    if p < DOUBTED:
        return Verdict("undecided", f"{told} (p = {p:.2g}, between {REFUTED:g} and {DOUBTED:g}).{which}", images, p)
    if reach >= REFUTED:
        few = f"these images could not refute an overstatement of {POINTS} points"
        return Verdict("undecided", f"{told} (p = {p:.2g}); {few}.", images, p)
    return Verdict("holds", f"{told} (p = {p:.2g}).", (), p)


def _points(n: int) -> int:
    """The fewest images of `n` that are POINTS per cent of them."""
    return -(-POINTS * n // 100)


def _index(bits: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(bits).tolist())


def _which(bits: np.ndarray, what: str) -> str:
    return f"; {int(bits.sum())} {what}: {some(_index(bits))}" if bits.any() else ""


def some(images: Sequence[int], most: int = 10) -> str:
    """The first few of `images`, and how many more there are."""
    shown = ", ".join(map(str, images[:most]))
    return f"{shown} and {len(images) - most} more" if len(images) > most else shown
