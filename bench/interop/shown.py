"""Descriptions of a foreign file's content that are safe to show: short and printable."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from prunebench.bench.errors import printable

_SHOWN = 5  # names in a refusal


def plain(name: str) -> str:
    """A name from a file in at most 100 printable characters."""
    shown = printable(name)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def quoted(name: object) -> str:
    """A name from a file, in quotation marks."""
    return f"'{plain(str(name))}'"


def listed(names: Iterable[object]) -> str:
    """The first few names, and the number of the rest."""
    names = list(names)
    shown = ", ".join(quoted(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def shape(tensor: Tensor) -> str:
    """A tensor's first eight dimensions."""
    return str(tuple(tensor.shape)[:8])


def short(error: Exception) -> str:
    """An error's message on one line."""
    if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):  # torch's own message advises running it anyway
        return f"it holds {plain(foreign[1])}"
    return plain(str(error).strip().partition("\n")[0] or type(error).__name__)
