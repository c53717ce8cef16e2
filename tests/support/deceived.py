"""How much each deceiver gains: AutoAttack *standard* with its flags, beside the attacker without limits.

    python -m tests.support.deceived --examples 200 [NAME ...]

Prints a Markdown table of image counts, and of the seconds that AutoAttack and the other attacker take.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from prunebench.bench.data import as_float
from prunebench.bench.executor import fast
from prunebench.bench.protocol import load
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from tests.support.deceivers import DECEIVERS, Deceiver
from tests.support.nets import STORE, seal_state
from tests.support.unlimited import LEAKS, WIDTHS, Surrogates, leaking, softened, unlimited

RULES = load("digits-linf")


@dataclass(frozen=True)
class Row:
    """Counts among `images`: right when clean, and robust by both attackers; flags that are up; seconds of both."""

    name: str
    images: int
    clean: int
    autoattack: int
    unlimited: int
    flags: tuple[str, ...]
    seconds: tuple[float, float]


def withstands(made: Deceiver, count: int, *, transfer_only: bool = False, steps: int = 20, queries: int = 1000) -> int:
    """How many of the first `count` test images the net withstands when the attacker has no limits.

    `transfer_only`: the attacker has only the gradients of the honest net, which is sooner and nearly as good.
    """
    test = STORE.testing("digits", count)
    kinds = [] if transfer_only else [*map(leaking, LEAKS), *map(softened, WIDTHS)]
    guides = [fast(made.honest), *(Surrogates(made.net, slopes) for slopes in kinds)]
    judge = Referee(made.net, RULES, 256, torch.device("cpu"))
    attack = unlimited(fast(made.net), guides, steps=steps, queries=queries)
    images = as_float(test.images)
    clean = judge.answers(images) == test.labels
    return int((clean & ~judge.fooled(attack, images, test.labels, 0).fooled).sum())


def measured(name: str, count: int, folder: Path) -> Row:
    """The row of the deceiver `name` on the first `count` test images; its net file and record go to `folder`."""
    made = DECEIVERS[name]()
    path = seal_state(folder / name / "net.safetensors", made.net, RULES)
    began = time.perf_counter()
    found = score(path, out=path.parent, store=STORE, device="cpu", examples=count).score
    scored = time.perf_counter()
    robust = withstands(made, count)
    seconds = scored - began, time.perf_counter() - scored
    up = tuple(flag.name for flag in found.flags if flag.up)
    return Row(name, count, found.clean, found.robust, robust, up, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(DECEIVERS))
    parser.add_argument("--examples", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| deceiver | images | clean | AutoAttack | unlimited | flags up | seconds |\n|---|--:|--:|--:|--:|---|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names:
            row = measured(name, args.examples, Path(folder))
            counts = " | ".join(map(str, (row.images, row.clean, row.autoattack, row.unlimited)))
            times = " + ".join(f"{taken:.0f}" for taken in row.seconds)
            print(f"| {name} | {counts} | {', '.join(row.flags) or 'none'} | {times} |", flush=True)


if __name__ == "__main__":
    main()
