"""The adversarial images that a scoring keeps: all of them to replay a claim, and a dozen for display."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.outcomes import LARGEST_ARRAYS, load_arrays

STEPS = 127  # int8 steps from an image to the edge of the ball


@dataclass(frozen=True)
class Proposals:
    """One adversarial image per test image in `index`: int64 (k,) and float32 (k, c, h, w) in [0, 1]."""

    index: np.ndarray
    images: np.ndarray


def rounded(adversarial: np.ndarray, originals: np.ndarray, radius: float) -> np.ndarray:
    """`adversarial` with every offset truncated to a multiple of radius / 127, so it stays inside the ball."""
    return originals + _offsets(adversarial, originals, radius).astype(np.float32) * np.float32(radius / STEPS)


def _offsets(adversarial: np.ndarray, originals: np.ndarray, radius: float) -> np.ndarray:
    # Rounding must be idempotent, although a float32 sum may be just short of its step: so rint first, then trunc.
    steps = (adversarial.astype(np.float64) - originals) * (STEPS / radius)
    near = np.rint(steps)
    return np.where(np.abs(steps - near) < 1e-3, near, np.trunc(steps)).clip(-STEPS, STEPS).astype(np.int8)


def pack(proposals: Proposals, originals: np.ndarray, radius: float, whole: np.ndarray) -> bytes:
    """The bytes of a proposals file; `originals`: the clean images of the proposals, in the same order.

    `whole`: bool (k,), the images to keep as float32 because rounding would make them harmless. The others are
    stored as int8 offsets in multiples of radius / 127.
    """
    offsets = _offsets(proposals.images[~whole], originals[~whole], radius)
    return _packed(
        index=proposals.index[~whole],
        offset=offsets,
        whole_index=proposals.index[whole],
        whole=proposals.images[whole],
    )


def load(path: Path, sha256: str, images: np.ndarray, radius: float) -> Proposals:
    """The proposals in the file `path` for the test images `images`, float32 (n, c, h, w), sorted by index.

    Raises PrunebenchError when the file has another sha256 or does not fit the images.
    """
    arrays = load_arrays(path, sha256, "the recorded file of proposals", LARGEST_ARRAYS)
    shape, n = images.shape[1:], len(images)
    kinds = {
        "index": (np.int64, ()),
        "offset": (np.int8, shape),
        "whole_index": (np.int64, ()),
        "whole": (np.float32, shape),
    }
    found = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items() if array.ndim}
    if len(found) < len(arrays) or found != {name: (np.dtype(kind), rest) for name, (kind, rest) in kinds.items()}:
        raise PrunebenchError(f"{path} does not hold proposals for images of shape {shape}; score the net again.")
    index = np.concatenate([arrays["index"], arrays["whole_index"]])
    lengths = len(arrays["index"]) == len(arrays["offset"]) and len(arrays["whole_index"]) == len(arrays["whole"])
    if not lengths or len(set(index.tolist())) != len(index) or not ((index >= 0) & (index < n)).all():
        raise PrunebenchError(f"{path} has invalid indices for the {n} test images; score the net again.")
    near = images[arrays["index"]] + arrays["offset"].astype(np.float32) * np.float32(radius / STEPS)
    order = np.argsort(index)
    return Proposals(index[order], np.concatenate([near, arrays["whole"]])[order])


@dataclass(frozen=True)
class Pairs:
    """A few test images and their adversarial versions, rounded to 8 bits for display.

    `index`, `labels`, `predicted` (the net's label for the adversarial image): int64 (k,). `originals`,
    `adversarial`: uint8 (k, c, h, w).
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    originals: np.ndarray
    adversarial: np.ndarray


def pack_pairs(pairs: Pairs) -> bytes:
    """The bytes of a pairs file."""
    return _packed(**vars(pairs))


def load_pairs(path: Path, sha256: str) -> Pairs:
    """The pairs in the file `path`. Raises PrunebenchError when the file has another sha256."""
    arrays = load_arrays(path, sha256, "the recorded file of image pairs")
    shapes = {name: array.shape for name, array in arrays.items()}
    kinds = {name: array.dtype for name, array in arrays.items()}
    numbers, pictures = ("index", "labels", "predicted"), ("originals", "adversarial")
    if kinds != {**dict.fromkeys(numbers, np.dtype(np.int64)), **dict.fromkeys(pictures, np.dtype(np.uint8))} or (
        len({shapes[name] for name in numbers}) != 1
        or shapes["originals"] != shapes["adversarial"]
        or len(shapes["originals"]) != 4
        or shapes["originals"][:1] != shapes["index"]
    ):
        raise PrunebenchError(f"{path} does not hold pairs of images; score the net again.")
    return Pairs(**arrays)


def _packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
