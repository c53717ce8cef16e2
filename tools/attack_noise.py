"""How often does an image change its verdict although the net stays the same? The noise that claims are tested against.

AutoAttack *standard* runs on the first test images of each net under the net's own protocol, and then again with one
thing changed: the attack's seed; the batch shape (half the images per shard, which draws other random numbers too); the
net itself in place of the fast one; two threads. An image that survives one of two runs and not the other changed.

    python -m tools.attack_noise claims/*/net.safetensors mnist/net.safetensors=64/32 --data DATA --work runs/noise \
        --out docs/claims

`NET=64/32`: 64 images, and 32 of them on the net itself and on two threads, which take longer; `NET`: all test
images. Writes attack-noise.csv and attack-noise.md to the folder `--out`. Each shard that was attacked is kept in
`--work`, so that a run may be killed, and nets added later.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from math import ceil
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.executor import Fast
from prunebench.bench.files import canonical_json, sha256_of, write_bytes, write_json
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.cascade import attack_shard
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import Referee, batch_size

KINDS = ("seed", "batch shape", "plain net", "threads")
OTHER_DRAWS = KINDS[:2]  # attacks draw other random numbers, as on another kind of device
CONFIDENCE = 0.99


class Itself(Fast):
    """Runs the net itself instead of the accelerated copy that attacks would query."""

    def _pieces_for(self, shape: Sequence[int]) -> None:
        """Use neither kernels nor folded norms."""


@dataclass(frozen=True)
class Row:
    """Image counts of one net under one kind of change.

    `standing` and `again`: robust in the first and in the changed run. `fallen`: robust only in the first run;
    `risen`: only in the changed run. `labels`: images whose clean label differs. `seconds`: of the changed run.
    """

    net: str
    arch: str
    sparsity: float
    kind: str
    images: int
    standing: int
    again: int
    fallen: int
    risen: int
    labels: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """The findings of one run on the first images: clean labels, int64 (n,), and which are robust, bool (n,)."""

    labels: Tensor
    robust: Tensor
    seconds: float


def pooled(rows: Iterable[Row]) -> tuple[int, int, float, float]:
    """Changes, chances, the rate of change per robust image, and its upper bound (one-sided, Clopper-Pearson).

    Each image that is robust in one run is a chance to be fooled in the other, so chances are standing + again.
    """
    rows = list(rows)
    changes, chances = sum(row.fallen + row.risen for row in rows), sum(row.standing + row.again for row in rows)
    bound = float(stats.beta.ppf(CONFIDENCE, changes + 1, chances - changes))  # Clopper and Pearson 1934, Biometrika 26
    return changes, chances, changes / chances, bound


def worst(rows: Iterable[Row]) -> tuple[int, int, float, float]:
    """`pooled` over changes that draw other random numbers, as may happen between two machines."""
    return pooled(row for row in rows if row.kind in OTHER_DRAWS)


def noisiest(rows: Iterable[Row], least: int = 1000) -> tuple[str, float]:
    """The net with the highest rate of `worst`, and that rate, among nets with at least `least` chances."""
    nets: dict[str, list[Row]] = {}
    for row in rows:
        nets.setdefault(f"{row.net} {row.sparsity:.2f}", []).append(row)
    rates = {name: worst(group)[2] for name, group in nets.items() if worst(group)[1] >= least}
    return max(rates.items(), key=lambda item: item[1])


def assumed(rows: Sequence[Row]) -> float:
    """The rate that `claims.verdict` assumes: the pooled bound or the noisiest net's rate, rounded up to 0.001."""
    return ceil(1000 * max(worst(rows)[3], noisiest(rows)[1])) / 1000


def measured(net: Net, kind: str, count: int, store: Store, work: Path) -> Run:
    """The run of `kind` ("first" or one of KINDS) on the first `count` test images of the net's own protocol."""
    rules = net.header.protocol
    if kind == "seed":
        rules = rules.model_copy(update={"attack_seed": rules.attack_seed + 1})
    if kind == "batch shape":
        rules = rules.model_copy(update={"shard": rules.shard // 2})
    torch.set_num_threads(2 if kind == "threads" else 1)
    device = torch.device("cpu")
    referee = Referee(net.module, rules, batch_size(rules, net.header.arch, device.type), device)
    if kind == "plain net":
        referee.fast = Itself(referee.net)
    test = store.testing(rules.data, count)
    with exact_float32():
        labels = referee.steady_logits(as_float(test.images)).argmax(1)
        parts = [_shard(referee, net, test, labels, number, kind, work) for number in range(len(referee.shards(count)))]
    torch.set_num_threads(1)
    return Run(labels, torch.cat([part.robust for part in parts]), sum(part.seconds for part in parts))


def _shard(referee: Referee, net: Net, test: Split, labels: Tensor, number: int, kind: str, work: Path) -> Run:
    """One shard under all attacks, cached in `work`."""
    rules, shard = referee.rules, referee.shards(len(test))[number]
    facts = [net.id.sha256, test.take(shard).sha256, rules.sha256, kind, referee.batch, number, machine.attack_code()]
    path = work / f"{sha256_of(canonical_json(facts))}.json"
    if path.exists():
        kept = json.loads(path.read_bytes())
        return Run(labels[shard], torch.tensor(kept["robust"], dtype=torch.bool), kept["seconds"])
    began = time.perf_counter()
    right, ranked = (labels == test.labels)[shard], tuple(suite_of(referee.rules).ranked)
    robust = attack_shard(referee, test, number, right, Journal(None, []), only=ranked).standing[ranked[-1]]
    seconds = time.perf_counter() - began
    write_json(path, {"facts": facts, "robust": robust.int().tolist(), "seconds": seconds})
    return Run(labels[shard], robust, seconds)


def rows_of(path: Path, count: int | None, few: int | None, store: Store, work: Path) -> Iterable[Row]:
    """The rows of the net in the file `path`, on its first `count` images (`few` in the slower runs)."""
    net = open_net(path)
    job = net.header.job
    total = len(store.testing(net.header.protocol.data, net.header.protocol.test))
    for kind in KINDS:
        images = (few if kind in ("plain net", "threads") else count) or total
        first, other = (measured(net, which, images, store, work) for which in ("first", kind))
        before, after = first.robust, other.robust
        yield Row(
            f"{net.header.protocol.name} {job.label}",
            net.header.arch,
            net.sparsity,
            kind,
            images,
            int(before.sum()),
            int(after.sum()),
            int((before & ~after).sum()),
            int((after & ~before).sum()),
            int((first.labels != other.labels).sum()),
            other.seconds,
        )


def table(rows: Sequence[Row]) -> str:
    """The Markdown table, and the pooled rates by kind, by architecture and overall."""
    heads = ["net", "architecture", "sparsity", "changed", "images", "robust", "again", "fallen", "risen", "relabelled"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        counts = (row.images, row.standing, row.again, row.fallen, row.risen, row.labels)
        lines.append(f"| {row.net} | {row.arch} | {row.sparsity:.2f} | {row.kind} | {' | '.join(map(str, counts))} |")
    head = f"| pooled | changes | chances | rate per robust image | upper {CONFIDENCE:.0%} bound |"
    lines += ["", head, "|---|--:|--:|--:|--:|"]
    groups = {"all": rows, "other random numbers": [row for row in rows if row.kind in OTHER_DRAWS]}
    groups |= {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    groups |= {arch: [row for row in rows if row.arch == arch] for arch in sorted({row.arch for row in rows})}
    groups |= {row.net: [other for other in rows if other.net == row.net and other.kind in OTHER_DRAWS] for row in rows}
    for name, group in groups.items():
        if not group:
            continue
        changes, chances, rate, bound = pooled(group)
        lines.append(f"| {name} | {changes} | {chances} | {rate:.5f} | {bound:.5f} |")
    env = machine.env(torch.device("cpu"))
    where = f"{env['cpu']}, one thread (two where threads changed), with torch {env['torch']}"
    return "\n".join([*lines, "", f"Measured on {where}.", ""])


def read(path: Path) -> list[Row]:
    """The rows of the CSV file `path`."""
    kinds = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [Row(*(kinds[str(f.type)](line[f.name]) for f in fields(Row))) for line in csv.DictReader(file)]


def write(rows: Sequence[Row], out: Path) -> None:
    """Write the rows as CSV and Markdown to `out`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    writer.writerows([round(v, 4) if isinstance(v, float) else v for v in astuple(row)] for row in rows)
    write_bytes(out / "attack-noise.csv", buffer.getvalue().encode())
    write_bytes(out / "attack-noise.md", table(rows).encode())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="NET[=IMAGES[/FEWER]]")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args, rows = parser.parse_args(), list[Row]()
    for text in args.nets:
        name, _, counts = text.partition("=")
        count, few = ([int(part) for part in counts.split("/")] * 2)[:2] if counts else (None, None)
        for row in rows_of(Path(name), count, few, Store(args.data), args.work):
            print(row, flush=True)
            rows.append(row)
            write(rows, args.out)


if __name__ == "__main__":
    main()
