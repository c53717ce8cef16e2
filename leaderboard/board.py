"""What is shown: boards, their rows, and the nets that were not scored."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from prunebench.bench import stats
from prunebench.bench.protocol import Protocol
from prunebench.leaderboard.contrasts import Contrast, Power
from prunebench.leaderboard.roles import Role

AS_HANDED_IN = "as handed in"  # the origin of a record of which nothing else is known


@dataclass(frozen=True)
class Rate:
    """A rate over seeds: `counts` of `n` images, one per seed, with their mean rate and its 95 % interval, in [0, 1].

    `interval`: "logit-t", from the spread between the row's seeds, or "wilson" with one seed, for the images alone;
    "paired t" for the difference of two counts of the same nets.
    """

    counts: tuple[int, ...]
    mean: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True)
class Doubt:
    """A raised flag: the seeds that raised it, and its message for the seed with the largest value."""

    name: str
    sentence: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One pruner at one sparsity, over all its seeds; costs are means over the seeds.

    `sparsity` is the requested sparsity, `true_sparsity` was counted in the net. Methods have a `place` among the
    methods of the same requested sparsity, `tied` if another method shares it; controls and references have none.
    `survived` holds mean counts in the order of the attacks. So do `weak`, by attack, and `curve`, by eps, for the keys
    that every seed has. `best` is the rate under the suite for the best-known number, None unless the nets of all seeds
    were attacked by the same one. `distance`: the median over images of the smallest perturbation found, mean over
    seeds; None unless every seed has one. `train_seconds` is None when it is unknown for a seed. `origin`: where its
    records came from, in the words of `leaderboard.provenance`. `patterns`: those that the referee found in the zeros
    of all seeds' nets; none for records older than schema 7, which do not say. `inexact`: other arithmetics than
    exact float32 in which nets of the row were attacked.
    """

    pruner: str
    sparsity: Decimal
    true_sparsity: float
    role: Role
    place: int | None
    tied: bool
    robust: Rate
    clean: Rate
    survived: dict[str, float]
    best: Rate | None
    weak: dict[str, float]
    curve: dict[str, float]
    distance: float | None
    flags: tuple[Doubt, ...]
    rejected: int
    seeds: tuple[int, ...]
    train_passes: float
    train_seconds: float | None
    score_seconds: float
    devices: tuple[str, ...]
    official: bool
    records: tuple[str, ...]
    origin: str = AS_HANDED_IN
    patterns: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()

    @property
    def scored_on(self) -> tuple[str, ...]:
        """The devices, and the arithmetic of attacks that was not exact."""
        return (*self.devices, *(f"attacks in {name}" for name in self.inexact))

    @property
    def place_shown(self) -> str:
        """The displayed place: "2", "1=" in a tie, "ref" for a reference, "control" for a control."""
        if self.place is None:
            return "ref" if self.role == "reference" else self.role
        return f"{self.place}{'=' if self.tied else ''}"


@dataclass(frozen=True)
class Board:
    """Comparable rows: one version of one protocol, on the same test images.

    `official`: the built-in protocol of that name has exactly these rules, and every record says that it followed
    them. `powers`: one per sparsity at which methods are compared with magnitude pruning. `seconds`: of the
    training and scoring of the `timed` nets, those whose times are known; a stage that several nets share counts once.
    `processors`: what scored the nets.
    """

    protocol: str
    version: int
    sha256: str
    rules: Protocol | None
    data: str
    data_sha256: str
    n: int
    official: bool
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    powers: tuple[Power, ...]
    seconds: float
    timed: int
    processors: tuple[str, ...]

    @property
    def records(self) -> int:
        """The number of records behind the rows."""
        return sum(len(row.records) for row in self.rows)

    @property
    def seeds_shown(self) -> str:
        """How many seeds the rows have: "15 seeds", "4 to 15 seeds"."""
        counts = sorted({len(row.seeds) for row in self.rows})
        many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        return f"{many} seed{'s' * (many != '1')}"

    @property
    def asked(self) -> str:
        """What was required of the nets, in one line; empty for records older than schema 5, which do not say."""
        if (rules := self.rules) is None:
            return ""
        budget = f"{rules.units:g} {'unit' if rules.units == 1 else 'units'} of {rules.training.epochs} epochs"
        threat = f"{rules.threat.norm} {rules.threat.eps}"
        return f"{threat}, {rules.model}, AutoAttack {rules.attacks}, {budget}, {self.n} test images"

    @property
    def note(self) -> str:
        """How intervals, verdicts and places were computed, in sentences for a student."""
        fewest, most = (end(len(row.seeds) for row in self.rows) for end in (min, max))
        if most == 1:
            return (
                "Every row has one seed, so a difference between methods may be only a difference between seeds: all "
                "methods share a place. Intervals are Wilson's 95 %, for the images alone."
            )
        return (
            "Nets of one seed start from the same weights and see the same batches, so two rows are compared seed by "
            "seed. A method is called better or worse if a t-test of these differences is significant at 5 %, "
            "corrected for the number of comparisons (Holm). A row's 95 % interval comes from the spread between its "
            "own seeds. A method's place is one plus the number of methods that are better in this sense; a method "
            "whose seeds differ much may share a better place than another with a higher mean."
        ) + (
            f" Methods that share fewer than {stats.FEWEST} seeds are not tested and count as tied."
            * (fewest < stats.FEWEST)
            + " A row with one seed has Wilson's interval, for the images alone." * (fewest == 1)
        )


@dataclass(frozen=True)
class Refused:
    """A net that the referee did not score, and why."""

    record: str
    protocol: str | None
    pruner: str | None
    check: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """Everything to show: one board per protocol, the leading one first, and the nets that were not scored."""

    boards: tuple[Board, ...]
    refused: tuple[Refused, ...]
