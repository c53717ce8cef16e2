"""Parsers for untrusted JSON, TOML and npz; bounds on time and memory are checked before parsing starts.

Every function raises ValueError with a reason that completes a sentence: "it nests deeper than 32".
"""

from __future__ import annotations

import io
import json
import lzma
import math
import re
import struct
import tokenize
import tomllib
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reading a protocol needs no arrays, and --help no numpy
    import numpy as np

DEPTH = 32  # levels of nesting; prunebench's deepest file has 6
VALUES = 200_000  # in a JSON or TOML file
DIGITS = 1000  # per number
PARTS = 16  # per dotted key
MEMBERS = 10_000  # per zip archive: one per tensor of a checkpoint
# Strings and comments, even unterminated ones; removing them leaves the brackets, numbers and dots.
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_TOML_TEXT = re.compile(
    r"""
    "{3} (?: [^"\\] | \\. | "(?!"") )*+ (?: "{3,5} )?
    | '{3} (?: [^'] | '(?!'') )*+ (?: '{3,5} )?
    | " (?: [^"\\\n] | \\. )*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    """,
    re.DOTALL | re.VERBOSE,
)
_BRACKETS = re.compile(r"[\[{]|[\]}]")
_NUMBER = re.compile(rf"(?<![0-9_.eE+-])[0-9_.eE+-]{{{DIGITS + 1}}}")
_DOTTED = re.compile(rf"(?:\.[^.=\[\]{{}},\n]*+){{{PARTS}}}")
# Errors that numpy and zipfile raise on a file that is damaged, encrypted, oddly compressed or malicious.
_UNREADABLE = (
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    LookupError,
    TypeError,
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


def json_of(data: bytes) -> Any:
    """The value of a JSON text in UTF-8 without duplicate keys."""
    text = data.decode()
    _refuse_explosive(_JSON_TEXT.sub("_", text))
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def toml_of(data: bytes) -> dict[str, Any]:
    """The values of a TOML text in UTF-8."""
    text = data.decode()
    bare = _TOML_TEXT.sub("_", text)
    _refuse_explosive(bare)
    if _DOTTED.search(bare):
        raise ValueError(f"it holds a key of more than {PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _refuse_explosive(bare: str) -> None:
    """Raise ValueError if parsing would take excessive time or memory; `bare`: the text without its strings."""
    values = sum(bare.count(sign) for sign in (",", "=", ":", "[", "{"))
    if values > VALUES:
        raise ValueError(f"it holds more than {VALUES} values")
    depth = 0
    for bracket in _BRACKETS.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            raise ValueError(f"it nests deeper than {DEPTH}")
    if _NUMBER.search(bare):
        raise ValueError(f"it holds a number of more than {DIGITS} digits")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def unzipped_size(data: bytes) -> int:
    """The total unpacked size in bytes that the zip archive `data` declares, without unpacking it."""
    if data.count(b"PK\x01\x02") > MEMBERS:  # the signature of a directory entry
        raise ValueError(f"it has more than {MEMBERS} members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            return sum(member.file_size for member in members.infolist())
    except _UNREADABLE as error:
        raise ValueError(_reason(error)) from None


def arrays_of(data: bytes, largest: int) -> dict[str, np.ndarray]:
    """The arrays of the npz file `data`, at most `largest` bytes in all; nothing is ever unpickled.

    The sizes that the archive and each array header declare are checked before memory is allocated.
    """
    if unzipped_size(data) > largest:
        raise ValueError(f"it unpacks to more than {largest} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            return _once([(m.filename.removesuffix(".npy"), _array(members, m)) for m in members.infolist()])
    except _UNREADABLE as error:
        raise ValueError(_reason(error)) from None


def _array(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, its declared size checked against its member's, so that a header cannot ask for terabytes."""
    import numpy as np
    from numpy.lib import format as npy

    versions = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with members.open(member) as file:
        version = npy.read_magic(file)
        if version not in versions:
            raise ValueError(f"{member.filename!r} has a header of version {version}")
        shape, _, kind = versions[version](file)
        size = math.prod(shape) * kind.itemsize
        if kind.hasobject or size > member.file_size:
            raise ValueError(f"{member.filename!r} holds no array of {shape} {kind}")
    with members.open(member) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
