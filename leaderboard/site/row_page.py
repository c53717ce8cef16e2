"""The records of one row -> the content of its page: counts, flags, costs, layers, provenance, pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prunebench.bench import stats
from prunebench.bench.adversarials import load_pairs
from prunebench.bench.outcomes import pairs_path
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Row
from prunebench.leaderboard.render.text import points, resampled, verdict

MOST_PAIRS = 6  # per record, on its page
MISSING = "not recorded"
_CHANNELS = (1, 3)  # of images that can be shown: grey, or red, green and blue


@dataclass(frozen=True)
class Grid:
    """A table: what its rows are, a title per column, and for each row its name and a cell per column."""

    caption: str
    head: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Picture:
    """A test image and its adversarial image, as data URIs of PNG files."""

    index: int
    label: int
    predicted: int
    original: str
    adversarial: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of one seed, or in `missing` the reason why there are none."""

    seed: int
    pairs: tuple[Picture, ...]
    missing: str | None


def counts(records: Sequence[Record]) -> Grid:
    """The number of correct images, clean and after each attack of AutoAttack in turn, with Wilson intervals."""
    rows = {"clean": [record.score.clean for record in records]}
    for attack in records[0].score.survived:
        rows[f"after {attack}"] = [record.score.survived[attack] for record in records]
    return _counted("AutoAttack, attack after attack", records, rows)


def beside(records: Sequence[Record]) -> Grid:
    """The number of correct images after each weak attack alone, with AutoAttack's count for comparison."""
    rows = {f"{name} alone": counts for name, counts in _lined_up([r.score.weak for r in records]).items()}
    return _counted("Weak attacks beside AutoAttack", records, rows | {"AutoAttack": [r.score.robust for r in records]})


def curve(records: Sequence[Record]) -> Grid:
    """The security curve in numbers."""
    points = _lined_up([{f"eps {point.eps}": point.robust for point in r.score.curve} for r in records])
    return _counted("Security curve", records, {"eps 0": [r.score.clean for r in records]} | points)


def comparisons(board: Board, row: Row) -> Grid:
    """Every contrast that involves the row, on either side."""
    rows = tuple(
        (f"{c.pruner} minus {c.control}", (points(c), resampled(c), verdict(c), f"{c.adjusted:.3f}", str(len(c.seeds))))
        for c in board.contrasts
        if c.sparsity == row.sparsity and row.pruner in (c.pruner, c.control)
    )
    return Grid("Comparisons", "Robust, points", ("Difference", "Bootstrap", "Verdict", "p, Holm", "Seeds"), rows)


def costs(records: Sequence[Record]) -> Grid:
    """The cost of each training stage, and of scoring."""

    def cell(passes: int, seconds: float | None) -> str:
        return f"{passes:,} passes, " + ("time unknown" if seconds is None else f"{seconds:,.1f} s")

    stages: dict[str, list[str]] = {}
    for i, record in enumerate(records):
        for stage in record.cost.stages:
            cells = stages.setdefault(stage.name, ["none"] * len(records))
            said = cell(stage.passes, stage.seconds)
            cells[i] = said if cells[i] == "none" else f"{cells[i]}; {said}"
    rows = [(name, tuple(cells)) for name, cells in stages.items()]
    rows.append(("whole training", tuple(cell(r.cost.train_passes, r.cost.train_seconds) for r in records)))
    rows.append(("scoring", tuple(cell(r.cost.score_passes, r.cost.score_seconds) for r in records)))
    return Grid("Cost by stage", "Stage", _seeds(records), tuple(rows))


def layers(records: Sequence[Record]) -> Grid:
    """The share of zeros in each prunable tensor, counted in the nets."""
    every = {layer.name: layer for record in records for layer in record.net.layers}
    found = [{layer.name: layer for layer in record.net.layers} for record in records]
    rows = []
    for name, layer in every.items():
        sparsities = (
            f"{1 - of[name].nonzero / of[name].size:.4f}, {of[name].nonzero:,} kept" if name in of else MISSING
            for of in found
        )
        rows.append((name, ("x".join(map(str, layer.shape)), f"{layer.size:,}", *sparsities)))
    whole = tuple(f"{record.net.sparsity:.4f}, {record.net.nonzero:,} kept" for record in records)
    rows.append(("all", ("", f"{records[0].net.prunable:,}", *whole)))
    return Grid("Sparsity by layer", "Layer", ("Shape", "Weights", *_seeds(records)), tuple(rows))


def provenance(records: Sequence[Record], paths: Sequence[Path]) -> Grid:
    """The origin of the numbers: rules, files and machines."""
    facts: list[dict[str, object]] = [
        {
            "record": path.as_posix(),
            "record sha256": r.sha256,
            "protocol": f"{r.protocol.name}, version {r.protocol.version}",
            "protocol sha256": r.protocol.sha256,
            "official": r.official,
            **{f"option {name}": value for name, value in r.job.options.items()},
            "architecture": r.net.arch,
            "net sha256": r.net.sha256,
            "test images": r.data.name,
            "test images sha256": r.data.sha256,
            "training images sha256": r.data.train_sha256,
            "outcomes sha256": r.outcomes,
            "proposals sha256": r.proposals,
            "pairs sha256": r.pairs,
            "attacks that ran": ", ".join(r.score.ran),
            "rejected": r.score.rejected,
            "kernel only": r.score.kernel_only,
            **_arithmetic(r),
            "batch, shard": f"{r.score.batch}, {r.score.shard}",
            "device": r.cost.device,
            **{f"env {name}": value for name, value in r.env.items()},
            **{f"note {name}": value for name, value in r.notes.items()},
        }
        for r, path in zip(records, paths, strict=True)
    ]
    names = dict.fromkeys(name for fact in facts for name in fact)
    rows = tuple((name, tuple(_said(fact.get(name)) for fact in facts)) for name in names)
    return Grid("Provenance", "What", _seeds(records), rows)


def _arithmetic(record: Record) -> dict[str, object]:
    arithmetic = record.attack_arithmetic
    return {} if arithmetic.exact else {"attacks in": arithmetic.name, "attacked again in float32": arithmetic.repaired}


def pictures(record: Record, path: Path) -> Pictures:
    """The image pairs stored beside the record at `path`.

    Raises PrunebenchError for a pairs file other than that named in the record.
    """
    seed = record.job.seed
    if record.pairs is None:
        return Pictures(seed, (), "The scoring kept no pictures.")
    if not pairs_path(path).exists():
        return Pictures(seed, (), f"{pairs_path(path).name} is missing beside the record.")
    pairs = load_pairs(pairs_path(path), record.pairs)
    channels, *size = pairs.originals.shape[1:]
    if channels not in _CHANNELS or 0 in size:
        return Pictures(seed, (), f"Images of shape {pairs.originals.shape[1:]} cannot be shown.")
    shown = [
        Picture(int(index), int(label), int(predicted), _png(original), _png(adversarial))
        for index, label, predicted, original, adversarial in zip(
            pairs.index[:MOST_PAIRS],
            pairs.labels[:MOST_PAIRS],
            pairs.predicted[:MOST_PAIRS],
            pairs.originals[:MOST_PAIRS],
            pairs.adversarial[:MOST_PAIRS],
            strict=True,
        )
    ]
    return Pictures(seed, tuple(shown), None)


def _png(image: np.ndarray) -> str:
    """A uint8 image of shape (c, h, w) as the data URI of a PNG file of the same size."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _lined_up(counts: Sequence[Mapping[str, int]]) -> dict[str, Sequence[int | None]]:
    return {name: [of.get(name) for of in counts] for name in dict.fromkeys(name for of in counts for name in of)}


def _counted(caption: str, records: Sequence[Record], rows: Mapping[str, Sequence[int | None]]) -> Grid:
    def cell(count: int | None, n: int) -> str:
        if count is None:
            return MISSING
        low, high = stats.wilson(count, n)
        return f"{count} of {n}: {100 * count / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    cells = tuple(
        (name, tuple(cell(count, record.score.n) for count, record in zip(counts, records, strict=True)))
        for name, counts in rows.items()
    )
    return Grid(caption, "Images right", _seeds(records), cells)


def _seeds(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(f"Seed {record.job.seed}" for record in records)


def _said(value: object) -> str:
    if value is None:
        return MISSING
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
