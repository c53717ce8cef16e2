"""How near does AWT's search bring the sparse net to the dense one, and what of it outlives training?

The relative squared distance |(K_s - K_t) v|^2 / |K_t v|^2 of the mixed tangent kernels (see pruners/awt.py), mean over
random v on validation images, for AWT and for the same search with a fixed magnitude and with a fixed random mask of
the same layer densities. During training the student is compared with the dense teacher at initialisation.

    python tools/kernel_distance.py digits-linf --sparsity 0.95 --seed 0 --seed 1 --out runs/kernel

Writes kernel-distance.csv and kernel-distance.md to the folder and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch

from bench.data import Store, as_float
from bench.files import write_bytes
from bench.lab import Lab
from bench.mask import Masks, State, draw, erk, keep_largest_by_layer
from bench.protocol import Job, load
from pruners.awt import AWT, kernel_product

BATCH, BATCHES, VECTORS = 32, 4, 5
SNAPSHOTS = (0.25, 0.5, 0.75)  # of the search, beside its begin and end
TRAINED = (0.25, 1.0)  # of the epochs that are left


class Watching(Lab):
    """A lab that keeps some of the states that a search goes through."""

    def loop(self, stage: str, start: State, step: Callable[[State, int], State], *, steps: int, **options) -> State:
        """As `Lab.loop`."""
        wanted = {round(share * steps): share for share in SNAPSHOTS}
        self.seen: dict[float, State] = {0.0: start}

        def watched(state: State, index: int) -> State:
            after = step(state, index)
            if index + 1 in wanted:
                self.seen[wanted[index + 1]] = after
            return after

        self.seen[1.0] = super().loop(stage, start, watched, steps=steps, **options)
        return self.seen[1.0]


def distance(lab: Lab, dense: State, student: State) -> float:
    """The relative squared kernel distance of `student` to `dense` on validation images and images near them."""
    net = lab.model(dense).eval().requires_grad_(False)
    teacher = dict(net.named_parameters())
    generator = torch.Generator().manual_seed(0)
    above = below = 0.0
    for number in range(BATCHES):
        part = lab.validation.take(slice(number * BATCH, (number + 1) * BATCH))
        images = as_float(part.images)
        near = lab.attack(net, images, part.labels, name=f"measure {number}")
        for _ in range(VECTORS):
            v = torch.randn(len(images), lab.info.classes, generator=generator)
            _, k_t = kernel_product(net, teacher, images, near, v)
            _, k_s = kernel_product(net, teacher | {name: student[name] for name in teacher}, images, near, v)
            above += float((k_s - k_t).square().sum())
            below += float(k_t.square().sum())
    return above / below


def measure(lab: Watching, kind: str) -> dict[str, float]:
    """The distances during search and training of one kind of mask: "awt", "magnitude" or "random"."""
    pruner = AWT()
    dense = lab.calibrated("calibrate", lab.initial(), batches=pruner.batches)
    keeps = erk(lab.shapes, lab.keep)
    begin: Masks = keep_largest_by_layer({name: dense[name].abs() for name in lab.shapes}, keeps)
    if kind == "random":
        begin = draw(lab.shapes, keeps, lab.generator("random mask"))
    student, masks = pruner.find(lab, dense, begin, fixed=kind != "awt")
    found = {}
    for share, state in sorted(lab.seen.items()):
        weights = {name: torch.where(state[f"mask/{name}"], state[f"value/{name}"], 0.0) for name in keeps}
        found[f"search {share:.0%}"] = distance(lab, dense, dense | weights)
    epochs = lab.left
    for share in TRAINED:
        stop = max(1, round(share * epochs))
        trained = lab.fit("train", student, epochs=epochs, stop=stop, masks=masks).last
        lab.meter.stages.pop()  # measured in parts, paid once
        found[f"training {share:.0%}"] = distance(lab, dense, trained)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rules, seeds = load(asked.protocol), asked.seed or [0]
    rows: list[tuple[str, int, str, float]] = []
    with tempfile.TemporaryDirectory() as stages:
        for seed in seeds:
            for kind in ("awt", "magnitude", "random"):
                job = Job(pruner="awt", sparsity=asked.sparsity, seed=seed)
                lab = Watching(job, rules, Store(asked.data), Path(stages) / kind)
                rows += [(kind, seed, when, value) for when, value in measure(lab, kind).items()]
    moments = list(dict.fromkeys(when for _, _, when, _ in rows))
    lines = [f"| {rules.name}, sparsity {asked.sparsity}, {len(seeds)} seeds | {' | '.join(moments)} |"]
    lines.append("|---" * (len(moments) + 1) + "|")
    for kind in ("awt", "magnitude", "random"):
        cells = [f"{mean(v for k, _, w, v in rows if (k, w) == (kind, when)):.3f}" for when in moments]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("mask", "seed", "when", "distance"), *rows])
    write_bytes(asked.out / "kernel-distance.csv", table.getvalue().encode())
    write_bytes(asked.out / "kernel-distance.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
