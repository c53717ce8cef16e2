"""The order of calls of a machine with a card, each of at most ten minutes, and what a CPU rehearses of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PARTS = ("smoke", "convolutions", "train", "score", "steps", "tests")
HERE = Path(__file__).resolve().parent / "gpu"


@dataclass(frozen=True)
class Call:
    """One call: `parts` of the table, and the arguments of `prunebench run`.

    `needs`: the data set without which the grid has to wait; the parts that are not yet done take its place.
    """

    parts: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    needs: str | None = None


def _grid(rules: str, pruners: str, *more: str) -> tuple[str, ...]:
    chosen = [word for name in pruners.split() for word in ("--pruner", name)]
    return rules, *chosen, "--seed", "0", *more


_CIFAR10 = Call(
    PARTS,
    _grid(str(HERE / "cifar10-linf-short.toml"), "dense magnitude hydra", "--sparsity", "0.9", "--jobs", "2"),
    needs="cifar10",
)
# The first three on one machine: two volumes of CIFAR-10 go along with each. The fourth on another.
CALLS = {1: Call(PARTS), 2: _CIFAR10, 3: _CIFAR10, 4: Call(run=_grid("mnist-linf", "", "--jobs", "8"), needs="mnist")}

_RULES = str(HERE / "rehearsal.toml")
_SMALL = Call(run=_grid(_RULES, "dense magnitude hydra", "--sparsity", "0.9", "--jobs", "2"))
REHEARSED = {
    1: Call(PARTS),
    2: _SMALL,
    3: _SMALL,
    4: Call(run=_grid(_RULES, "dense random imp", "--sparsity", "0.9", "--jobs", "2")),
}
TINY = {"device": "cpu", "arch": "digits-cnn", "images": 128}  # of a rehearsal
