"""What a robust ticket gives the large net that inherits its weights, against a random ticket and against none.

    python -m tools.ticket_study --out docs/tickets.md --work runs/tickets

Trains the dense net, and `iwi-dense` with an adversarial and with a random ticket, each with the three remainders, on
the digits under seeds that no board uses. Each net is attacked by APGD-CE on the validation images, which no training
uses: a study may not look at the test images. The published records answer the same question by AutoAttack, for the
large net after its last cut. Rows are compared seed by seed. A killed study resumes from --work, and --report writes
the page from the nets that are finished. The rows that answer the question come first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from prunebench.bench import machine
from prunebench.bench.attacks.apgd import apgd_ce
from prunebench.bench.attacks.base import within
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.files import write_bytes, write_json
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, distribution
from prunebench.bench.models import prunable
from prunebench.bench.protocol import load
from prunebench.bench.record import Record, load_record
from prunebench.bench.stats import SeedTest, by_seed
from prunebench.pruners import resolve

SEEDS = tuple(range(100, 108))
RULES = "digits-linf"
DENSE, ROBUST, RANDOM = "dense", "iwi-dense", "iwi-dense:ticket=random"
FIRST = (ROBUST, RANDOM, DENSE)
LATER = tuple(
    f"{spec}{',' if ':' in spec else ':'}remainder={remainder}"
    for remainder in ("init", "small")
    for spec in (ROBUST, RANDOM)
)
# Contrasts: a row, the row that it is compared with, and the question.
CONTRASTS = (
    (ROBUST, RANDOM, "robust ticket or random one"),
    (ROBUST, DENSE, "a ticket or none, at the same budget"),
    (RANDOM, DENSE, "a random ticket or none"),
    (LATER[0], LATER[1], "robust or random, remainder init"),
    (LATER[2], LATER[3], "robust or random, remainder small"),
    (LATER[0], ROBUST, "remainder init or zero"),
    (LATER[2], ROBUST, "remainder small or zero"),
)
# The same of published records: sparsity, a row, the row that it is compared with.
PUBLISHED = (
    (0.0, "iwi-dense", "dense"),
    *(
        (sparsity, "iwi", other)
        for other in ("iwi:ticket=random", "imp", "magnitude")
        for sparsity in (0.9, 0.95, 0.98)
    ),
)


def measured(lab: Lab, state: State) -> dict[str, Any]:
    """How many validation images the net gets right, clean and under APGD-CE, and its weights' distribution."""
    net = lab.model(state).eval().requires_grad_(False)
    part: Split = lab.validation
    images, labels = as_float(part.images), part.labels
    threat, start = lab.protocol.threat, torch.Generator().manual_seed(0)
    proposals = within(apgd_ce(net, images, labels, threat, generator=start), images, threat)
    with torch.no_grad():
        clean = net(images).argmax(1) == labels
        standing = clean & (net(proposals).argmax(1) == labels)
    weights = distribution(prunable(net).values())
    return {"clean": int(clean.sum()), "robust": int(standing.sum()), "images": len(labels)} | weights


def trained(spec: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """The measurement of the net that `spec` trains under `seed`, from the folder `work` if it is there."""
    rules, job = load(RULES), Job(pruner=spec.partition(":")[0], sparsity=0.0, seed=seed)
    lab = Lab(job, rules, Store(data), Computed(work / "stages"), resolve=lambda name: resolve(name).pruner)
    began = time.perf_counter()
    state = resolve(spec).pruner(job, lab)
    seconds = time.perf_counter() - began
    return measured(lab, state) | {"seconds": round(seconds, 1), "spent": lab.meter.spent}


def place(work: Path, spec: str, seed: int) -> Path:
    """Where the measurement of this net lies."""
    return work / "results" / f"{spec.replace(':', '-').replace(',', '-')}-seed{seed}.json"


def finished(work: Path, seeds: tuple[int, ...]) -> dict[str, dict[int, dict[str, Any]]]:
    """The measurements in `work`, by row and seed."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for spec in (*FIRST, *LATER):
        there = {seed: place(work, spec, seed) for seed in seeds}
        rows[spec] = {seed: json.loads(path.read_bytes()) for seed, path in there.items() if path.exists()}
    return rows


def compared(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], what: str) -> SeedTest | None:
    """The rows compared seed by seed in `what`, "clean" or "robust"; None with fewer than two common seeds."""
    common = sorted(one.keys() & other.keys())
    if len(common) < 2:
        return None
    return by_seed([one[seed][what] - other[seed][what] for seed in common], one[common[0]]["images"])


def _points(test: SeedTest | None) -> str:
    if test is None or test.gap is None or test.low is None or test.high is None:
        return "not measured"
    return f"{100 * test.gap:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"


def tables(rows: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """The two tables of the page, in Markdown: the rows, and their contrasts."""
    lines = ["| row | seeds | robust % | clean % | Hoyer | below 0.001 |", "|---|---|---|---|---|---|"]
    for spec, found in rows.items():
        if found:
            values, n = list(found.values()), len(found)
            robust, clean = (100 * sum(v[key] / v["images"] for v in values) / n for key in ("robust", "clean"))
            hoyer, below = (sum(v[key] for v in values) / n for key in ("hoyer", "below 0.001"))
            lines.append(f"| `{spec}` | {n} | {robust:.1f} | {clean:.1f} | {hoyer:.3f} | {100 * below:.1f} % |")
    lines += [
        "",
        "| question | row | against | seeds | robust, points | p | clean, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, other, question in CONTRASTS:
        robust, clean = (compared(rows[one], rows[other], what) for what in ("robust", "clean"))
        if robust is not None:
            lines.append(
                f"| {question} | `{one}` | `{other}` | {robust.seeds} | {_points(robust)} | {robust.p:.2g} "
                f"| {_points(clean)} |"
            )
    return lines


def published(folder: Path) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """The counts of the records in `folder`, by row and sparsity, then by seed."""
    rows: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = load_record(path)
        if isinstance(record, Record):
            found = {"robust": record.score.robust, "clean": record.score.clean, "images": record.score.n}
            rows.setdefault((record.job.label, record.job.sparsity), {})[record.job.seed] = found
    return rows


def board(rows: dict[tuple[str, float], dict[int, dict[str, Any]]]) -> list[str]:
    """The contrasts of published records, in Markdown."""
    lines = [
        "| sparsity | row | against | seeds | robust, points | p | clean, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for sparsity, one, other in PUBLISHED:
        robust, clean = (
            compared(rows.get((one, sparsity), {}), rows.get((other, sparsity), {}), what)
            for what in ("robust", "clean")
        )
        if robust is not None:
            lines.append(
                f"| {sparsity:g} | `{one}` | `{other}` | {robust.seeds} | {_points(robust)} | {robust.p:.2g} "
                f"| {_points(clean)} |"
            )
    return lines


def page(rows: dict[str, dict[int, dict[str, Any]]], records: list[str], answer: str, where: str) -> str:
    """The page of the study, in Markdown.

    `records`: the table of published records. `answer`: what people concluded. `where`: the machine.
    """
    nets = sum(map(len, rows.values()))
    seconds = sum(value["seconds"] for found in rows.values() for value in found.values())
    return "\n".join(
        [
            "# What a robust ticket gives a large net",
            "",
            answer,
            "",
            "## By the records of the board",
            "",
            f"Nets of `{RULES}` on its 500 test images, under AutoAttack. Intervals here and below are 95 %",
            "intervals of the mean difference in points, from a t-test paired by seed, not corrected for the number of",
            "questions.",
            "",
            *records,
            "",
            "## On validation images",
            "",
            f"{nets} nets of `{RULES}` at sparsity 0, their tickets at .9, at the same budget, under seeds from",
            f"{SEEDS[0]} on, which no board uses. Robust: the share of the 200 validation images that survive",
            f"APGD-CE at the protocol's eps. All trainings took {seconds / 60:.0f} minutes on {where}.",
            "",
            "    python -m tools.ticket_study --out docs/tickets.md --work runs/tickets",
            "",
            *tables(rows),
            "",
        ]
    )


def _answer(path: Path) -> str:
    """What people wrote in the page at `path` between its title and its first table; nothing if there is no page."""
    return path.read_text().partition("\n\n")[2].partition("\n\n## ")[0] if path.exists() else ""


def main() -> None:
    """Train what is missing, and write the page after every net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--work", type=Path, required=True, help="stages and measurements, to resume from")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--records", type=Path, default=Path("leaderboard/records") / RULES)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--report", action="store_true", help="write the page from the nets that are finished")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = SEEDS[: given.seeds]
    wanted = [] if given.report else [(spec, seed) for rows in (FIRST, LATER) for seed in seeds for spec in rows]
    where = f"a core of {machine.env(torch.device('cpu'))['cpu']}, shared with other work"
    for spec, seed in wanted:
        path = place(given.work, spec, seed)
        if not path.exists():
            write_json(path, trained(spec, seed, given.data, given.work))
            print(spec, seed, path.read_text().replace("\n", " "), flush=True)
    told = page(finished(given.work, seeds), board(published(given.records)), _answer(given.out), where)
    write_bytes(given.out, told.encode())


if __name__ == "__main__":
    main()
