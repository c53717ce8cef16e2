"""What a foreign file holds, in words that may be shown: short, and in characters that print."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from prunebench.bench.errors import printable

_SHOWN = 5  # names in a refusal


def plain(name: str) -> str:
    """A name from a file in characters that print, 100 of them at most."""
    shown = printable(name)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def quoted(name: object) -> str:
    """A name from a file between quotation marks."""
    return f"'{plain(str(name))}'"


def listed(names: Iterable[object]) -> str:
    """The first names of several, and how many more there are."""
    names = list(names)
    shown = ", ".join(quoted(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def shape(tensor: Tensor) -> str:
    """A tensor's first eight dimensions."""
    return str(tuple(tensor.shape)[:8])


def short(error: Exception) -> str:
    """What an error says, in a line."""
    if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):  # torch's own advice would be to run it after all
        return f"it holds {plain(foreign[1])}"
    return plain(str(error).strip().partition("\n")[0] or type(error).__name__)
