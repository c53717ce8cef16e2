"""How near does AWT's search bring the sparse net to the dense one, and what of that survives training?

Measures |(K_s - K_t) v|^2 / |K_t v|^2 and the cosine of K_s v and K_t v for the mixed tangent kernels (pruners/awt.py)
of student and teacher, over random v on validation images: for AWT, and for its search under a fixed magnitude and a
fixed random mask of the same layer densities. The student's kernel is that over all weights, as the search takes it, or
over kept weights, which training moves. In the search the teacher is the dense net at initialisation; in training it is
that net trained adversarially for as many epochs, and the adversarial images are those of the teacher.

    python tools/kernel_distance.py digits-linf mine.toml --sparsity 0.95 --seed 0 --seed 1 --out runs/kernel

Writes kernel-distance.csv, .md and .svg to the folder. Cells of a CSV from the same rules and code are kept.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import prunebench.pruners.awt
from prunebench.bench import machine
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import canonical_json, sha256_of, write_bytes
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit, refuse_collapse
from prunebench.bench.mask import Masks, State, draw, erk, keep_largest_by_layer, masked
from prunebench.bench.protocol import Protocol, load
from prunebench.pruners.awt import AWT, kernel_product

BATCH, BATCHES, VECTORS = 32, 4, 5
SNAPSHOTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the search, besides its start and end
TRAINED = (0.25, 0.5, 0.75, 1.0)  # of the remaining epochs
Moment = tuple[str, float, int, float, float, float]  # a row from `phase` to `alignment`
KINDS = {"awt": "AWT's moving mask", "magnitude": "fixed magnitude mask", "random": "fixed random mask"}


@dataclass(frozen=True)
class Row:
    """One measurement: `at` is a share of the phase, `done` the search steps or training epochs until then.

    `distance_all`: over all weights; `distance`, `alignment`: over kept weights. `code`: a hash of its dependencies.
    """

    protocol: str
    sparsity: float
    seed: int
    mask: str
    phase: str
    at: float
    done: int
    distance_all: float
    distance: float
    alignment: float
    code: str


class Watching(Lab):
    """A lab that keeps some intermediate states of a search."""

    def loop(
        self, stage: str, start: State, step: Callable[[State, int], State], *, steps: int, **options: Any
    ) -> State:
        """As `Lab.loop`."""
        wanted = {round(share * steps): share for share in SNAPSHOTS}
        self.searched, self.seen = steps, {0.0: start}

        def watched(state: State, index: int) -> State:
            after = step(state, index)
            if index + 1 in wanted:
                self.seen[wanted[index + 1]] = after
            return after

        self.seen[1.0] = super().loop(stage, start, watched, steps=steps, **options)
        return self.seen[1.0]


def compare(lab: Lab, dense: State, student: State, masks: Masks) -> tuple[float, float, float]:
    """Distances (all weights, kept weights) and alignment of `student` to `dense`.

    Measured on validation images and adversarial images near them that fool `dense`; each net has its own statistics.
    """
    nets = [lab.model(state).eval().requires_grad_(False) for state in (dense, student, student)]
    for name, mask in masks.items():
        prune.custom_from_mask(nets[2].get_submodule(name.removesuffix(".weight")), "weight", mask)
    generator = torch.Generator().manual_seed(0)
    products: list[list[Tensor]] = [[], [], []]
    for number in range(BATCHES):
        part = lab.validation.take(slice(number * BATCH, (number + 1) * BATCH))
        images = as_float(part.images)
        near = lab.attack(nets[0], images, part.labels, name=f"measure {number}")
        for _ in range(VECTORS):
            v = torch.randn(len(images), lab.info.classes, generator=generator)
            for net, found in zip(nets, products, strict=True):
                found.append(kernel_product(net, dict(net.named_parameters()), images, near, v)[1].double().flatten())
    k_t, k_whole, k_kept = (torch.cat(found) for found in products)
    far_whole, far_kept = (float((k_s - k_t).square().sum() / k_t.square().sum()) for k_s in (k_whole, k_kept))
    return far_whole, far_kept, float(nn.functional.cosine_similarity(k_kept, k_t, dim=0))


def search(lab: Watching, pruner: AWT, kind: str) -> tuple[State, State, Masks]:
    """The dense net, the student that the search derives from it under this kind of mask, and the student's masks."""
    dense = lab.calibrated("calibrate", lab.initial(), batches=pruner.batches)
    keeps = erk(lab.shapes, lab.keep)
    largest = keep_largest_by_layer({name: dense[name].abs() for name in lab.shapes}, keeps)
    begin = draw(lab.shapes, keeps, lab.generator("random mask")) if kind == "random" else largest
    return dense, *pruner.find(lab, dense, begin, fixed=kind != "awt")


def searched(lab: Watching, dense: State) -> dict[float, tuple[State, Masks]]:
    """The student and its masks at each snapshot of the search that `lab` watched, by the share of steps done."""
    snapshots = {}
    for share, state in sorted(lab.seen.items()):
        masks = {name: state[f"mask/{name}"] for name in lab.shapes}
        snapshots[share] = masked(dense | {name: state[f"value/{name}"] for name in masks}, masks), masks
    return snapshots


def trained(lab: Lab, start: State, epochs: int, masks: Masks | None = None) -> dict[int, State]:
    """`start` after each part of its training with the protocol's recipe, by the number of epochs done."""
    net, states, wanted = lab.model(start), {}, {max(1, round(share * epochs)) for share in TRAINED}

    def look(_: str, done: float, __: float) -> None:
        if done in wanted:
            states[int(done)] = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    plan = TrainingPlan(lab.protocol.training, lab.protocol.threat, epochs)
    result = fit(net, plan, lab.train, lab.validation, seed=lab.job.seed, masks=masks, report=look)
    if plan.recipe.one_step:
        refuse_collapse(result.curve, chance=1 / lab.info.classes)
    return states


def measure(lab: Watching, pruner: AWT, kind: str, teachers: dict[int, dict[int, State]]) -> Iterator[Moment]:
    """Phase, share, steps or epochs done, distances and alignment for each moment of one kind of mask.

    `teachers`: the dense net's training by seed, computed once for all masks and sparsities of a protocol.
    """
    dense, student, masks = search(lab, pruner, kind)
    for share, (state, seen) in searched(lab, dense).items():
        yield "search", share, round(share * lab.searched), *compare(lab, dense, state, seen)
    epochs, seed = lab.left, lab.job.seed
    if seed not in teachers:
        teachers[seed] = trained(lab, dense, epochs)
    states = trained(lab, student, epochs, masks)
    for done, teacher in teachers[seed].items():
        yield "training", done / epochs, done, *compare(lab, teacher, states[done], masks)


def table(rows: list[Row], phase: str) -> str:
    """A Markdown table of one protocol and sparsity: one row per mask, one column per moment, over all seeds."""
    first, cell = rows[0], CELLS[phase]
    seeds = sorted({row.seed for row in rows})
    moments, unit = sorted({row.done for row in rows if row.phase == phase}), "step" if phase == "search" else "epoch"
    title = f"{first.protocol}, {first.sparsity:g}, seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"
    lines = [f"| {title} | {' | '.join(f'{unit} {done}' for done in moments)} |", "|---" * (len(moments) + 1) + "|"]
    for kind, name in KINDS.items():
        here = [[row for row in rows if (row.mask, row.phase, row.done) == (kind, phase, done)] for done in moments]
        lines.append(f"| {name} | {' | '.join(map(cell, here))} |")
    return "\n".join(lines)


def boards(rows: list[Row]) -> list[list[Row]]:
    """`rows` by protocol and sparsity."""
    keys = dict.fromkeys((row.protocol, row.sparsity) for row in rows)
    return [[row for row in rows if (row.protocol, row.sparsity) == key] for key in keys]


def plot(rows: list[Row]) -> bytes:
    """An SVG, one row per protocol and sparsity: distance in search (all weights, kept weights) and in training."""
    import matplotlib as mpl

    mpl.rcParams |= {"backend": "svg", "svg.hashsalt": "kernel-distance", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot as plt

    groups = boards(rows)
    figure, axes = plt.subplots(len(groups), 3, figsize=(11, 2.8 * len(groups)), squeeze=False, layout="constrained")
    panels = (
        ("search", "distance_all", "all weights", "steps of the search", "linear"),
        ("search", "distance", "kept weights", "steps of the search", "linear"),
        ("training", "distance", "kept weights", "epochs of training", "log"),
    )
    looks = {"awt": ("#0072b2", "o", "-"), "magnitude": ("#d55e00", "s", "--"), "random": ("#009e73", "^", ":")}
    for group, line in zip(groups, axes, strict=True):
        for axis, (phase, what, over, unit, scale) in zip(line, panels, strict=True):
            for kind, (colour, marker, dash) in looks.items():
                mine = [row for row in group if (row.mask, row.phase) == (kind, phase)]
                done = sorted({row.done for row in mine})
                seeds = [[getattr(row, what) for row in mine if row.done == moment] for moment in done]
                middle = [(geometric_mean if scale == "log" else mean)(values) for values in seeds]
                axis.plot(done, middle, color=colour, marker=marker, ms=4, ls=dash, label=KINDS[kind])
                for moment, values in zip(done, seeds, strict=True):
                    axis.plot([moment] * len(values), values, color=colour, marker=marker, ms=2.5, ls="", alpha=0.5)
            title = f"{group[0].protocol}, sparsity {group[0].sparsity:g}\n{phase}, {over}"
            axis.set(xlabel=unit, ylabel="relative squared distance", yscale=scale, title=title)
            axis.set_ylim(bottom=0 if scale == "linear" else None)
            axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    return b"\n".join(line.rstrip() for line in drawn.getvalue().splitlines()) + b"\n"


def code_of(rules: Protocol, pruner: AWT) -> str:
    """A hash of what else a measurement depends on than seed, sparsity and mask: rules, options and code."""
    source = sha256_of(Path(prunebench.pruners.awt.__file__).read_bytes())
    facts = [rules.sha256, asdict(pruner), source, machine.training_code(), BATCH, BATCHES, VECTORS]
    return sha256_of(canonical_json(facts))[:12]


def read(path: Path) -> list[Row]:
    """The rows of the CSV at `path`, none if there is no such file."""
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Row(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Row)}) for row in csv.DictReader(lines)]


def write_rows(folder: Path, rows: list[Row]) -> None:
    """Write the CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[f.name for f in fields(Row)], *map(astuple, rows)])
    write_bytes(folder / "kernel-distance.csv", text.getvalue().encode())


def write_page(folder: Path, rows: list[Row], made_on: str) -> None:
    """Write tables and plot."""
    write_bytes(folder / "kernel-distance.svg", plot(rows))
    groups = boards(rows)
    parts = [part for phase in CAPTIONS for part in (CAPTIONS[phase], *(table(group, phase) for group in groups))]
    write_bytes(folder / "kernel-distance.md", "\n\n".join([*parts, made_on, ""]).encode())


CELLS: dict[str, Callable[[list[Row]], str]] = {
    "search": lambda rows: f"{mean(row.distance_all for row in rows):.3f} / {mean(row.distance for row in rows):.3f}",
    "training": lambda rows: f"{geometric_mean(r.distance for r in rows):.2f} ({mean(r.alignment for r in rows):.2f})",
}
CAPTIONS = {
    "search": (
        "During the search: relative squared distance of the student's mixed tangent kernel to that of the dense net "
        "at initialisation, over all weights (what the search minimises) / over the kept weights (what training "
        "will move), mean over seeds. A net without a kernel has the distance 1."
    ),
    "training": (
        "During the training that follows: distance (and alignment) over the kept weights, against the dense net "
        "trained adversarially from the same initialisation for the same number of epochs of the same schedule; the "
        "geometric mean over seeds (and the mean). A net without a kernel has the distance 1, a match the alignment 1."
    ),
}


def main() -> None:
    """Measure missing cells and write all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", nargs="+")
    parser.add_argument("--sparsity", type=float, action="append", help="0.95 by default")
    parser.add_argument("--seed", type=int, action="append", help="0 by default")
    parser.add_argument("--search", type=float, default=AWT.search, help="the search's share of the budget")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pruner = AWT(search=asked.search)
    rows = read(asked.out / "kernel-distance.csv")
    made_on = "torch {torch}, Python {python}, one thread of {cpu}.".format_map(machine.env(torch.device("cpu")))
    for rules in map(load, asked.protocol):
        code, teachers = code_of(rules, pruner), dict[int, dict[int, State]]()
        rows = [row for row in rows if row.protocol != rules.name or row.code == code]
        for sparsity, seed, kind in product(asked.sparsity or [0.95], asked.seed or [0], KINDS):
            cell = (rules.name, sparsity, seed, kind)
            if any((row.protocol, row.sparsity, row.seed, row.mask) == cell for row in rows):
                continue
            with tempfile.TemporaryDirectory() as stages:
                job = Job(pruner="awt", sparsity=sparsity, seed=seed)
                lab = Watching(job, rules, Store(asked.data), Computed(Path(stages)))
                found = [Row(*cell, *moment, code) for moment in measure(lab, pruner, kind, teachers)]  # type: ignore[arg-type]
            rows += found
            write_rows(asked.out, rows)
            print(*cell, *(f"{row.phase} {row.done}: {row.distance:.3f}" for row in found), flush=True)
    write_page(asked.out, rows, made_on)


if __name__ == "__main__":
    try:
        main()
    except PrunebenchError as error:
        raise SystemExit(f"kernel_distance: {error}") from None
