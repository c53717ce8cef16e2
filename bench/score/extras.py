"""The measurements that a scoring makes on request, by the names that `--also` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from prunebench.bench.data import Split
from prunebench.bench.record import Record
from prunebench.bench.schema import Strict
from prunebench.bench.score.corruptions import known, measure_corruptions
from prunebench.bench.score.distances import measure_distances
from prunebench.bench.score.other_norm import measure_other_norm
from prunebench.bench.score.planted import measure_planted
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

Arrays = dict[str, np.ndarray]  # for the outcomes file
Extra = Callable[[Referee, Split, Tensor, Tensor, int], tuple[Strict, Arrays]]
# Each takes the images right when clean and the survivors of AutoAttack, bool (n,), and a seed.

EXTRAS: Mapping[str, Extra] = {
    "planted": measure_planted,
    "distances": measure_distances,
    "corruptions": measure_corruptions,
    "other-norm": measure_other_norm,
}


def require(names: Sequence[str]) -> None:
    """Raise PrunebenchError if a package that a measurement needs is missing, before any other work is done."""
    if "corruptions" in names:
        known()


def has(record: Record, also: Sequence[str]) -> bool:
    """Whether the record holds everything that `also` names."""
    extras = {name: getattr(record.beyond, name.replace("-", "_")) is not None for name in EXTRAS}
    return all(extras.get(name, name in record.score.weak) for name in also)


def measured(
    names: Sequence[str], referee: Referee, test: Split, clean: Tensor, robust: Tensor
) -> tuple[dict[str, Strict], Arrays]:
    """The facts for `beyond` in a record, by field, and the arrays for its outcomes file."""
    facts, arrays = dict[str, Strict](), Arrays()
    for name in names:
        seed = derive(referee.rules.attack_seed, name)
        facts[name.replace("-", "_")], more = EXTRAS[name](referee, test, clean, robust, seed)
        arrays |= more
    return facts, arrays
