"""AutoAttack *standard* under the norm that the protocol's threat does not use, at its customary eps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from torch import Tensor

from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beyond import OtherNorm
from prunebench.bench.data import Split
from prunebench.bench.protocol import SMALLEST, Threat
from prunebench.bench.schema import exact
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.line import Line
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

LONGEST = 24  # characters of an eps in a threat

# By data set, the L2 eps that is customary for each unit of the customary Linf eps. MNIST: 2 for 0.3 (Tramer & Boneh
# 2019, arXiv 1904.13000; Maini et al. 2020, arXiv 1909.04068). CIFAR-10: 1/2 for 8/255 (RobustBench, Croce et al. 2021,
# arXiv 2010.09670); the other two have images of the same size.
_RATIOS = {
    "mnist": Fraction(2) / Fraction("0.3"),
    "cifar10": Fraction(1, 2) / Fraction(8, 255),
    "cifar100": Fraction(1, 2) / Fraction(8, 255),
    "svhn": Fraction(1, 2) / Fraction(8, 255),
}


def other_threat(threat: Threat, data: str, shape: tuple[int, ...]) -> Threat:
    """The threat in the other norm that is customary where `threat` is; `shape`: (c, h, w) of the images of `data`.

    A quarter of the L2 length of a ball's corner, eps * sqrt(c * h * w), stands in where no custom is known: customs
    are 0.24 of it (MNIST) and 0.29 of it (CIFAR-10). That gives the digits 2/5 for 1/5. It is rounded to two
    significant digits, and a table's ratio is exact. An Linf eps is at most 1.
    """
    ratio = _RATIOS.get(data, Fraction(math.sqrt(math.prod(shape)) / 4))
    eps = exact(threat.eps) * ratio if threat.norm == "Linf" else exact(threat.eps) / ratio
    if data not in _RATIOS or len(str(eps)) > LONGEST:
        eps = Fraction(f"{float(eps):.2g}")
    norm, largest = ("L2", 1000) if threat.norm == "Linf" else ("Linf", 1)
    return Threat.model_validate({"norm": norm, "eps": str(min(max(eps, SMALLEST), Fraction(largest)))})


def measure_other_norm(
    referee: Referee, test: Split, clean: Tensor, robust: Tensor, seed: int
) -> tuple[OtherNorm, dict[str, np.ndarray]]:
    """The images of `clean`, bool (n,), that survive the protocol's ranked attacks under `other_threat`.

    `robust`, the survivors under the protocol's own threat, has no part in it: either ball may hold what the other
    does not. Raises Refused as `Referee.fooled` does.
    """
    rules = referee.rules
    threat = other_threat(rules.threat, rules.data, tuple(test.images.shape[1:]))
    standing = clean.clone()
    for number, shard in enumerate(referee.shards(len(test))):
        line = Line(referee, test.take(shard), shard, Journal(None, []), None)
        stream = derive(seed, f"shard-{number}")
        for name, listed in suite_of(rules).ranked.items():
            standing[shard] = line.run(name, listed, stream, standing[shard], threat=threat)
        referee.passes += sum(entry.passes for entry in line.entries)
    return OtherNorm(threat=threat, robust=int(standing.sum())), {"other-norm": standing.numpy()}
