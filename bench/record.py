"""The result of one scored net: counts, provenance and a hash of itself; strict in both directions."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from bench.errors import PrunebenchError
from bench.files import canonical_json, sha256_of, write_json
from bench.protocol import Count, Job, Natural, Rules, explain

SCHEMA: Literal[1] = 1
LARGEST = 8 * 2**20  # bytes; no record or outcomes file of ours comes near
_LABEL = np.dtype("<i2")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0, le=1e10)]


class ProtocolId(Rules):
    """Which rules: the name for people, the sha256 for certain."""

    name: str
    version: int
    sha256: Sha256


class Layer(Rules):
    """One prunable tensor, as counted in the file."""

    name: str
    shape: tuple[Count, ...] = Field(strict=False)
    nonzero: Natural

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


class NetId(Rules):
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


class Score(Rules):
    """Counts out of `n` images: `clean` ones classified rightly, `survived[attack]` still right after that attack.

    Attacks run one after the other on what survived the ones before, so `robust` is the last count. `ran` says what
    was run where an attack had to be adapted to the number of classes. `disagreements` counts proposals that an attack
    handed over as adversarial and that the plain net, measured again inside the ball, still classified rightly.
    """

    n: Count
    clean: Natural
    robust: Natural
    survived: dict[str, Natural]
    ran: tuple[str, ...] = Field(strict=False)
    disagreements: Natural
    batch: Natural
    shard: Natural

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


class DataId(Rules):
    """Which images: sha256 over the arrays of the test split, and over those that the net was trained on."""

    name: str
    sha256: Sha256
    train_sha256: Sha256 | None


class Stage(Rules):
    """What one stage of a pruner cost: sample passes and seconds; `reused` when another job had paid the seconds."""

    name: str
    passes: Natural
    seconds: Seconds | None


class Cost(Rules):
    """What training and scoring took; passes are sample passes (forward 1, backward 2)."""

    stages: tuple[Stage, ...] = Field(strict=False)
    train_passes: Natural
    train_seconds: Seconds | None
    score_passes: Natural
    score_seconds: Seconds
    device: str


class Hashed(Rules):
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
    """The result file of one net under one protocol."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    protocol: ProtocolId
    job: Job
    net: NetId
    score: Score
    data: DataId
    official: bool
    cost: Cost
    env: dict[str, str | int | None]
    notes: dict[str, str | int | float | bool | None]
    outcomes: Sha256


class Refusal(Hashed):
    """The result file of a net that the referee does not score: which check, and why in one sentence."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
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


def outcomes_path(record: Path) -> Path:
    """Where the raw outcomes of the record at `record` lie."""
    return record.with_suffix(".outcomes.npz")


def pack_outcomes(labels: np.ndarray, predicted: np.ndarray, survived: dict[str, np.ndarray]) -> bytes:
    """The bytes of an outcomes file: true labels, predicted labels, and per attack who is still right after it.

    `labels`, `predicted`: int64, shape (n,). `survived`: bool, shape (n,), in the order the attacks ran.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"labels": labels.astype(_LABEL), "predicted": predicted.astype(_LABEL)}
    arrays |= {"clean": labels == predicted}
    arrays |= {f"survived/{attack}": alive.astype(bool) for attack, alive in survived.items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def recount(path: Path, record: Record) -> None:
    """Check the counts of `record`, loaded from `path`, against its raw outcomes.

    Raises PrunebenchError when the outcomes are missing, are others than the record names, or count differently.
    """
    raw = outcomes_path(path)
    try:
        if raw.stat().st_size > LARGEST:
            raise PrunebenchError(f"{raw} is larger than {LARGEST} bytes, so it is not an outcomes file of prunebench.")
        data = raw.read_bytes()
    except OSError as error:
        raise PrunebenchError(
            f"Cannot read {raw}, the outcomes of {path} ({error.strerror}); restore the file."
        ) from None
    if sha256_of(data) != record.outcomes:
        raise PrunebenchError(f"{raw} is not the file that {path} names by sha256; restore the one or score again.")
    arrays, score = _read_arrays(raw, data), record.score
    bits = {"clean": np.dtype(bool), **{f"survived/{attack}": np.dtype(bool) for attack in score.survived}}
    wanted = {name: (kind, (score.n,)) for name, kind in {"labels": _LABEL, "predicted": _LABEL, **bits}.items()}
    found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise PrunebenchError(f"{raw} and {path} differ in the images or attacks of {odd}; score the net again.")
    alive = arrays["labels"] == arrays["predicted"]
    if not np.array_equal(alive, arrays["clean"]):
        raise PrunebenchError(
            f"{raw} contradicts itself: its clean bits are not those of its labels; score the net again."
        )
    counted = {"clean": (int(alive.sum()), score.clean)}
    for attack in score.survived:
        alive = alive & arrays[f"survived/{attack}"]
        counted[attack] = (int(alive.sum()), score.survived[attack])
    counted["robust"] = (int(alive.sum()), score.robust)
    for what, (count, stated) in counted.items():
        if count != stated:
            raise PrunebenchError(f"{path} says {what} = {stated}, its outcomes say {count}; score the net again.")


def _read_arrays(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            if sum(member.file_size for member in members.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise PrunebenchError(f"{path} is not an outcomes file ({error}); restore it or score the net again.") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise PrunebenchError(f"{path} is larger than {LARGEST} bytes, so it is not a record of prunebench.")
        values = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise PrunebenchError(f"Cannot read {path} ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise PrunebenchError(f"{path} is not valid JSON ({error}); restore it or score the net again.") from None
    if not isinstance(values, dict):
        raise PrunebenchError(f"{path} is not a record of prunebench: it holds no object.")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values
