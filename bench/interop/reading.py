"""The tensors in a checkpoint trained elsewhere, read without running any code in it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from prunebench.bench.bounded import unzipped_size
from prunebench.bench.errors import Refused
from prunebench.bench.interop.pickled import refuse_explosive
from prunebench.bench.interop.shown import quoted, short
from prunebench.bench.record import LARGEST_NET as LARGEST

_NESTED = ("state_dict", "model_state_dict", "model", "net")


def tensors_of(data: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors by name in a safetensors file, or in a torch.save file that holds only tensors."""
    pickled = data[:2] == b"PK" or (data[:1] == b"\x80" and data[2:8] != b"\0" * 6)  # no header is that long
    held: Any
    try:
        held = _unpickled(data) if pickled else load_safetensors(data)
    except SafetensorError as error:
        raise Refused(
            "format", f"{str(file)!r} is neither a safetensors file ({short(error)}) nor what torch.save writes."
        ) from None
    except Exception as error:  # noqa: BLE001  foreign bytes may break the reader anywhere; the result is discarded
        raise Refused(
            "format",
            f"{str(file)!r} cannot be read as plain tensors ({short(error)}), and no code in it was run; save "
            "only net.state_dict() with torch.save, or write safetensors.",
        ) from None
    for key in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held:
        raise Refused("format", f"{str(file)!r} holds {type(held).__name__}, not a state dict; save net.state_dict().")
    for name, value in held.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise Refused("keys", f"{str(file)!r} holds {quoted(name)} of type {kind}, not a tensor; leave it out.")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise Refused(
                "shapes",
                f"{str(file)!r} holds {quoted(name)} in an unusual tensor format; save it as a dense float32 tensor.",
            )
    if any(name.endswith(".bitmask") for name in held):
        raise Refused("format", f"{str(file)!r} is already a net file of prunebench; score it directly.")
    return held


def _unpickled(data: bytes) -> Any:
    """The content of a torch.save file, by torch's restricted reader: tensors and plain containers, no other code."""
    if data[:2] == b"PK" and (size := unzipped_size(data)) > LARGEST:
        raise ValueError(f"it unpacks to {size} bytes")
    refuse_explosive(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old formats
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
