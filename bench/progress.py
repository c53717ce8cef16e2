"""The callbacks by which work in progress reports how far it has come, and how long it takes, in words."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float, float], None]  # current activity, amount done, total
ProgressUpdate = tuple[str, str, float, float]  # name of a step, current activity, amount done, total
JobProgressCallback = Callable[[str, str, float, float], None]  # job, current activity, amount done, total


def duration(seconds: float) -> str:
    """Seconds as a person says them: "2 h 05 min", "3 min 20 s", "8 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
