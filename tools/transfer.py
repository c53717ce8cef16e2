"""Try the adversarial images of every net of a grid on the survivors of every other, as an extra.

    prunebench run digits-linf --pruner dense --pruner imp --sparsity 0.95 --best --keep-proposals --out runs
    python -m tools.transfer runs/records

No attack runs. The images that fooled each net lie beside its record; the referee measures them on the survivors of the
others, one forward per image and net. Records do not change: what the suite `best-1` means stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunebench.bench import adversarials
from prunebench.bench.attacks.base import Model
from prunebench.bench.beside import net_path
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import best_of, proposals_path, recount, standing_of
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.record import Record, load_all
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.referee import Referee, batch_size

Kept = Mapping[str, Tensor]  # by source: float32 (n, c, h, w); its image itself where nothing fooled the source


@dataclass(frozen=True)
class Transferred:
    """One net under the adversarial images of the others.

    `robust`: the survivors of AutoAttack; `best`: those of the suite for the best-known number too, None if it did not
    run; `left`: those that remain. `by`: how many each source was the first to fool, by the name of its record.
    """

    robust: int
    best: int | None
    left: int
    by: Mapping[str, int]


def grid(folder: Path) -> dict[Path, Record]:
    """The records of one protocol below `folder` that have adversarial images beside them.

    Raises PrunebenchError if there are fewer than two, or records of several protocols.
    """
    found = {path: record for path, record in load_all(folder).items() if isinstance(record, Record)}
    kept = {path: record for path, record in sorted(found.items()) if record.proposals is not None}
    if len(kept) < 2:
        raise PrunebenchError(
            f"{len(kept)} of {len(found)} records below {folder} have adversarial images, but two are needed; "
            "run the grid with --keep-proposals."
        )
    if len({(record.protocol.sha256, record.score.n) for record in kept.values()}) > 1:
        raise PrunebenchError(f"The records below {folder} follow several protocols; name the folder of one.")
    return kept


def images_of(records: Mapping[Path, Record], images: Tensor, radius: float) -> dict[str, Tensor]:
    """What fooled each net of `records`, in place of the test images, by the name of its record."""
    found = {}
    for path, record in records.items():
        assert record.proposals is not None
        kept = adversarials.load(proposals_path(path), record.proposals, images.numpy(), radius)
        found[path.stem] = images.index_copy(0, torch.from_numpy(kept.index), torch.from_numpy(kept.images))
    return found


def transferred(path: Path, record: Record, rules: Protocol, test: Split, kept: Kept) -> Transferred:
    """The survivors of the net of `record`, at `path`, under the images `kept` of all nets but its own.

    Raises PrunebenchError if the outcomes beside the record are not its own.
    """
    arrays = recount(path, record)
    net = open_net(net_path(path))
    referee = Referee(net.module, rules, batch_size(rules, net.header.arch, "cpu"), torch.device("cpu"))
    images = as_float(test.images)
    best = record.beyond.best
    standing = torch.from_numpy(standing_of(arrays) if best is None else best_of(arrays))
    by = {}
    for source, proposals in kept.items():
        tried = (standing & (proposals != images).flatten(1).any(1)).nonzero().squeeze(1)
        if source == path.stem or not len(tried):
            continue

        def replay(
            model: Model,
            images: Tensor,
            labels: Tensor,
            threat: Threat,
            *,
            generator: torch.Generator,
            stored: Tensor = proposals[tried],
        ) -> Tensor:
            return stored

        fooled = referee.fooled(replay, images[tried], test.labels[tried], 0).fooled
        by[source] = int(fooled.sum())
        standing[tried[fooled]] = False
    return Transferred(record.score.robust, None if best is None else best.robust, int(standing.sum()), by)


def table(found: Mapping[Path, Transferred]) -> str:
    """The results as Markdown."""
    lines = ["| net | AutoAttack | best known | and the grid's images | most from |", "|---|---|---|---|---|"]
    for path, of in found.items():
        most = max(of.by, key=lambda name: of.by[name], default="")
        named = f"{most} ({of.by[most]})" if most and of.by[most] else "none"
        lines.append(f"| {path.stem} | {of.robust} | {'' if of.best is None else of.best} | {of.left} | {named} |")
    return "\n".join(lines)


def measured(folder: Path, data: Path) -> dict[Path, Transferred]:
    """Every net below `folder` under the images of all others."""
    records = grid(folder)
    first = next(iter(records.values()))
    if (rules := first.known_rules) is None:
        raise PrunebenchError(f"The records below {folder} do not hold their rules; score their nets again.")
    test = Store(data).testing(rules.data, first.score.n)
    kept = images_of(records, as_float(test.images), rules.threat.radius)
    with exact_float32():
        return {path: transferred(path, record, rules, test, kept) for path, record in records.items()}


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with the records of a grid")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with the data sets")
    asked = parser.parse_args()
    try:
        found = measured(asked.folder, asked.data)
    except PrunebenchError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
