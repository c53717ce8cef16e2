"""Nets as files: kept weights, bit masks and a header in safetensors, verified on writing and on opening."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import Layer, NetId, Sha256, StageCost
from prunebench.bench.files import canonical_json, read_outside, sha256_of, write_bytes
from prunebench.bench.job import Job
from prunebench.bench.mask import State, keep_count
from prunebench.bench.models import ARCHITECTURES, build, prunable
from prunebench.bench.pattern import refuse_other_patterns
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import LARGEST_NET
from prunebench.bench.schema import Strict, explain

LARGEST_HEAD = 2**22  # bytes of a header: a thousand tensors and the curve of ten thousand epochs
_KEY = "prunebench"  # the only metadata key, because safetensors writes several in no fixed order

Side = Annotated[int, Field(ge=1, le=1024)]  # keeps a hostile header from asking for terabytes


class Header(Strict):
    """What a net file says about itself: its architecture, its protocol and job, and its training cost."""

    format: Literal[1] = 1
    arch: str
    classes: Annotated[int, Field(ge=2, le=10_000)]
    shape: tuple[Side, Side, Side] = Field(strict=False)
    protocol: Protocol
    job: Job
    source: Sha256 | None
    train_sha256: Sha256 | None
    stages: tuple[StageCost, ...] = Field(strict=False)


@dataclass(frozen=True)
class Net:
    """An opened net: `module` is float32, on the CPU, in eval mode, with frozen parameters."""

    module: nn.Module
    header: Header
    id: NetId

    @property
    def sparsity(self) -> float:
        """Zeros / prunable weights as counted in the file."""
        return self.id.sparsity

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The weights counted in each layer."""
        return self.id.layers


def pack(tensors: Mapping[str, Tensor], about: Any) -> bytes:
    """`tensors` and the JSON value `about` as a safetensors file that holds a hash of both."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={_KEY: canonical_json({"about": about, "content": _content(plain, about)}).decode()})


def unpack(data: bytes, name: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the value that `pack` was given; `name` names the file in errors.

    Raises Refused (check "format") for foreign, truncated or altered bytes.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        if length > len(data):
            raise ValueError("it does not begin as one does")
        if length > LARGEST_HEAD:
            raise ValueError(f"its header has {length} bytes")
        head = json_of(data[8 : 8 + length])
        tensors = load(data)
        text = head["__metadata__"][_KEY]
        both = json_of(text.encode())
        about, content = both["about"], both["content"]
        whole = canonical_json(both).decode() == text and _content(tensors, about) == content
    except (SafetensorError, ValueError, RecursionError, OverflowError) as error:
        # Checked only now: in one valid file in 32, the header length starts with the first byte of a pickle.
        if data[:1] == b"\x80" or data[:2] == b"PK":
            raise Refused(
                "format", f"{name} is a pickle or a zip archive, which is never read; give a file that `train` wrote."
            ) from None
        raise Refused("format", f"{name} is not a whole safetensors file ({error}); copy or train it again.") from None
    except (KeyError, TypeError, AttributeError):
        raise Refused(
            "format",
            f"{name} was not written by prunebench: it lacks the header of a net file; use `prunebench import`.",
        ) from None
    if not whole:
        raise Refused(
            "format", f"{name} was altered: its content does not have the hash in its header; copy or train it again."
        )
    return tensors, about


def _content(tensors: Mapping[str, Tensor], about: Any) -> str:
    digest = hashlib.sha256(canonical_json(about))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def seal(path: Path, state: State, header: Header, *, passes_granted: int) -> None:
    """Write `state` to `path` as a net file, or refuse it.

    `state` has the keys and shapes of the architecture's state dict. Raises Refused, naming the check and the numbers,
    for wrong keys or shapes, non-finite values, more weights than the job's sparsity allows, and a cost above
    `passes_granted` sample passes.
    """
    spent = sum(stage.passes for stage in header.stages)
    if spent > passes_granted:
        raise Refused(
            "budget", f"The pruner spent {spent} of {passes_granted} granted sample passes; make its stages cheaper."
        )
    expected, names = _template(header, "The job")
    _check(state, expected, "The pruner's result")
    kept = sum(int(torch.count_nonzero(state[name])) for name in names)
    _check_sparsity(kept, sum(expected[name].numel() for name in names), header, "The pruner's result")
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in names:
            weights = tensor.detach().cpu().float().reshape(-1).numpy()
            tensors[f"{name}.bitmask"] = torch.from_numpy(np.packbits(weights != 0))
            tensors[f"{name}.values"] = torch.from_numpy(weights[weights != 0])
        else:
            tensors[name] = tensor.to(expected[name].dtype)
    data = pack(tensors, header.model_dump(mode="json"))
    _restore(data, "The net file to be written")
    write_bytes(path, data)


def open_net(path: str | Path) -> Net:
    """The net in the file `path`, loaded strictly into prunebench's architecture of that name, with weights counted.

    Raises Refused, naming the check, if the file is unreadable, is incomplete, or does not match its header.
    """
    data = read_outside(Path(path), "a net file of prunebench", LARGEST_NET, complain=Refused)
    return _restore(data, str(path))


def _restore(data: bytes, name: str) -> Net:
    tensors, about = unpack(data, name)
    try:
        header = Header.model_validate(about)
    except ValidationError as error:
        raise Refused("header", f"The header of {name} breaks the rules: {explain(error)}") from None
    expected, names = _template(header, name)
    state: State = {}
    for key in expected:
        if key in names:
            state[key] = _dense(tensors, key, expected[key].shape, name)
        elif key in tensors:
            state[key] = tensors.pop(key)
    if tensors:
        raise Refused(
            "keys",
            f"{name} has the unknown key {min(tensors)!r} ({len(tensors)} in all); give a file that `train` wrote.",
        )
    _check(state, expected, name)
    layers = tuple(
        Layer(name=key, shape=tuple(state[key].shape), nonzero=int(torch.count_nonzero(state[key]))) for key in names
    )
    counts = {"prunable": sum(layer.size for layer in layers), "nonzero": sum(layer.nonzero for layer in layers)}
    _check_sparsity(counts["nonzero"], counts["prunable"], header, name)
    module = build(header.arch, header.classes, header.shape)
    module.load_state_dict(state, strict=True)
    module.eval().requires_grad_(False)
    refuse_other_patterns(module, header.protocol, header.job.sparsity, name)
    return Net(module, header, NetId(sha256=sha256_of(data), arch=header.arch, layers=layers, **counts))


def _template(header: Header, name: str) -> tuple[State, list[str]]:
    """The state dict of the header's architecture on the meta device, and the names of its prunable tensors."""
    if header.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise Refused("arch", f"{name} names the architecture {header.arch!r}, not one of {known}.")
    try:
        with torch.device("meta"):
            net = build(header.arch, header.classes, header.shape)
    except (RuntimeError, ValueError, PrunebenchError) as error:
        raise Refused(
            "arch", f"{name} has images of {header.shape}, which {header.arch} cannot take ({error})"
        ) from None
    return dict(net.state_dict()), list(prunable(net))


def _dense(tensors: dict[str, Tensor], key: str, shape: torch.Size, name: str) -> Tensor:
    try:
        bits, values = tensors.pop(f"{key}.bitmask"), tensors.pop(f"{key}.values")
    except KeyError:
        raise Refused("keys", f"{name} lacks the bit mask or the values for {key!r} of its architecture.") from None
    size = shape.numel()
    if bits.dtype != torch.uint8 or values.dtype != torch.float32 or bits.shape != ((size + 7) // 8,):
        raise Refused("shapes", f"{name} holds {key!r} with types or sizes that do not fit the shape {tuple(shape)}.")
    mask = np.unpackbits(bits.numpy()).astype(bool)
    if mask[size:].any() or int(mask.sum()) != values.numel():
        raise Refused(
            "shapes",
            f"{name} has {values.numel()} values for {int(mask.sum())} mask bits of {key!r}; both must be equal.",
        )
    weights = torch.zeros(size)
    weights[torch.from_numpy(mask[:size])] = values
    return weights.view(shape)


def _check(state: State, expected: State, name: str) -> None:
    if missing := sorted(expected.keys() - state.keys()):
        raise Refused(
            "keys", f"{name} lacks the key {missing[0]!r} ({len(missing)} in all); return the whole state dict."
        )
    if foreign := sorted(state.keys() - expected.keys()):
        raise Refused(
            "keys", f"{name} has the unknown key {foreign[0]!r} ({len(foreign)} in all); return only the state dict."
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise Refused("shapes", f"{name} holds {key!r} as {tuple(tensor.shape)}, not {tuple(expected[key].shape)}.")
        if tensor.dtype != expected[key].dtype:
            raise Refused("shapes", f"{name} holds {key!r} as {tensor.dtype}, not {expected[key].dtype}.")
        if not torch.isfinite(tensor).all():
            raise Refused("non-finite", f"{name} holds NaN or infinite values in {key!r}; the training diverged.")


def _check_sparsity(kept: int, total: int, header: Header, name: str) -> None:
    allowed = keep_count(total, header.job.sparsity)
    if kept > allowed:
        raise Refused(
            "sparsity",
            f"{name} keeps {kept} of {total} weights; sparsity {header.job.sparsity} allows at most {allowed}; "
            "set the others to zero.",
        )
