"""What another arithmetic of attacks does to scores: counts, images and flags beside those of exact attacks.

Each net is scored in full (AutoAttack *standard*, weak attacks, flags) on the first test images of its own protocol,
once with attacks in exact float32 and once with attacks in each arithmetic of `KINDS`, emulated on the CPU. Verdicts
are always measured in exact float32, and attacks always query the net itself, not the accelerated copy.

    python -m tools.arithmetic_noise NET... [--images 256] [--data DATA]

Prints a Markdown table as it goes. "tf32 cut" truncates where "tf32" rounds to the nearest. "alone" leaves out the
repair: images are not attacked again in exact float32 where it rejects what the arithmetic called fooled. The exit
status is 1 if a count of "tf32" or "tf32 cut" differs by more than 1 in 256 from that of exact attacks, or if either
raises a flag that they do not raise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunebench.bench.bounded import arrays_of
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store
from prunebench.bench.outcomes import LARGEST_ARRAYS, standing_of
from prunebench.bench.score.arithmetic import FLOAT32, Arithmetic
from prunebench.bench.score.measurement import Asked, Measurement
from tools.attack_noise import Itself
from tools.emulation import BF16X3, NEAREST, TRUNCATED, emulated

KINDS: dict[str, Arithmetic] = {
    "float32": FLOAT32,
    "tf32 alone": emulated(NEAREST, repairs=False),
    "tf32": emulated(NEAREST, repairs=True),
    "tf32 cut": emulated(TRUNCATED, repairs=True),
    "bf16x3 alone": emulated(BF16X3, repairs=False),
}
JUDGED = ("tf32", "tf32 cut")
MOST = 1 / 256  # of the images: the difference of counts that is accepted
COLUMNS = ("net", "attacks in", "robust", "fallen", "risen", "rejected", "repaired", "flags up")


@dataclass(frozen=True)
class Outcome:
    """One scoring: the survivors of each ranked attack, the images robust, bool (n,), and what else is compared.

    `rejected`: successes that an attack reported and exact float32 did not confirm, even after repair.
    """

    survived: dict[str, int]
    robust: np.ndarray
    rejected: int
    repaired: int
    flags: frozenset[str]


def scored(path: Path, arithmetic: Arithmetic, images: int, store: Store) -> Outcome:
    """The scoring of the net in the file `path` on its first `images` images."""
    net = open_net(path)
    rules = net.header.protocol
    test, asked = store.testing(rules.data, images), Asked(arithmetic=arithmetic)
    measurement = Measurement(net, path, rules, test, torch.device("cpu"), None, None, asked)
    measurement.referee.fast = Itself(measurement.referee.net)
    found = measurement(None, whole=False)
    score = found.record.score
    return Outcome(
        score.survived,
        standing_of(arrays_of(found.outcomes, LARGEST_ARRAYS)),
        score.rejected,
        found.record.attack_arithmetic.repaired,
        frozenset(flag.name for flag in score.flags if flag.up),
    )


def agree(exact: Outcome, other: Outcome) -> bool:
    """Whether the final counts differ by at most MOST of the images, and every flag that is up is up in `exact` too."""
    off = abs(int(exact.robust.sum()) - int(other.robust.sum()))
    return off <= MOST * len(exact.robust) and other.flags <= exact.flags


def row(net: str, kind: str, exact: Outcome, other: Outcome) -> str:
    """A line of the table: counts, and the images that changed against `exact`."""
    flags = [f"{name} (not exact)" if name not in exact.flags else name for name in sorted(other.flags)]
    flags += [f"not {name}" for name in sorted(exact.flags - other.flags)]
    changed = [int((exact.robust & ~other.robust).sum()), int((other.robust & ~exact.robust).sum())]
    counts = (" ".join(map(str, other.survived.values())), *changed, other.rejected, other.repaired)
    return f"| {net} | {kind} | {' | '.join(map(str, counts))} | {', '.join(flags) or 'none'} |"


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", type=Path, metavar="NET")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--data", type=Path, default=Path("data"))
    args, faults = parser.parse_args(argv), 0
    torch.set_num_threads(1)
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|---|--:|--:|--:|--:|---|", flush=True)
    for path in args.nets:
        name, found = open_net(path).header.job.name, dict[str, Outcome]()
        for kind, arithmetic in KINDS.items():
            found[kind] = scored(path, arithmetic, args.images, Store(args.data))
            print(row(name, kind, found["float32"], found[kind]), flush=True)
        faults += sum(not agree(found["float32"], found[kind]) for kind in JUDGED)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
