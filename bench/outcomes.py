"""The arrays beside a record: raw outcomes per image, adversarial images, pairs for the site; and their counts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prunebench.bench.beyond import Kinds
from prunebench.bench.bounded import arrays_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_known
from prunebench.bench.names import OUTCOMES, PAIRS, PROPOSALS
from prunebench.bench.record import LARGEST, Record

LARGEST_ARRAYS = 2**28  # bytes of images, packed or unpacked
_LABEL = np.dtype("<i2")


def outcomes_path(record: Path) -> Path:
    """The path of the raw outcomes of the record at `record`."""
    return record.with_suffix(f".{OUTCOMES}")


def proposals_path(record: Path) -> Path:
    """The path of the adversarial images of the record at `record`, if they were kept."""
    return record.with_suffix(f".{PROPOSALS}")


def pairs_path(record: Path) -> Path:
    """The path of the dozen image pairs that the site shows for the record at `record`, if any."""
    return record.with_suffix(f".{PAIRS}")


def pack_outcomes(
    labels: np.ndarray,
    predicted: np.ndarray,
    survived: Mapping[str, np.ndarray],
    weak: Mapping[str, np.ndarray],
    curve: Mapping[str, np.ndarray],
    beyond: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The bytes of an outcomes file: true labels, predicted labels, and per attack the images that survive it.

    `labels`, `predicted`: int64, shape (n,). `survived`: bool, shape (n,), in the order that the attacks ran. `weak`,
    by attack, and `curve`, by eps: the same, but each attack runs alone on all images. `beyond`: more arrays, under the
    names of `Beyond.kinds`.
    """
    arrays: dict[str, np.ndarray] = {"labels": labels.astype(_LABEL), "predicted": predicted.astype(_LABEL)}
    arrays |= {"clean": labels == predicted}
    for kind, bits in (("survived", survived), ("weak", weak), ("curve", curve)):
        arrays |= {f"{kind}/{name}": standing.astype(bool) for name, standing in bits.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **(beyond or {}))  # type: ignore[arg-type]
    return buffer.getvalue()


def recount(path: Path, record: Record) -> dict[str, np.ndarray]:
    """Check the counts of `record`, loaded from `path`, against its raw outcomes, which are returned by name.

    Raises PrunebenchError when the outcomes are missing, are not those that the record names, or do not add up to its
    counts.
    """
    raw, score = outcomes_path(path), record.score
    arrays = load_arrays(raw, record.outcomes, f"the outcomes of {path}")
    beside = {f"weak/{attack}": count for attack, count in score.weak.items()}
    beside |= {f"curve/{point.eps}": point.robust for point in score.curve}
    bits = dict.fromkeys(["clean", *(f"survived/{attack}" for attack in score.survived), *beside], np.dtype(bool))
    kinds = {"labels": _LABEL, "predicted": _LABEL, **bits}
    wanted: Kinds = {name: (kind, (score.n,)) for name, kind in kinds.items()}
    wanted |= record.beyond.kinds(score.n)
    found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise PrunebenchError(f"{raw} and {path} differ in the images or attacks of {odd}; score the net again.")
    standing = arrays["labels"] == arrays["predicted"]
    if not np.array_equal(standing, arrays["clean"]):
        raise PrunebenchError(f"{raw} contradicts itself: its clean bits do not match its labels; score the net again.")
    counted: list[tuple[str, float | None, float | None]] = [("clean", int(standing.sum()), score.clean)]
    for attack in score.survived:
        standing = standing & arrays[f"survived/{attack}"]
        counted.append((attack, int(standing.sum()), score.survived[attack]))
    counted.append(("robust", int(standing.sum()), score.robust))
    counted += [(what, int((arrays["clean"] & arrays[what]).sum()), stated) for what, stated in beside.items()]
    counted += [(what, *pair) for what, pair in record.beyond.recounted(arrays, standing).items()]
    for what, count, stated in counted:
        if count != stated:
            raise PrunebenchError(f"{path} says {what} = {stated}, but its outcomes say {count}; score the net again.")
    return arrays


def complete(path: Path, record: Record) -> None:
    """Check that all files that `record`, loaded from `path`, names are beside it: outcomes, proposals and pairs.

    Raises PrunebenchError as `recount` does, and when proposals or pairs are missing or have another sha256.
    """
    recount(path, record)
    for beside, sha256, what in (
        (proposals_path(path), record.proposals, "the proposals"),
        (pairs_path(path), record.pairs, "the pairs"),
    ):
        if sha256 is not None:
            way_out = "restore the file or score the net again"
            read_known(beside, sha256, f"{what} of {path}", LARGEST_ARRAYS, missing=way_out, other=way_out)


def standing_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which images of an outcomes file are correct when clean and survive all of AutoAttack: bool, shape (n,)."""
    survived = [bits for name, bits in arrays.items() if name.startswith("survived/")]
    return np.logical_and.reduce([arrays["labels"] == arrays["predicted"], *survived])


def best_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which images of an outcomes file also survive the attacks for the best-known number: bool, shape (n,)."""
    best = [bits for name, bits in arrays.items() if name.startswith("best/")]
    return np.logical_and.reduce([standing_of(arrays), *best])


def load_arrays(path: Path, sha256: str, what: str, largest: int = LARGEST) -> dict[str, np.ndarray]:
    """The arrays in the file `path`, described as `what`, with this sha256 and at most `largest` bytes unpacked.

    Raises PrunebenchError if the file is missing, too large, damaged or has another sha256. Nothing is ever unpickled.
    """
    data = read_known(path, sha256, what, largest, missing="restore the file", other="restore the file or score again")
    try:
        return arrays_of(data, largest)
    except ValueError as error:
        raise PrunebenchError(f"{path} is not {what} ({error}); restore it or score the net again.") from None
