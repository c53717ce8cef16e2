"""prunebench: train sparse networks under one budget, score them with AutoAttack, and compare them with intervals.

This is the whole public API. Each name is imported on first use, so that `import prunebench` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.bench.claims.compare import compare
    from prunebench.bench.errors import PrunebenchError
    from prunebench.bench.executor import fast
    from prunebench.bench.job import Job
    from prunebench.bench.lab.lab import Lab, Pruner
    from prunebench.bench.protocol import Protocol
    from prunebench.face import load, rank, score, train, verify

__all__ = [
    "Job",
    "Lab",
    "Protocol",
    "PrunebenchError",
    "Pruner",
    "compare",
    "fast",
    "load",
    "rank",
    "score",
    "train",
    "verify",
]

_HOMES = {
    "bench.claims.compare": ("compare",),
    "bench.errors": ("PrunebenchError",),
    "bench.executor": ("fast",),
    "face": ("load", "rank", "score", "train", "verify"),
    "bench.lab.lab": ("Lab", "Pruner"),
    "bench.job": ("Job",),
    "bench.protocol": ("Protocol",),
}


if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """The object called `name`, imported now."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"prunebench has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
