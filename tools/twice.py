"""Does any attack of the suite `best`, alone and with twice its budget, fool images that the suite missed?

    python -m tools.twice leaderboard/records/digits-linf/{dense-s0,hydra-s0.98,imp-s0.98}-seed0.json

Each attack runs twice, with two seeds that the suite does not use, on the images that survive the suite in the record.
Prints a Markdown table of what it finds, and processor seconds of AutoAttack and of the suite's short attacks on the
same images: their ratio is what `best` costs on an honest net.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from prunebench.bench.attacks.suite import Listed
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beside import net_path
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import recount
from prunebench.bench.record import Record, load_record
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.referee import Referee, batch_size
from prunebench.bench.seeds import derive


def found(referee: Referee, listed: Listed, part: Split, seed: int) -> np.ndarray:
    """Which images of `part` an attack fools: bool (n,)."""
    if not len(part):
        return np.zeros(0, bool)
    images = as_float(part.images)
    return referee.fooled(listed.attack, images, part.labels, seed, surrogate=listed.surrogate).fooled.numpy()


def row(path: Path, data: Path) -> tuple[str, dict[str, int], float, float]:
    """The name of the record at `path`, images found twice over by attack, and the seconds of both suites.

    Raises PrunebenchError for a record without a best-known number.
    """
    record = load_record(path)
    if not isinstance(record, Record) or record.beyond.best is None or (rules := record.known_rules) is None:
        raise PrunebenchError(f"{path} has no best-known number; score its net with --best.")
    arrays, net = recount(path, record), open_net(net_path(path))
    referee = Referee(net.module, rules, batch_size(rules, net.header.arch, "cpu"), torch.device("cpu"))
    test, suite = Store(data).testing(rules.data, record.score.n), suite_of(rules)
    referee.answers(as_float(test.images[: referee.batch]))
    last = [*record.beyond.best.by][-1]
    left = test.take(torch.from_numpy(arrays[f"best/{last}"]).nonzero().squeeze(1))
    counts = {}
    for name, listed in suite.best.attacks.items():
        both = [found(referee, listed, left, derive(rules.attack_seed, "twice", name, again)) for again in (1, 2)]
        counts[name] = int(np.logical_or(*both).sum())
    seconds = []
    for attacks, after in ((suite.ranked, "clean"), (suite.best.short, f"survived/{suite.black_box}")):
        now, began = test.take(torch.from_numpy(arrays[after]).nonzero().squeeze(1)), time.process_time()
        for name, listed in attacks.items():
            fooled = found(referee, listed, now, derive(rules.attack_seed, "cost", name))
            now = now.take(torch.from_numpy(~fooled).nonzero().squeeze(1))
        seconds.append(time.process_time() - began)
    return record.job.name, counts, seconds[0], seconds[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="twice", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="records with nets and outcomes beside them")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| net | most found by one attack | by | AutoAttack, s | short attacks, s | ratio |")
    print("|---|---|---|---|---|---|")
    with exact_float32():
        for path in asked.records:
            name, counts, whole, short = row(path, asked.data)
            most = max(counts, key=lambda attack: counts[attack])
            cells = f"{counts[most]} | {most if counts[most] else ''} | {whole:.1f} | {short:.1f}"
            print(f"| {name} | {cells} | {short / whole:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
