"""The tensors of the nets beside records, read without torch: kept positions, and the sizes of kept weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from prunebench.bench.beside import net_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_known
from prunebench.bench.record import LARGEST_NET, Record
from prunebench.leaderboard.board import Row

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the kept weights, at whose quantiles a row is described
TINY = 0.01  # smaller weights hardly move a logit

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # numpy 1 has no bitwise_count
_WAY_OUT = "restore the net of this record"


@dataclass(frozen=True)
class Mask:
    """The kept positions of a net: per layer, `bits` packed eight to a byte, and how many of `sizes` are `kept`."""

    bits: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]
    kept: tuple[int, ...]


def mask_of(path: Path, record: Record) -> Mask | None:
    """The mask of the net beside the record at `path`; None if there is no net.

    Raises PrunebenchError for another net than the record's, and for masks that do not have its layers and counts.
    """
    found = _tensors(path, record, "bitmask")
    if found is None:
        return None
    layers = record.net.layers
    for layer, mask in zip(layers, found, strict=True):
        fits = mask.dtype == np.uint8 and mask.shape == ((layer.size + 7) // 8,)
        if not fits or ones(mask) != layer.nonzero:
            raise PrunebenchError(
                f"{net_path(path)} does not keep {layer.nonzero} weights in {layer.name}, as {path} says; {_WAY_OUT}."
            )
    return Mask(tuple(found), tuple(layer.size for layer in layers), tuple(layer.nonzero for layer in layers))


def ones(bits: np.ndarray) -> int:
    """How many bits of an array of bytes are set."""
    return int(_ONES[bits].sum(dtype=np.int64))


@dataclass(frozen=True)
class Sizes:
    """How large kept weights are: the size at each of SHARES, and the share of weights smaller than TINY, in [0, 1].

    A weight's size is its absolute value over the root mean square of the kept weights of its layer, because the scale
    of a layer before batch norm does not matter.
    """

    quantiles: tuple[float, ...]
    tiny: float


def sizes(row: Row, records: Mapping[Path, Record], source: Path) -> Sizes | None:
    """The sizes of the kept weights of `row`, mean over seeds; None unless all its nets lie below `source`.

    Raises PrunebenchError for another net than the record's, and for values that do not fit its layers.
    """
    found = [_relative(source / path, records[Path(path)]) for path in row.records]
    known = [each for each in found if each is not None and each.size]
    if len(known) < len(found):
        return None
    quantiles = np.mean([np.quantile(each, SHARES) for each in known], axis=0)
    return Sizes(tuple(map(float, quantiles)), float(np.mean([np.mean(each < TINY) for each in known])))


def _relative(path: Path, record: Record) -> np.ndarray | None:
    """The size of every kept weight of the net beside the record at `path`; None if there is no net."""
    found = _tensors(path, record, "values")
    if found is None:
        return None
    relative = [np.empty(0)]
    for layer, values in zip(record.net.layers, found, strict=True):
        if values.dtype != np.float32 or values.shape != (layer.nonzero,) or not np.isfinite(values).all():
            raise PrunebenchError(
                f"{net_path(path)} does not hold {layer.nonzero} weights of {layer.name}, as {path} says; {_WAY_OUT}."
            )
        if layer.nonzero:
            relative.append(np.abs(values) / np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    return np.concatenate(relative)


def _tensors(path: Path, record: Record, kind: str) -> Sequence[np.ndarray] | None:
    """The tensor of this `kind` of each layer of the net beside the record at `path`; None if there is no net."""
    file = net_path(path)
    if not file.exists():
        return None
    data = read_known(file, record.net.sha256, f"the net of {path}", LARGEST_NET, missing=_WAY_OUT, other=_WAY_OUT)
    try:
        tensors = load(data)
        return [tensors[f"{layer.name}.{kind}"] for layer in record.net.layers]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise PrunebenchError(f"{file} holds no masks of its layers ({error}); {_WAY_OUT}.") from None
