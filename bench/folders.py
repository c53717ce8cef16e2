"""Folders of images: what a process has read of them, and their facts beside the cache of their images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prunebench.bench.bounded import json_of
from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, read_outside, write_bytes

T = TypeVar("T")
SETTLED = 2.0  # seconds after which a folder's time tells whether it has changed since
MOST = 4  # readings that a process keeps: two halves and their facts, twice
_INFO_BYTES = 1000
_READ: dict[tuple[object, ...], tuple[object, object]] = {}  # how the folders stood, and what was read


def once(key: tuple[object, ...], folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns, read again only if a file has been added to `folder`, renamed or removed since.

    A file that is written over while a process works is not noticed by that process.
    """
    stand, kept = _stand(folder), _READ.get(key)
    if stand is not None and kept is not None and kept[0] == stand:
        found: T = kept[1]  # type: ignore[assignment]
        return found
    found = read()
    _READ.pop(key, None)
    if stand is not None:
        _READ[key] = stand, found
        for old in list(_READ)[:-MOST]:
            del _READ[old]
    return found


def _stand(folder: Path) -> object:
    """The times of all folders below `folder`; None if one has changed just now, when its time says nothing yet."""
    places = [place for place, _, _ in os.walk(folder)]
    times = [Path(place).stat().st_mtime_ns for place in places]
    return None if time.time_ns() - max(times, default=0) < SETTLED * 1e9 else (places, times)


def folder_info(classes: int, shape: tuple[int, ...]) -> Info:
    """The facts of images of `shape` (c, h, w); without published statistics, pixels are taken to be around 0.5."""
    channels, height, width = shape
    return Info(classes, (channels, height, width), (0.5,) * channels, (0.25,) * channels)


def save_info(path: Path, info: Info) -> None:
    """Write the facts of a folder."""
    write_bytes(path, canonical_json({"classes": info.classes, "shape": info.shape}))


def load_info(path: Path) -> Info | None:
    """What `save_info` wrote; None if it is missing or damaged."""
    try:
        facts = json_of(read_outside(path, "facts of a folder of images", _INFO_BYTES))
    except (PrunebenchError, ValueError):
        return None
    numbers = [facts.get("classes"), *facts["shape"]] if _is_facts(facts) else []
    if len(numbers) != 4 or not all(type(number) is int and number > 0 for number in numbers):
        return None
    return folder_info(numbers[0], tuple(numbers[1:]))


def _is_facts(facts: object) -> bool:
    return isinstance(facts, dict) and facts.keys() == {"classes", "shape"} and isinstance(facts["shape"], list)
