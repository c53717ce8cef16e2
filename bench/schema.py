"""External values: strict models, exact numbers, TOML files, and one-sentence explanations of what is wrong."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunebench.bench.bounded import toml_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_outside

LARGEST_TOML = 2**16  # bytes of a protocol or a claim
LONGEST_EXACT = 64  # characters of an exact number, which is used in file names


class Strict(BaseModel):
    """A frozen set of values that refuses unknown keys and does not convert types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def exact(text: str) -> Fraction:
    """The exact number in `text`: "0.3" or "8/255". Raises ValueError for other or longer text."""
    if len(text) > LONGEST_EXACT:
        raise ValueError(
            f"{text[:8]}... has {len(text)} characters; write an exact number with at most {LONGEST_EXACT}"
        )
    if not re.fullmatch(r"\d+(\.\d+)?|\d+/\d+", text):
        raise ValueError(f"{text!r} is not a number; write a decimal such as '0.3' or a fraction such as '8/255'")
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError(f"{text!r} divides by zero; write a fraction such as '8/255'") from None


def _positive(text: str) -> str:
    if exact(text) <= 0:
        raise ValueError(f"{text!r} is not above 0")
    return text


Exact = Annotated[str, AfterValidator(_positive)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values in the TOML file `path`, described as `what`.

    Raises PrunebenchError if it is not a regular file, too large, not TOML, or too costly to parse.
    """
    data = read_outside(path, f"a {what} of prunebench", LARGEST_TOML)
    try:
        return toml_of(data)
    except ValueError as error:  # invalid TOML or UTF-8, or too costly to parse
        raise PrunebenchError(f"The {what} {path} is not valid TOML ({error}); correct the file.") from None


def explain(error: ValidationError) -> str:
    """The first broken rule of `error` as a sentence: key, value, rule, remedy."""
    first = error.errors()[0]
    key = _cut(".".join(str(part) for part in first["loc"])) or "the whole"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its spelling."
    if first["type"] == "missing":
        return f"the key {key!r} is missing; add it."
    rule = _cut(first["msg"].removeprefix("Value error, "))
    value = first["input"]
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {_shown(value)}"
    return f"{key}{shown}: {rule[:1].lower()}{rule[1:].rstrip('.')}; correct it."


def _shown(value: object) -> str:
    try:
        return _cut(repr(value))
    except ValueError:  # an int of more than 4,300 digits
        return "a number with thousands of digits"


def _cut(text: str, longest: int = 400) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
