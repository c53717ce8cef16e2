"""The parts of a record: ids of protocol, net and data; counts, flags, costs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prunebench.bench.protocol import Protocol
from prunebench.bench.schema import Count, Exact, Natural, Strict, exact

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Rate = Annotated[float, Field(ge=0, le=1)]
ArithmeticName = Literal["float32", "tf32"]


class ProtocolId(Strict):
    """Which rules: a name for people, the sha256 for certainty."""

    name: str
    version: int
    sha256: Sha256

    @classmethod
    def of(cls, rules: Protocol) -> ProtocolId:
        """The name, version and hash of `rules`."""
        return cls(name=rules.name, version=rules.version, sha256=rules.sha256)


class Layer(Strict):
    """One prunable tensor, as counted in the file."""

    name: str
    shape: tuple[Count, ...] = Field(strict=False)
    nonzero: Natural

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


class NetId(Strict):
    """Which weights: the sha256 of the file, and the counts taken from it."""

    sha256: Sha256
    arch: str
    prunable: Count
    nonzero: Natural
    layers: tuple[Layer, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _adds_up(self) -> NetId:
        for what, total in (("prunable", self.prunable), ("nonzero", self.nonzero)):
            found = sum(layer.size if what == "prunable" else layer.nonzero for layer in self.layers)
            if found != total:
                raise ValueError(f"the layers add up to {what} = {found}, not {total}")
        if any(layer.nonzero > layer.size for layer in self.layers):
            raise ValueError("a layer has more nonzero weights than weights")
        return self

    @property
    def sparsity(self) -> float:
        """Zeros / prunable weights, in [0, 1]."""
        return (self.prunable - self.nonzero) / self.prunable


class Point(Strict):
    """A point of a security curve: how many images survive perturbations of `eps` in the threat's norm."""

    eps: Exact
    robust: Natural


class Flag(Strict):
    """A sign that a robustness number cannot be trusted; it is shown beside the number and never changes it.

    `value` is the measurement, None if not measured; the flag is up when it exceeds `threshold`. `sentence` explains
    the two.
    """

    name: str
    value: float | None
    threshold: float
    sentence: str

    @property
    def up(self) -> bool:
        """Whether the number deserves doubt."""
        return self.value is not None and self.value > self.threshold


class Score(Strict):
    """Counts out of `n` images: `clean`, correct before any attack; `survived[attack]`, still correct after it.

    Each attack runs on the survivors of the previous ones, so `robust` is the last count. `ran` names what ran where
    an attack had to be adapted to the number of classes. `rejected` counts proposals that an attack returned as
    adversarial but the plain net, measured again inside the ball, still classified correctly. `kernel_only` counts
    those that only the net as attacks see it, on sparse kernels or folded, misclassifies; the plain net does not.

    Beside AutoAttack, and never part of it: `weak[attack]` counts images still correct after one weak attack on all
    of them, as papers usually report. `curve` is the security curve, by growing eps; `flags` are doubts.
    """

    n: Count
    clean: Natural
    robust: Natural
    survived: dict[str, Natural]
    ran: tuple[str, ...] = Field(strict=False)
    rejected: Natural
    batch: Natural
    shard: Natural
    weak: dict[str, Natural]
    curve: tuple[Point, ...] = Field(strict=False)
    flags: tuple[Flag, ...] = Field(strict=False)
    kernel_only: Natural

    @property
    def proposed(self) -> int:
        """How many proposals the attacks made: one per image they were given, that is, per survivor so far."""
        return self.clean + sum([*self.survived.values()][:-1])

    @model_validator(mode="after")
    def _within_clean(self) -> Score:
        beside = [*self.weak.values(), *(point.robust for point in self.curve)]
        if max(beside, default=0) > self.clean:
            raise ValueError(f"after a weak attack {max(beside)} images are correct, more than clean = {self.clean}")
        sizes = [exact(point.eps) for point in self.curve]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"the eps values of the curve do not increase: {[point.eps for point in self.curve]}")
        names = [flag.name for flag in self.flags]
        if len(set(names)) != len(names):
            raise ValueError(f"a flag appears twice in {names}")
        return self

    @model_validator(mode="after")
    def _only_falls(self) -> Score:
        counts = [self.n, self.clean, *self.survived.values()]
        if counts != sorted(counts, reverse=True):
            raise ValueError(
                f"the counts n, clean and survivors rise somewhere in {counts}; each attack can only lower them"
            )
        if self.robust != counts[-1]:
            raise ValueError(f"robust = {self.robust}, but {counts[-1]} survived the last attack")
        return self


class DataId(Strict):
    """Which images: the sha256 of the test split's arrays, and of those that the net was trained on."""

    name: str
    sha256: Sha256
    train_sha256: Sha256 | None


class Validated(Strict):
    """A net in training after `epoch` epochs: clean and PGD accuracy on validation images, in [0, 1]."""

    epoch: Count
    clean: Rate
    robust: Rate


class StageCost(Strict):
    """What one stage of a pruner cost: sample passes and seconds.

    `curve`: the accuracies on validation images while it trained, by growing epoch; empty for stages that train no
    net, and in records before schema 7. Like the seconds, the pruner's process reports it, and it ranks nothing.
    `collapsed`: the clean accuracy on validation images with which the stage ended, if that is near chance
    (`bench.lab.checks.near_chance`). Both are written only where there is something to write.
    """

    name: str
    passes: Natural
    seconds: Seconds | None
    curve: Annotated[tuple[Validated, ...], Field(strict=False, max_length=10_000)] = ()
    collapsed: Rate | None = None

    @model_validator(mode="after")
    def _in_order(self) -> StageCost:
        epochs = [point.epoch for point in self.curve]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"the epochs of the curve of {self.name!r} do not increase: {epochs}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_did_not_happen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key == "seconds" or value not in (None, (), [])}


class AttackArithmetic(Strict):
    """How nets computed while the suite's attacks queried them; verdicts are always measured in exact float32.

    `name`: "float32", which is exact, or "tf32". `repaired`: how often such an attack reported a success that exact
    float32 did not confirm, so that the image was attacked again in exact float32.
    """

    name: ArithmeticName = "float32"
    repaired: Natural = 0

    @property
    def exact(self) -> bool:
        """Whether attacks saw what verdicts are measured on."""
        return self.name == "float32"

    @model_validator(mode="after")
    def _exact_attacks_need_no_repair(self) -> AttackArithmetic:
        if self.exact and self.repaired:
            raise ValueError(f"attacks in float32 are exact, but {self.repaired} images were attacked again")
        return self


class Cost(Strict):
    """The cost of training and scoring; passes are sample passes (forward 1, backward 2).

    `score_passes` hold all that attacks asked, also what they discarded because few images filled the sparse kernels.
    The stages' passes and seconds are reported by the pruner's process. `processor_seconds` is the kernel's count for
    that process and all its children (None: unknown, or absent in records before schema 4).
    """

    stages: tuple[StageCost, ...] = Field(strict=False)
    train_passes: Natural
    train_seconds: Seconds | None
    processor_seconds: Seconds | None = None
    score_passes: Natural
    score_seconds: Seconds
    device: str
