"""Which options of the pruners do best on validation images, under seeds that no board uses?

Trains each pruner as `prunebench train` does, and attacks its net with APGD-CE (100 steps) on the protocol's validation
images, which no training sees. Test images are never opened. So hyperparameters can be chosen for all methods with
equal care, and the log shows how.

    python -m tools.choose digits-linf --sparsity 0.98 --seed 100 101 102 --pruner @docs/candidates.txt

`@FILE` stands for the lines of that file; docs/candidates.txt has every method's options that were in question.

Measurements go to choices.csv in the folder --log, and its page choices.md is made from all of them. What has a result
there, from the same rules, options and source file of the pruner, is not measured again; other processes may write to
the same log. Nets stay in --out, where an interrupted training resumes.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev

import torch

from prunebench.bench import stats
from prunebench.bench.attacks.apgd import apgd_ce
from prunebench.bench.checkpoint import open_net
from prunebench.bench.cli.options import store_of
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.files import sole_user, write_bytes
from prunebench.bench.grid.run import grid
from prunebench.bench.grid.task import train
from prunebench.bench.job import Job
from prunebench.bench.protocol import Protocol, load
from prunebench.bench.spec import read as read_spec
from prunebench.bench.spec import source_of
from prunebench.leaderboard.roles import role_of

FIRST = 100  # the smallest seed for choices; boards use smaller ones
HEAD = f"""# Options compared on validation images

Made by `python -m tools.choose`. Each net is trained by the protocol under a seed of at least {FIRST}, and attacked
with APGD-CE on the protocol's validation images; no test image is used. `source` is the sha256 of the pruner's file.
Robust is the mean over seeds, with their standard deviation. A difference is over the seeds that both have, with a 95 %
interval by Student's t. The last table of a board says which options did best. If a method has no rows on a
board, options that gain 3 points or more become its defaults. A method with rows keeps its defaults, and better options
get a row of their own. APGD-CE alone can flatter nets whose gradients are masked: of three nets of `harp` at .99, it
left 64.2 % robust, and the whole of AutoAttack 53.5 %."""


@dataclass(frozen=True)
class Row:
    """A net's result: of `images` validation images, `clean` are right and `robust` stay so under APGD-CE.

    `rules`: the protocol's sha256 and `source`: of the pruner's file, 12 hex digits each. `failed`: why there is no
    net; empty if there is one.
    """

    protocol: str
    rules: str
    sparsity: float
    pruner: str
    seed: int
    source: str
    images: int
    clean: int
    robust: int
    failed: str

    @property
    def cell(self) -> tuple[str, str, float, str, int, str]:
        """What is measured once: everything but the results."""
        return self.protocol, self.rules, self.sparsity, self.pruner, self.seed, self.source


def measured(spec: str, job: Job, rules: Protocol, out: Path, store: Store) -> Row:
    """Train the net of `job` below `out`, or take it from there, and attack it on the validation images."""
    about = rules.name, rules.sha256[:12], job.sparsity, job.label, job.seed, source_of(spec)[:12]
    _, validation = store.training(rules.data, validation=rules.validation, train=rules.train)
    images, labels = as_float(validation.images), validation.labels
    try:
        path = train(spec, job, rules, out / rules.name / job.name, out / "stages", store, device="cpu")
    except PrunebenchError as error:
        return Row(*about, images=len(labels), clean=0, robust=0, failed=printable(str(error)))
    net = open_net(path).module
    adversarial = apgd_ce(net, images, labels, rules.threat, generator=torch.Generator().manual_seed(job.seed))
    with torch.no_grad():
        right = [net(x).argmax(1) == labels for x in (images, adversarial)]
    clean, robust = int(right[0].sum()), int((right[0] & right[1]).sum())
    return Row(*about, images=len(labels), clean=clean, robust=robust, failed="")


def read(path: Path) -> list[Row]:
    """The rows of the CSV at `path`, none if there is no such file."""
    kinds = {"int": int, "float": float, "str": str}
    text = io.StringIO(path.read_bytes().decode() if path.exists() else "", newline="")
    return [Row(**{f.name: kinds[str(f.type)](line[f.name]) for f in fields(Row)}) for line in csv.DictReader(text)]


def keep(log: Path, row: Row) -> None:
    """Add `row` to the log, in place of an older one of its cell, and write the page again."""
    with sole_user(log, wait=True):
        rows = [other for other in read(log / "choices.csv") if other.cell != row.cell]
        rows = sorted([*rows, row], key=lambda one: one.cell)
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
        write_bytes(log / "choices.csv", text.getvalue().encode())
        write_bytes(log / "choices.md", page(rows).encode())


def page(rows: Sequence[Row]) -> str:
    """The Markdown page of all measurements, a table per protocol and sparsity, the most robust pruner first."""
    parts = [HEAD]
    for board in sorted({(row.protocol, row.rules, row.sparsity) for row in rows}):
        mine = [row for row in rows if (row.protocol, row.rules, row.sparsity) == board]
        parts.append(f"## {board[0]}, sparsity {board[2]:g}\n\nRules {board[1]}.")
        parts += [table(mine), *([chosen] if (chosen := best_options(mine)) else [])]
    return "\n\n".join(parts) + "\n"


def _by_row(rows: Sequence[Row]) -> dict[tuple[str, str], dict[int, Row]]:
    """Nets by pruner and source, then by seed, without those that failed; the most robust pruner first."""
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if not row.failed:
            groups.setdefault((row.pruner, row.source), {})[row.seed] = row
    ranked = sorted(groups, key=lambda group: (-_robust(groups[group]), group))
    return {group: groups[group] for group in ranked}


def _robust(nets: Mapping[int, Row]) -> float:
    return fmean(net.robust / net.images for net in nets.values())


def best_options(rows: Sequence[Row]) -> str:
    """The Markdown table of the best options of each method on one board; empty where no method has two.

    Options that turn a method into its own control do not count, and the best has all the seeds that the default has.
    Of one pruner in several sources, that with the most seeds counts, and of those the most robust.
    """
    methods: dict[str, dict[str, dict[int, Row]]] = {}
    for (label, _), nets in _by_row(rows).items():
        if _is_method(label):
            tried = methods.setdefault(label.partition(":")[0], {})
            tried[label] = max(tried.get(label, {}), nets, key=len)
    lines = []
    for name, tried in sorted(methods.items()):
        if len(tried) > 1 and (default := tried.get(name)) is not None:
            label = max(
                (one for one in tried if default.keys() <= tried[one].keys()), key=lambda one: _robust(tried[one])
            )
            gap = "" if label == name else difference(default, tried[label])
            lines.append(f"| `{name}` | {len(tried)} | `{label}` | {100 * _robust(tried[label]):.1f} | {gap} |")
    head = ["| method | tried | best | robust % | to the default |", "|---|---:|---|---:|---:|"]
    return "\n".join([*head, *lines]) if lines else ""


def _is_method(label: str) -> bool:
    spec = read_spec(label)
    return role_of(Job(pruner=spec.head, options=dict(spec.options), sparsity=0.5, seed=0)) == "method"


def table(rows: Sequence[Row]) -> str:
    """The Markdown table of one board; nets that failed follow below it."""
    groups = _by_row(rows)
    ranked = list(groups)
    lines = ["| pruner | source | robust % | by seed | clean % | to the first |", "|---|---|---:|---|---:|---:|"]
    for group in ranked:
        mine = groups[group]
        shares = {seed: 100 * row.robust / row.images for seed, row in sorted(mine.items())}
        spread = f" ({stdev(shares.values()):.1f})" if len(shares) > 1 else ""
        seeds = ", ".join(f"{seed}: {share:.1f}" for seed, share in shares.items())
        clean = fmean(100 * row.clean / row.images for row in mine.values())
        gap = "" if group == ranked[0] else difference(groups[ranked[0]], mine)
        lines.append(
            f"| `{group[0]}` | {group[1][:7]} | {fmean(shares.values()):.1f}{spread} | {seeds} | {clean:.1f} | {gap} |"
        )
    failed = [f"- `{row.pruner}`, {row.source[:7]}, seed {row.seed}: {row.failed}" for row in rows if row.failed]
    return "\n".join(lines + (["", *failed] if failed else []))


def difference(first: dict[int, Row], other: dict[int, Row]) -> str:
    """The mean difference of `other` to `first` in points over the seeds of both, with its interval if there is one."""
    common = sorted(first.keys() & other.keys())
    images = next(iter(first.values())).images
    test = stats.by_seed([other[seed].robust - first[seed].robust for seed in common], images)
    if test.gap is None:
        return "no common seed"
    if test.low is None or test.high is None:
        return f"{100 * test.gap:+.1f}"
    return f"{100 * test.gap:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"


def main() -> None:
    """Measure what is missing, seed after seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, fromfile_prefix_chars="@"
    )
    parser.add_argument("protocol")
    parser.add_argument("--sparsity", type=float, nargs="+", required=True)
    parser.add_argument("--seed", type=int, nargs="+", required=True, help=f"{FIRST} or above")
    parser.add_argument("--pruner", nargs="+", required=True, metavar="SPEC")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/choose"))
    parser.add_argument("--log", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    rules = load(asked.protocol)
    if bad := [seed for seed in asked.seed if seed < FIRST or seed in rules.seeds]:
        raise PrunebenchError(f"Seeds {bad} belong to boards; choose options under seeds of {FIRST} or above.")
    torch.set_num_threads(1)
    store = store_of(asked.data)
    for spec, job in grid(asked.pruner, asked.sparsity, asked.seed):
        cell = (rules.name, rules.sha256[:12], job.sparsity, job.label, job.seed, source_of(spec)[:12])
        with sole_user(asked.out / rules.name / job.name, wait=True):  # another process may be at the same net
            if any(row.cell == cell and not row.failed for row in read(asked.log / "choices.csv")):
                continue
            row = measured(spec, job, rules, asked.out, store)
            keep(asked.log, row)
        print(f"{job.name}: {row.failed or f'{row.robust} of {row.images} robust, {row.clean} clean'}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except PrunebenchError as error:
        raise SystemExit(f"choose: {error}") from None
