"""The result of one scored net: counts, provenance and a hash of itself; strict in both directions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, read_outside, sha256_of, write_json
from prunebench.bench.protocol import PROTOCOLS, Job, Protocol
from prunebench.bench.schema import Count, Exact, Natural, Strict, exact, explain

# Schema 4 counts `processor_seconds`. Schema 5 carries the rules, and calls `rejected` and `kernel_only` what was
# called `disagreements` and `unconfirmed`. What was scored before stays readable under its own hash.
Schema = Literal[3, 4, 5]
SCHEMA: Schema = 5
_RENAMED = {"disagreements": "rejected", "unconfirmed": "kernel_only"}  # in schema 5
LARGEST = 8 * 2**20  # bytes; no record or outcomes file of ours comes near
LARGEST_NET = 2**28  # bytes of a net file; the largest net of the table takes 60 MB

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0, le=1e10)]


class ProtocolId(Strict):
    """Which rules: the name for people, the sha256 for certain."""

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
    """Which weights: sha256 of the file, and what was counted in it."""

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
    """A point of a security curve: how many images stay right against perturbations of `eps` in the threat's norm."""

    eps: Exact
    robust: Natural


class Flag(Strict):
    """A sign that a robustness number cannot be trusted; it stands beside the number and never changes it.

    `value` is what was measured, None when it was not; the flag is up when it lies above `threshold`. `sentence` says
    what the two mean.
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
    """Counts out of `n` images: `clean` ones classified rightly, `survived[attack]` still right after that attack.

    Attacks run one after the other on what survived the ones before, so `robust` is the last count. `ran` says what
    was run where an attack had to be adapted to the number of classes. `rejected` counts proposals that an attack
    handed over as adversarial and that the plain net, measured again inside the ball, still classified rightly;
    `kernel_only` those that the net misclassifies as attacks see it, on sparse kernels or folded, and the plain net
    does not.

    Beside AutoAttack, and never part of it: `weak[attack]` counts the images that are right after one weak attack on
    all of them, as a paper's usual claim does; `curve` is the security curve, eps growing; `flags` are doubts.
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
        """How many proposals the attacks made: one for each image that they were shown, those that still stood."""
        return self.clean + sum([*self.survived.values()][:-1])

    @model_validator(mode="after")
    def _within_clean(self) -> Score:
        beside = [*self.weak.values(), *(point.robust for point in self.curve)]
        if max(beside, default=0) > self.clean:
            raise ValueError(f"after a weak attack {max(beside)} images are right, more than the clean {self.clean}")
        sizes = [exact(point.eps) for point in self.curve]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"the eps of the curve do not grow: {[point.eps for point in self.curve]}")
        names = [flag.name for flag in self.flags]
        if len(set(names)) != len(names):
            raise ValueError(f"a flag stands twice in {names}")
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
    """Which images: sha256 over the arrays of the test split, and over those that the net was trained on."""

    name: str
    sha256: Sha256
    train_sha256: Sha256 | None


class Stage(Strict):
    """What one stage of a pruner cost: sample passes and seconds; `reused` when another job had paid the seconds."""

    name: str
    passes: Natural
    seconds: Seconds | None


class Cost(Strict):
    """What training and scoring took; passes are sample passes (forward 1, backward 2).

    Passes and seconds of the stages are what the pruner's process told; `processor_seconds` is what the kernel counted
    for that process and all that it started (None: unknown, or absent in records before schema 4).
    """

    stages: tuple[Stage, ...] = Field(strict=False)
    train_passes: Natural
    train_seconds: Seconds | None
    processor_seconds: Seconds | None = None
    score_passes: Natural
    score_seconds: Seconds
    device: str


class Hashed(Strict):
    """A file that carries the sha256 of all the rest of it."""

    sha256: Sha256

    @classmethod
    def sealed(cls, **values: Any) -> Any:
        """The object with these values and the hash that belongs to them."""
        draft = cls(**values, sha256="0" * 64)
        return draft.model_copy(update={"sha256": draft.own_sha256})

    @property
    def own_sha256(self) -> str:
        """The hash of everything but the hash."""
        return sha256_of(canonical_json(self.model_dump(mode="json", by_alias=True, exclude={"sha256"})))

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self.model_dump(mode="json", by_alias=True))


class Record(Hashed):
    """The result file of one net under one protocol.

    `rules`: what was asked of it, in full, so that nobody needs the TOML that it was made by. `outcomes`, `proposals`
    and `pairs` (None: not kept) are the sha256 of files beside it.
    """

    schema_: Schema = Field(SCHEMA, alias="schema")
    protocol: ProtocolId
    rules: Protocol | None = None  # None before schema 5
    job: Job
    net: NetId
    score: Score
    data: DataId
    official: bool
    cost: Cost
    env: dict[str, str | int | None]
    notes: dict[str, str | int | float | bool | None]
    outcomes: Sha256
    proposals: Sha256 | None
    pairs: Sha256 | None

    @property
    def known_rules(self) -> Protocol | None:
        """The rules in full: those in the record, or built-in ones of the same hash."""
        return self.rules or next((rules for rules in PROTOCOLS.values() if rules.sha256 == self.protocol.sha256), None)

    @property
    def built_in(self) -> bool:
        """Whether the rules are built in today; a board of others is not official, whatever they say."""
        rules = PROTOCOLS.get(self.protocol.name)
        return rules is not None and rules.sha256 == self.protocol.sha256

    @model_validator(mode="before")
    @classmethod
    def _under_the_names_of_today(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("schema") in (3, 4) and isinstance(values.get("score"), dict)):
            return values
        if foreign := values["score"].keys() & set(_RENAMED.values()):
            raise ValueError(f"score has {sorted(foreign)}, which schema {values['schema']} does not know")
        return values | {"score": {_RENAMED.get(key, key): value for key, value in values["score"].items()}}

    @model_validator(mode="after")
    def _has_what_its_schema_has(self) -> Record:
        if self.schema_ < 4 and self.cost.processor_seconds is not None:
            raise ValueError(f"cost.processor_seconds = {self.cost.processor_seconds}: absent before schema 4")
        if (self.rules is None) != (self.schema_ < 5):
            raise ValueError(f"rules are in records from schema 5 on, and this is schema {self.schema_}")
        if self.rules is not None and self.protocol != ProtocolId.of(self.rules):
            raise ValueError(f"the rules are {self.rules.name} {self.rules.sha256[:12]}, not those that protocol names")
        return self

    @model_serializer(mode="wrap")
    def _as_its_schema_has_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.schema_ < 5:
            del values["rules"]
            old = {new: old for old, new in _RENAMED.items()}
            values["score"] = {old.get(key, key): value for key, value in values["score"].items()}
        if self.schema_ < 4:
            values["cost"].pop("processor_seconds", None)
        return values


class Refusal(Hashed):
    """The result file of a net that the referee does not score: which check, and why in one sentence."""

    schema_: Schema = Field(SCHEMA, alias="schema")
    refused: str
    reason: str
    file: str
    net: Sha256 | None
    protocol: ProtocolId | None
    job: Job | None
    env: dict[str, str | int | None]


def load_record(path: Path) -> Record | Refusal:
    """The record or refusal in the file `path`.

    Raises PrunebenchError when the file is not one, or when its hash says that it was edited.
    """
    values = _read_json(path)
    kind = Refusal if "refused" in values else Record
    try:
        record = kind.model_validate(values)
    except ValidationError as error:
        raise PrunebenchError(f"{path} is not a record of prunebench: {explain(error)}") from None
    if record.own_sha256 != record.sha256:
        raise PrunebenchError(
            f"{path} was edited: its content has the sha256 {record.own_sha256[:12]}..., not {record.sha256[:12]}...; "
            "restore the file or score the net again."
        )
    return record


def load_all(folder: str | Path) -> dict[Path, Record | Refusal]:
    """Every record and refusal below `folder`, by path, in order of their paths. Raises as `load_record` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PrunebenchError(f"There is no folder {folder}; name one that holds records (*.json).")
    return {path: load_record(path) for path in sorted(folder.rglob("*.json"))}


def load_records(folder: str | Path) -> list[Record]:
    """The records below `folder` in order of their paths, refusals left out. Raises as `load_record` does."""
    return [record for record in load_all(folder).values() if isinstance(record, Record)]


def _read_json(path: Path) -> dict[str, Any]:
    data = read_outside(path, "a record of prunebench", LARGEST)
    try:
        values = json_of(data)
    except ValueError as error:
        raise PrunebenchError(f"{path} is not valid JSON ({error}); restore it or score the net again.") from None
    if not isinstance(values, dict):
        raise PrunebenchError(f"{path} is not a record of prunebench: it holds no object.")
    return values
