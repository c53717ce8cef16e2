"""The callbacks by which work in progress reports how far it has come."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float, float], None]  # current activity, amount done, total
ProgressUpdate = tuple[str, str, float, float]  # name of a step, current activity, amount done, total
JobProgressCallback = Callable[[str, str, float, float], None]  # job, current activity, amount done, total
