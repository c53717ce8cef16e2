"""Claims: a published robustness number in a CLAIM.toml, beside the files needed to check it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import Sha256
from prunebench.bench.files import canonical_json, digest_outside, sha256_of
from prunebench.bench.outcomes import best_of, load_arrays, standing_of
from prunebench.bench.protocol import PROTOCOLS, Protocol, load
from prunebench.bench.schema import Count, Natural, Strict, explain, read_toml

NAME, SUFFIX = "CLAIM.toml", ".claim.toml"
LARGEST = 2**28  # bytes per file that a claim names


def _inside(text: str) -> str:
    parts = text.split("/")
    if any(part in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._=+@-]{1,200}", part) for part in parts):
        raise ValueError(
            f"{text!r} does not name a file below the claim's folder; write a relative path of letters, digits and "
            "._=+@- without '..'"
        )
    return text


Inside = Annotated[str, AfterValidator(_inside)]


class Asset(Strict):
    """A file below the claim's folder."""

    path: Inside
    sha256: Sha256


class Under(Strict):
    """The rules of a claim: a built-in protocol, or a TOML file below the claim's folder, and the hash of the rules."""

    name: Inside
    sha256: Sha256


def _percentage(text: str) -> str:
    found = re.fullmatch(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,6})? %", text)
    if not found or not 0 < Fraction(text.removesuffix(" %")) <= 100:
        raise ValueError(f"{text!r} is not a percentage above 0 and up to 100; write it as '60 %' or '62.5 %'")
    return text


def _plain(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"{text!r} has unprintable characters or surrounding spaces; write plain text")
    return text


def _day(text: str) -> str:
    try:
        if len(text) == 10 and dt.date.fromisoformat(text):
            return text
    except ValueError:
        pass
    raise ValueError(f"{text[:20]!r} is not a date; write it as '2026-01-31'")


SuiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,39}$")]
Percentage = Annotated[str, AfterValidator(_percentage)]
Plain = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]


class About(Strict):
    """The author's unchecked description of the net, for readers."""

    pruner: Plain | None = None
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    date: Annotated[str, AfterValidator(_day)] | None = None
    version: Plain | None = None
    url: Annotated[str, Field(max_length=500, pattern=r"^https?://[!-~]+$")] | None = None


class Claim(Strict):
    """The claim that of the first `n` test images `robust`, or `at_least` a share, survive AutoAttack by these rules.

    `by`: the suite for the best-known number, such as "best-1", if the claimed images also survive that. `data`: the
    sha256 of the images. `outcomes` show which are robust; `proposals` hold adversarials of others.
    """

    schema_: Literal[1, 2, 3] = Field(1, alias="schema")
    n: Count
    robust: Natural | None = None
    at_least: Percentage | None = None
    by: SuiteName | None = None
    data: Sha256 | None = None
    protocol: Under
    net: Asset
    outcomes: Asset | None = None
    proposals: Asset | None = None
    about: About | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Claim:
        if self.schema_ == 1 and (self.at_least is not None or self.about is not None):
            raise ValueError("`at_least` and `about` need schema = 2; write schema = 2")
        if self.schema_ < 3 and self.by is not None:
            raise ValueError("`by` needs schema = 3; write schema = 3")
        if self.robust is None and self.at_least is None:
            raise ValueError("nothing is claimed; add robust = COUNT or at_least = 'SHARE %'")
        if self.robust is not None and self.robust > self.n:
            raise ValueError(f"robust = {self.robust} is more than n = {self.n}")
        if self.robust is not None and self.robust < self.least:
            raise ValueError(f"robust = {self.robust} of {self.n} is less than at_least = {self.at_least!r}")
        return self

    @property
    def least(self) -> int:
        """The fewest images that reach the share `at_least` of `n`; 0 where no share is claimed."""
        return 0 if self.at_least is None else ceil(Fraction(self.at_least.removesuffix(" %")) / 100 * self.n)

    @property
    def needed(self) -> int:
        """The number of images that must be robust for the claim to be true."""
        return self.least if self.robust is None else self.robust

    @property
    def explained(self) -> str:
        """What the number means, in sentences after a space: a share as a number of images, and another suite."""
        said = "" if self.at_least is None else f" At least {self.at_least} of {self.n} images are {self.least}."
        if self.by is None:
            return said
        return f"{said} The claim counts the images that survive AutoAttack and then {self.by}."

    @property
    def sha256(self) -> str:
        """The hash of the whole claim; a claim by AutoAttack has the same in every version of the format."""
        absent = {"by"} if self.by is None else None
        return sha256_of(canonical_json(self.model_dump(mode="json", by_alias=True, exclude=absent)))


def load_claim(path: Path) -> Claim:
    """The claim in the file `path`. Raises PrunebenchError for one that breaks the rules of its format."""
    values = read_toml(path, "claim")
    try:
        return Claim.model_validate(values)
    except ValidationError as error:
        raise PrunebenchError(f"The claim {path} breaks the rules: {explain(error)}") from None


def is_claim(path: Path) -> bool:
    """Whether a file of this name is a claim."""
    return path.name == NAME or path.name.endswith(SUFFIX)


def find(place: Path) -> list[Path]:
    """The claims below the folder `place`, or the file itself. Raises PrunebenchError when there is none."""
    if place.is_file():
        return [place]
    found = sorted(path for path in place.rglob("*.toml") if is_claim(path) and path.is_file())
    if not found:
        raise PrunebenchError(f"There is no claim in {place}; name a {NAME}, a *{SUFFIX}, or a folder that holds some.")
    return found


def sound(path: Path, asset: Asset, what: str) -> Path:
    """The path of the file `asset` of the claim at `path`, after checking its hash.

    Raises Refused when it is not a file below the claim's folder (links are followed first), is too large, or is not
    the file that the claim names.
    """
    where = _locate(path, asset.path, what)
    found = digest_outside(where, what, LARGEST, way_out="restore the file", complain=Refused)
    if found != asset.sha256:
        raise Refused(
            "hash",
            f"{path} names {what} with the sha256 {asset.sha256[:12]}..., but {where} has {found[:12]}...; restore "
            "that file, or make a new claim for this one.",
        )
    return where


def _locate(path: Path, name: str, what: str) -> Path:
    try:
        home, where = path.parent.resolve(strict=True), (path.parent / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise Refused("file", f"{path} names {name} as {what}, which does not exist; restore the file.") from None
    if not where.is_relative_to(home) or not where.is_file() or where.stat().st_size > LARGEST:
        raise Refused(
            "file",
            f"{path} names {name} as {what}, which is not a file below {path.parent} of at most {LARGEST} bytes; "
            "copy it there.",
        )
    return path.parent / name


def rules_of(path: Path, claim: Claim) -> Protocol:
    """The rules under which the claim at `path` was made. Raises PrunebenchError when they have changed since."""
    name = claim.protocol.name
    rules = PROTOCOLS[name] if name in PROTOCOLS else load(_locate(path, _own(path, name), "its rules"), to_train=False)
    if rules.sha256 != claim.protocol.sha256:
        raise Refused(
            "protocol",
            f"{path} was made under {name} with the sha256 {claim.protocol.sha256[:12]}..., but today its sha256 is "
            f"{rules.sha256[:12]}...; score the net again and claim the new result.",
        )
    folder = rules.data.removeprefix("folder:")
    if folder != rules.data and (Path(folder).is_absolute() or ".." in Path(folder).parts):
        raise Refused(
            "protocol", f"{path} needs images from {rules.data!r}, outside the data folder; move them into it."
        )
    return rules


def _own(path: Path, name: str) -> str:
    if not name.endswith(".toml"):
        choices = ", ".join(sorted(PROTOCOLS))
        raise PrunebenchError(
            f"{path} names the protocol {name!r}, which is neither built in ({choices}) nor a TOML file (*.toml)."
        )
    return name


_OTHERS = {"labels": "i", "predicted": "i", "distance": "f"}  # the kinds of arrays that are not bits


def claimed_of(claim: Claim, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images that the outcomes `arrays` of `claim` show to be robust, by the attacks it names: bool (n,)."""
    return standing_of(arrays) if claim.by is None else best_of(arrays)


def outcomes_of(path: Path, claim: Claim) -> dict[str, np.ndarray] | None:
    """The stored outcomes of the claim at `path`, None where it claims only a count.

    Raises PrunebenchError for outcomes whose images or count differ from the claim's.
    """
    if claim.outcomes is None:
        return None
    where = sound(path, claim.outcomes, "outcomes")
    arrays = load_arrays(where, claim.outcomes.sha256, f"the outcomes of {path}")
    kinds = {name: (array.dtype.kind, array.shape) for name, array in arrays.items()}
    wanted = {name: (_OTHERS.get(name, "b"), (claim.n,)) for name in kinds}
    needed = ["survived/", *(["best/"] if claim.by is not None else [])]
    missing = [kind for kind in needed if not any(name.startswith(kind) for name in kinds)]
    if kinds != wanted or missing or not {"labels", "predicted", "clean"} <= kinds.keys():
        raise Refused(
            "outcomes",
            f"{where} does not hold {'' if claim.by is None else f'the {claim.by} '}outcomes of {claim.n} images; make "
            "the claim again from its record.",
        )
    count = int(claimed_of(claim, arrays).sum())
    if claim.robust not in (None, count):
        raise Refused(
            "outcomes",
            f"{path} claims {claim.robust} robust images, but its outcomes show {count}; correct the claim.",
        )
    if count < claim.least:
        raise Refused(
            "outcomes",
            f"{path} claims at least {claim.at_least} of {claim.n} images ({claim.least} images), but its outcomes "
            f"show {count} robust; correct the claim.",
        )
    return arrays
