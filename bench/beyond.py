"""What a record may say beyond AutoAttack: best-known number, proof that attacks work, distances, other threats.

Each part is measured on demand and is None otherwise. None of them is ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from prunebench.bench.facts import Score
from prunebench.bench.protocol import Threat
from prunebench.bench.schema import Natural, Strict

Kinds = dict[str, tuple[np.dtype, tuple[int, ...]]]  # of arrays in an outcomes file, by name
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,39}$")]  # of a suite, an attack, a corruption
_BIT, _FLOAT = np.dtype(bool), np.dtype("<f4")


class Best(Strict):
    """The images that survive AutoAttack and then every attack of the suite `suite`, each on the survivors so far.

    `by`: how many images each attack was the first to fool, in the order that the attacks ran. `long`: how many images
    were in shards where the suite's long attacks ran too. `passes`: the sample passes of all these attacks.
    """

    suite: Name
    robust: Natural
    by: Annotated[dict[Name, Natural], Field(max_length=100)]
    long: Natural
    passes: Natural

    def kinds(self, n: int) -> Kinds:
        """The arrays of `n` images that hold the raw outcomes: the survivors after each attack."""
        return {f"best/{attack}": (_BIT, (n,)) for attack in self.by}

    def recounted(self, arrays: Mapping[str, np.ndarray], standing: np.ndarray) -> dict[str, tuple[int, int]]:
        """Counts from `arrays` beside those stated; `standing`: bool (n,), the survivors of AutoAttack."""
        found = {}
        for attack, stated in self.by.items():
            after = standing & arrays[f"best/{attack}"]
            found[f"best.by.{attack}"] = int((standing & ~after).sum()), stated
            standing = after
        return found | {"best.robust": (int(standing.sum()), self.robust)}


class Planted(Strict):
    """How often attacks find an adversarial image that is known to exist (Zimmermann et al. 2022, arXiv 2206.13991).

    `images`: how many have a plant; `passed_over`: how many others were tried before, but had no plant that could be
    separated. `found`: by attack, on how many images it succeeds; `together`: on how many any of them does; `control`:
    on how many random search does.
    """

    images: Natural
    passed_over: Natural
    found: Annotated[dict[Name, Natural], Field(max_length=100)]
    together: Natural
    control: Natural

    @model_validator(mode="after")
    def _at_most_all(self) -> Planted:
        if max(self.control, self.together, *self.found.values()) > self.images:
            raise ValueError(f"more plants were found than the {self.images} that there are")
        return self


class Distances(Strict):
    """The smallest perturbation found for each image by `attack`, in the threat's norm and pixels of [0, 1].

    `median`: over all images, 0 for those wrong when clean; None if no perturbation was found for half of them.
    """

    attack: Name
    median: Annotated[float, Field(ge=0)] | None

    def kinds(self, n: int) -> Kinds:
        """The array of `n` distances: float32, 0 for an image wrong when clean, infinite where none was found."""
        return {"distance": (_FLOAT, (n,))}

    def recounted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float | None, float | None]]:
        """The median from `arrays` beside the stated one, and how many entries are no distances: none may be."""
        odd = int((~(arrays["distance"] >= 0)).sum())
        return {"distances.median": (median(arrays["distance"]), self.median), "impossible distances": (odd, 0)}


def median(distances: np.ndarray) -> float | None:
    """The lower median of `distances`, float32 (n,); None if it is infinite."""
    middle = float(np.sort(distances)[(len(distances) - 1) // 2])
    return middle if np.isfinite(middle) else None


class OtherNorm(Strict):
    """The images that survive AutoAttack *standard* under a threat that the net was not trained for."""

    threat: Threat
    robust: Natural

    def kinds(self, n: int) -> Kinds:
        """The array of `n` survivors."""
        return {"other-norm": (_BIT, (n,))}

    def recounted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
        """The count from `arrays` beside the stated one."""
        return {"other_norm.robust": (int((arrays["clean"] & arrays["other-norm"]).sum()), self.robust)}


class Corruptions(Strict):
    """By corruption (Hendrycks & Dietterich 2019, arXiv 1903.12261) at `severity`, the images classified correctly.

    `left_out`: the corruptions that change no image of this kind, such as one of colours on grey images.
    """

    severity: Annotated[int, Field(ge=1, le=5)]
    right: Annotated[dict[Name, Natural], Field(max_length=100)]
    left_out: Annotated[tuple[Name, ...], Field(strict=False, max_length=100)] = ()

    def kinds(self, n: int) -> Kinds:
        """The arrays of `n` images: those right under each corruption."""
        return {f"corruption/{name}": (_BIT, (n,)) for name in self.right}

    def recounted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
        """Counts from `arrays` beside those stated."""
        return {
            f"corruptions.right.{name}": (int(arrays[f"corruption/{name}"].sum()), stated)
            for name, stated in self.right.items()
        }


class Beyond(Strict):
    """All that was measured beyond AutoAttack; a part that was not asked for is None."""

    best: Best | None = None
    planted: Planted | None = None
    distances: Distances | None = None
    other_norm: OtherNorm | None = None
    corruptions: Corruptions | None = None

    def kinds(self, n: int) -> Kinds:
        """The arrays of `n` images that belong to the measured parts."""
        parts = (self.best, self.distances, self.other_norm, self.corruptions)
        return {name: kind for part in parts if part is not None for name, kind in part.kinds(n).items()}

    def refuse_excess(self, score: Score) -> None:
        """Raise ValueError for counts that `score` rules out."""
        if (best := self.best) is not None and best.robust + sum(best.by.values()) != score.robust:
            raise ValueError(
                f"best.robust = {best.robust} and the images in best.by do not add up to robust = {score.robust}"
            )
        right = {} if self.corruptions is None else self.corruptions.right
        for what, count, most in (
            ("best.long", 0 if self.best is None else self.best.long, score.n),
            ("planted.images", 0 if self.planted is None else self.planted.images, score.clean),
            ("other_norm.robust", 0 if self.other_norm is None else self.other_norm.robust, score.clean),
            *((f"corruptions.right.{name}", count, score.n) for name, count in right.items()),
        ):
            if count > most:
                raise ValueError(f"{what} = {count} is more than the {most} images that there are")

    def recounted(
        self, arrays: Mapping[str, np.ndarray], standing: np.ndarray
    ) -> dict[str, tuple[float | None, float | None]]:
        """Every count from `arrays` beside the stated one; `standing`: bool (n,), the survivors of AutoAttack."""
        found: dict[str, tuple[float | None, float | None]] = {}
        if self.best is not None:
            found |= self.best.recounted(arrays, standing)
        for part in (self.distances, self.other_norm, self.corruptions):
            if part is not None:
                found |= part.recounted(arrays)
        return found
