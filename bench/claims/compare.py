"""Two scored nets on the same images: do they differ?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunebench.bench.errors import PrunebenchError, cut
from prunebench.bench.outcomes import recount, standing_of
from prunebench.bench.record import Record, load_record
from prunebench.bench.stats import mcnemar

ALPHA = 0.05  # two nets differ when McNemar's p is below this


@dataclass(frozen=True)
class Difference:
    """The difference of nets A and B in one outcome: `a` and `b` of `n` images are right, `only_a` only under A."""

    what: str
    n: int
    a: int
    b: int
    only_a: int
    only_b: int
    p: float

    @property
    def significant(self) -> bool:
        """Whether the difference is unlikely to be chance."""
        return self.p < ALPHA

    @property
    def sentence(self) -> str:
        """The conclusion about the two nets."""
        counts = (
            f"{self.a} against {self.b} of {self.n} images, {self.only_a} correct only for A, {self.only_b} only "
            f"for B, exact McNemar p = {self.p:.2g}"
        )
        if not self.significant:
            return f"{self.what} accuracy of A and B cannot be told apart: {counts}."
        return f"{self.what} accuracy of {'A' if self.a > self.b else 'B'} is higher: {counts}."


def compare(first: str | Path, second: str | Path) -> tuple[Difference, Difference]:
    """The differences in robust and clean accuracy between the nets of two records with outcomes beside them.

    The result concerns only these two nets: two seeds of one method may differ as well. Raises PrunebenchError for
    files that are not records, and for records that differ in rules, images or attacks.
    """
    paths = [Path(first), Path(second)]
    records = [_scored(path) for path in paths]
    for what, one, other in (
        ("rules (the protocol's sha256)", *(record.protocol.sha256 for record in records)),
        ("numbers of images", *(record.score.n for record in records)),
        ("test images (the data's sha256)", *(record.data.sha256 for record in records)),
        ("attacks", *(", ".join(record.score.survived) for record in records)),
    ):
        if one != other:
            raise PrunebenchError(
                f"{first} and {second} have different {what}, {cut(str(one), 40)} and {cut(str(other), 40)}, so their "
                "images cannot be paired; score both nets under the same rules."
            )
    outcomes = [recount(path, record) for path, record in zip(paths, records, strict=True)]
    if not np.array_equal(outcomes[0]["labels"], outcomes[1]["labels"]):
        raise PrunebenchError(f"{first} and {second} have different labels for the same images; score both nets again.")
    return (
        _difference("Robust", *(standing_of(arrays) for arrays in outcomes)),
        _difference("Clean", *(arrays["clean"] for arrays in outcomes)),
    )


def _scored(path: Path) -> Record:
    record = load_record(path)
    if not isinstance(record, Record):
        raise PrunebenchError(f"{path} is a refusal, which has no outcomes; name the record of a net with a score.")
    return record


def _difference(what: str, a: np.ndarray, b: np.ndarray) -> Difference:
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return Difference(what, len(a), int(a.sum()), int(b.sum()), only_a, only_b, mcnemar(only_a, only_b))
