"""The result of one scored net: counts, provenance and a hash of itself; strict in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from prunebench.bench.beyond import Beyond
from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import AttackArithmetic, Cost, DataId, NetId, ProtocolId, Score, Sha256
from prunebench.bench.files import canonical_json, read_outside, sha256_of, write_json
from prunebench.bench.job import Job
from prunebench.bench.protocol import PROTOCOLS, Pattern, Protocol, identity
from prunebench.bench.schema import Strict, explain

# Schema 4 added `processor_seconds`. Schema 5 added the rules and renamed `disagreements` to `rejected` and
# `unconfirmed` to `kernel_only`. Schema 6 added `beyond`, schema 7 `patterns`, and of a stage the training `curve` and
# whether it `collapsed`. Schema 8 added `attack_arithmetic`; records of attacks in exact float32 have nothing to say
# there, so they are still written under schema 7. Older records remain readable under their own hash.
Schema = Literal[3, 4, 5, 6, 7, 8]
SCHEMA: Schema = 7
INEXACT: Schema = 8  # of records with attacks in another arithmetic
_RENAMED = {"disagreements": "rejected", "unconfirmed": "kernel_only"}  # in schema 5
LARGEST = 8 * 2**20  # bytes; our records and outcomes files are far smaller
LARGEST_NET = 2**28  # bytes of a net file; the largest net of the table takes 60 MB


def schema_for(arithmetic: AttackArithmetic) -> Schema:
    """The schema of a new record whose attacks ran in this arithmetic."""
    return SCHEMA if arithmetic.exact else INEXACT


class Hashed(Strict):
    """A file that contains the sha256 of the rest of its content."""

    sha256: Sha256

    @classmethod
    def sealed(cls, **values: Any) -> Any:
        """The object with these values and their hash."""
        draft = cls(**values, sha256="0" * 64)
        return draft.model_copy(update={"sha256": draft.own_sha256})

    @property
    def own_sha256(self) -> str:
        """The hash of everything except the hash itself."""
        return sha256_of(canonical_json(self.model_dump(mode="json", by_alias=True, exclude={"sha256"})))

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json", by_alias=True))


class Record(Hashed):
    """The result file of one net under one protocol.

    `rules`: the protocol in full, so that nobody needs its TOML file. `patterns`: those that the referee found in the
    zeros of the net, whatever its pruner was asked for; None before schema 7. `outcomes`, `proposals` and `pairs`
    (None: not kept) are the sha256 of files beside it.
    """

    schema_: Schema = Field(SCHEMA, alias="schema")
    protocol: ProtocolId
    rules: dict[str, Any] | None = None  # as they were at the time; None before schema 5
    job: Job
    net: NetId
    patterns: Annotated[tuple[Pattern, ...], Field(strict=False, max_length=8)] | None = None
    score: Score
    attack_arithmetic: AttackArithmetic = AttackArithmetic()
    beyond: Beyond = Beyond()
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
        """The full rules, from the record or built in; None if neither has them or today's schema rejects them."""
        known = next((rules for rules in PROTOCOLS.values() if rules.sha256 == self.protocol.sha256), None)
        if known is not None or self.rules is None:
            return known
        try:
            rules = Protocol.model_validate(self.rules)
        except ValidationError:
            return None
        return rules if rules.sha256 == self.protocol.sha256 else None

    @property
    def built_in(self) -> bool:
        """Whether the rules are built in today; otherwise a board is not official, whatever its records say."""
        rules = PROTOCOLS.get(self.protocol.name)
        return rules is not None and rules.sha256 == self.protocol.sha256

    @model_validator(mode="before")
    @classmethod
    def _under_the_names_of_today(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("schema") in (3, 4) and isinstance(values.get("score"), dict)):
            return values
        foreign = sorted(values["score"].keys() & set(_RENAMED.values())) + ["rules"] * ("rules" in values)
        if foreign:
            raise ValueError(f"it has {foreign}, which schema {values['schema']} does not know")
        return values | {"score": {_RENAMED.get(key, key): value for key, value in values["score"].items()}}

    @model_validator(mode="after")
    def _has_what_its_schema_has(self) -> Record:
        if self.schema_ < 4 and self.cost.processor_seconds is not None:
            raise ValueError(f"cost.processor_seconds = {self.cost.processor_seconds} is not allowed before schema 4")
        if self.schema_ < 6 and self.beyond != Beyond():
            raise ValueError(f"beyond is in records since schema 6, but this is schema {self.schema_}")
        if self.schema_ < 7 and any(stage.curve or stage.collapsed is not None for stage in self.cost.stages):
            raise ValueError(f"stages have curves and say that they collapsed since schema 7, not in {self.schema_}")
        self._arithmetic_fits()
        if (self.patterns is None) != (self.schema_ < 7):
            raise ValueError(f"patterns are in records since schema 7, but this is schema {self.schema_}")
        if (self.rules is None) != (self.schema_ < 5):
            raise ValueError(f"rules are in records since schema 5, but this is schema {self.schema_}")
        if self.rules is not None:
            self._fits(self.rules)
        self.beyond.refuse_excess(self.score)
        return self

    def _arithmetic_fits(self) -> None:
        """Raise ValueError unless schema and counts allow what the record says about the arithmetic of attacks."""
        arithmetic, repaired = self.attack_arithmetic, self.attack_arithmetic.repaired
        if (self.schema_ < INEXACT) != arithmetic.exact:
            raise ValueError(
                f"attack_arithmetic is {arithmetic.name}, but this is schema {self.schema_}; records have schema "
                f"{INEXACT} if attacks were not in exact float32, and an earlier one otherwise"
            )
        most = self.score.proposed + self.score.robust * (0 if self.beyond.best is None else len(self.beyond.best.by))
        if repaired > most:
            raise ValueError(f"{repaired} images were attacked again, but attacks were run on {most} at most")

    def _fits(self, rules: dict[str, Any]) -> None:
        """Raise ValueError unless the record names these rules and its score is consistent with them."""
        sha256 = identity(rules)
        named = (self.protocol.name, self.protocol.version, self.protocol.sha256)
        if (rules.get("name"), rules.get("version"), sha256) != named:
            raise ValueError(
                f"the rules are {rules.get('name')} {sha256[:12]}, not the rules that protocol names; if it was made "
                "when the hash covered sparsities and seeds, run tools.rename_rules"
            )
        if (rules.get("data"), rules.get("shard")) != (self.data.name, self.score.shard):
            raise ValueError(
                f"the rules need {rules.get('data')} in shards of {rules.get('shard')}, but the score differs"
            )
        ranked, found = rules.get("patterns", []), self.patterns or ()
        if not (isinstance(ranked, list) and all(isinstance(name, str) for name in ranked)):
            raise ValueError(f"the rules' patterns are {ranked}, not a list of names")
        if ranked and self.job.sparsity > 0 and not set(ranked) & set(found):
            raise ValueError(f"the rules rank nets of the patterns {ranked}, but the net has {list(found)}")
        if self.official and rules.get("model") != self.net.arch:
            raise ValueError(f"the rules are for {rules.get('model')}, but the net is {self.net.arch}")

    @model_serializer(mode="wrap")
    def _as_its_schema_has_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.schema_ < INEXACT:
            del values["attack_arithmetic"]
        if self.schema_ < 7:
            del values["patterns"]
        if self.schema_ < 6:
            del values["beyond"]
        if self.schema_ < 5:
            del values["rules"]
            old = {new: old for old, new in _RENAMED.items()}
            values["score"] = {old.get(key, key): value for key, value in values["score"].items()}
        if self.schema_ < 4:
            values["cost"].pop("processor_seconds", None)
        return values

    @property
    def processor(self) -> str:
        """What the net was scored on: the card, or else the processor; "unknown" for records that do not say."""
        return str(self.env.get("cpu" if self.env.get("device") == "cpu" else "device") or "unknown")


class Refusal(Hashed):
    """The result file of a net that the referee refuses to score: the check, and the reason in one sentence."""

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

    Raises PrunebenchError when the file is neither, or when its hash shows that it was edited.
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
    """Every record and refusal below `folder`, keyed and sorted by path. Raises as `load_record` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PrunebenchError(f"There is no folder {folder}; name one that holds records (*.json).")
    return {path: load_record(path) for path in sorted(folder.rglob("*.json"))}


def _read_json(path: Path) -> dict[str, Any]:
    data = read_outside(path, "a record of prunebench", LARGEST)
    try:
        values = json_of(data)
    except ValueError as error:
        raise PrunebenchError(f"{path} is not valid JSON ({error}); restore it or score the net again.") from None
    if not isinstance(values, dict):
        raise PrunebenchError(f"{path} is not a record of prunebench: it is not a JSON object.")
    return values
