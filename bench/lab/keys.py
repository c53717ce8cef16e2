"""Parts of a stage's key: what its result depends on, as JSON values."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunebench.bench.files import sha256_of
from prunebench.bench.protocol import Threat
from prunebench.bench.recipe import Training


def rules_of(recipe: Training, threat: Threat) -> list[object]:
    """The training's rules and its threat."""
    return [recipe.model_dump(mode="json"), threat.model_dump(mode="json")]


def source_of(code: Callable[..., object] | type) -> str:
    """The hash of the files that define `code`: of a class, also those of the classes that it is built on."""
    parts = [part for part in inspect.getmro(code) if part is not object] if isinstance(code, type) else [code]
    return sha256_of(b"".join(Path(file).read_bytes() for file in dict.fromkeys(map(inspect.getfile, parts))))


def plain(facts: Mapping[str, Any]) -> dict[str, object]:
    """A scheme's facts as JSON values: dicts of tensors by their digests."""

    def tensors(value: object) -> bool:
        return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())

    return {name: digest(value) if tensors(value) else value for name, value in facts.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The hash of named tensors, 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
