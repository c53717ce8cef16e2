"""Which nets stronger attacks take survivors from: slack, gradients and first-layer weights, and orders under both.

The slack of a net is the number of images that survive AutoAttack but not the stronger suite of the best-known number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from scipy import stats as ranks
from torch import Tensor, nn

from prunebench.bench import stats
from prunebench.bench.beside import net_path
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import as_sparsity
from prunebench.bench.record import Record
from prunebench.leaderboard.contrasts import Contrast, contrasts, places
from prunebench.leaderboard.roles import PRIMARY, role_of
from prunebench.leaderboard.table import read

BATCH = 256
Boards = Mapping[Decimal, Mapping[str, list[tuple[Path, Record]]]]  # by sparsity and label


@dataclass(frozen=True)
class Scored:
    """One net: the images of `n` that survive AutoAttack (`robust`) and the stronger suite too (`best`).

    `first`: the kept weights of the first layer, of `first_of`. `dark`: the share of pixels without gradient, in
    [0, 1], as `without_gradient` has it.
    """

    pruner: str
    sparsity: Decimal
    seed: int
    n: int
    robust: int
    best: int
    first: int
    first_of: int
    dark: float

    @property
    def slack(self) -> int:
        """The images that survive AutoAttack only."""
        return self.robust - self.best


@dataclass(frozen=True)
class Line:
    """A pruner at a sparsity, mean over its seeds: rates in [0, 1], with the t-test of its slack over the seeds."""

    pruner: str
    sparsity: Decimal
    robust: float
    best: float
    slack: stats.SeedTest
    first: float
    first_of: int
    dark: float


@dataclass(frozen=True)
class Standing:
    """A method among the methods of its sparsity, under AutoAttack and under the best-known number.

    `order`: one plus the number of methods with a higher mean. `place`: one plus the number of methods that are better
    by the board's tests. `verdict`: its test against magnitude pruning, "+", "-" or "=", None for magnitude itself.
    """

    pruner: str
    sparsity: Decimal
    order: tuple[int, int]
    place: tuple[int, int]
    verdict: tuple[str | None, str | None]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlations over `nets` of slack with pixels without gradient, and with first-layer weights.

    None where one of the two is the same for all nets.
    """

    sparsity: Decimal | None
    nets: int
    dark: float | None
    first: float | None


def without_gradient(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean over `images` (n, c, h, w) of the share of pixels at which the margin's gradient is exactly zero.

    The margin is the label's logit minus the largest other logit. Returns a share in [0, 1].
    """
    zeros = 0
    for part, names in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        pixels = part.clone().requires_grad_()
        logits, column = net(pixels), names[:, None]
        others = logits.scatter(1, column, -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((logits.gather(1, column).squeeze(1) - others).sum(), pixels)
        zeros += int((gradient == 0).sum())
    return zeros / images.numel()


def known(folder: Path) -> dict[Path, Record]:
    """The records below `folder` that hold the best-known number, by relative path.

    Raises PrunebenchError if there are none, or if they differ in protocol, test images or suite.
    """
    records = {path: record for path, record in read(folder).items() if isinstance(record, Record)}
    found = {path: record for path, record in records.items() if record.beyond.best is not None}
    if not found:
        raise PrunebenchError(f"No record below {folder} holds the best-known number; run tools.extend first.")
    kinds = {(record.protocol.sha256, record.data.sha256, record.score.n, suite(record)) for record in found.values()}
    if len(kinds) > 1:
        raise PrunebenchError(
            f"The records below {folder} differ in protocol, images or suite; name a folder with one."
        )
    return found


def suite(record: Record) -> str:
    """The suite of the best-known number of a record that has one."""
    assert record.beyond.best is not None
    return record.beyond.best.suite


def survivors(record: Record) -> int:
    """The images that survive AutoAttack and the stronger suite, in a record that has that number."""
    assert record.beyond.best is not None
    return record.beyond.best.robust


def measured(folder: Path, records: Mapping[Path, Record], data: Path) -> list[Scored]:
    """The `records` with what their nets say, read from files beside the records below `folder`.

    Raises PrunebenchError for a net that is missing or is not the one of its record.
    """
    first = next(iter(records.values()))
    test = Store(data).testing(first.data.name, first.score.n)
    images, found = as_float(test.images), []
    for path, record in sorted(records.items()):
        net = open_net(net_path(folder / path))
        if net.id.sha256 != record.net.sha256:
            raise PrunebenchError(f"{net_path(folder / path)} is not the net that {path} scores; restore it.")
        layer, score = record.net.layers[0], record.score
        found.append(
            Scored(
                record.job.label,
                as_sparsity(record.job.sparsity),
                record.job.seed,
                score.n,
                score.robust,
                survivors(record),
                layer.nonzero,
                int(np.prod(layer.shape)),
                without_gradient(net.module, images, test.labels),
            )
        )
    return found


def lines(nets: Iterable[Scored]) -> list[Line]:
    """The rows of a table, by sparsity and within it by slack, the largest first."""
    groups: defaultdict[tuple[Decimal, str], list[Scored]] = defaultdict(list)
    for net in nets:
        groups[net.sparsity, net.pruner].append(net)
    found = [
        Line(
            pruner,
            sparsity,
            fmean(net.robust / net.n for net in of),
            fmean(net.best / net.n for net in of),
            stats.by_seed([net.slack for net in of], of[0].n),
            fmean(net.first for net in of),
            of[0].first_of,
            fmean(net.dark for net in of),
        )
        for (sparsity, pruner), of in groups.items()
    ]
    return sorted(found, key=lambda line: (line.sparsity, -(line.slack.gap or 0.0), line.pruner))


def correlations(nets: Sequence[Scored]) -> list[Correlation]:
    """Spearman's correlations over all nets, then over those of each sparsity."""
    parts: list[tuple[Decimal | None, list[Scored]]] = [(None, list(nets))]
    parts += [(at, [net for net in nets if net.sparsity == at]) for at in sorted({net.sparsity for net in nets})]
    found = []
    for sparsity, of in parts:
        slack = [net.slack for net in of]
        dark, first = spearman(slack, [net.dark for net in of]), spearman(slack, [net.first for net in of])
        found.append(Correlation(sparsity, len(of), dark, first))
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation in [-1, 1] (1904, Am. J. Psychol. 15, p. 72), None if either is constant."""
    return float(ranks.spearmanr(a, b).statistic) if min(len(set(a)), len(set(b))) > 1 else None


def standings(records: Mapping[Path, Record]) -> list[Standing]:
    """The methods of each sparsity under both numbers, by sparsity and by AutoAttack's order."""
    beaten = {
        path: record.model_copy(update={"score": record.score.model_copy(update={"robust": survivors(record)})})
        for path, record in records.items()
    }
    both = boards(records), boards(beaten)
    found = []
    for sparsity, rivals in both[0].items():
        here = [side[sparsity] for side in both]
        methods = [label for label, group in rivals.items() if role_of(group[0][1].job) == "method"]
        tests = [contrasts(sparsity, side, {}, {}, np.empty(0)) for side in here]
        taken = [places(of, methods) for of in tests]
        means = [{m: fmean(record.score.robust for _, record in side[m]) for m in methods} for side in here]
        order = [{m: 1 + sum(other > of[m] for other in of.values()) for m in methods} for of in means]
        for m in sorted(methods, key=lambda m: (order[0][m], m)):
            verdicts = verdict(tests[0], m), verdict(tests[1], m)
            found.append(Standing(m, sparsity, (order[0][m], order[1][m]), (taken[0][m], taken[1][m]), verdicts))
    return found


def boards(records: Mapping[Path, Record]) -> Boards:
    """The records by sparsity and label."""
    found: defaultdict[Decimal, defaultdict[str, list[tuple[Path, Record]]]] = defaultdict(lambda: defaultdict(list))
    for path, record in records.items():
        found[as_sparsity(record.job.sparsity)][record.job.label].append((path, record))
    return {sparsity: dict(sorted(found[sparsity].items())) for sparsity in sorted(found)}


def verdict(tests: Iterable[Contrast], method: str) -> str | None:
    """The verdict on `method` against magnitude pruning, None if the two were not compared."""
    asked = [test for test in tests if (test.family, test.pruner, test.control) == ("primary", method, PRIMARY)]
    return asked[0].verdict if asked else None
