"""Dense references: the nets of RobustBench's model zoo, opened so that the referee can score them."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.bench import machine
from prunebench.bench.checkpoint import Header, Net
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError, Refused, cut, reason, unknown
from prunebench.bench.facts import Layer, NetId
from prunebench.bench.files import canonical_json, digest_outside, open_outside, sha256_of
from prunebench.bench.interop.autoattack_shim import provide_autoattack
from prunebench.bench.job import Job
from prunebench.bench.models import prunable
from prunebench.bench.protocol import Protocol

PREFIX = "robustbench:"
LARGEST = 4 * 2**30  # bytes; the zoo's largest net takes about 2 GB
_DATA, _NORMS = ("cifar10", "cifar100"), ("Linf", "L2")
# Errors that a hostile file, or one that is not a checkpoint, can raise while it is read without running code.
_UNREADABLE = (
    UnpicklingError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    OverflowError,
    RecursionError,
    struct.error,
)


def open_zoo(name: str, rules: Protocol | None, store: Store, *, mirror: str | None = None) -> Net:
    """The zoo's net `name`, with or without "robustbench:", for the data and norm of `rules`, with weights counted.

    The weights are in `robustbench/DATA/NORM/NAME.pt` below the store's root, the zoo's own layout. Missing files are
    downloaded from the zoo's address, or from `mirror`/DATA/NORM/NAME.pt. The net's id is the sha256 of that file (of
    the list of sha256s, if a model has several files), its architecture "robustbench:NAME", its job's sparsity 0. No
    code in a file is run. Raises PrunebenchError without `rules`, for a name that the zoo lacks for them, and when a
    download fails. Raises Refused for weights that are not a checkpoint or belong to another net.
    """
    name = name.removeprefix(PREFIX)
    if rules is None:
        raise PrunebenchError(
            f"{name} was not made for a protocol of prunebench; name a protocol (--protocol cifar10-linf)."
        )
    data, norm = rules.data, rules.threat.norm
    if data not in _DATA or norm not in _NORMS:
        raise PrunebenchError(
            f"RobustBench's zoo has models for {' and '.join(_DATA)}, and {rules.name} uses {data}; name a "
            "protocol on one of these, such as --protocol cifar10-linf."
        )
    root = store.root / "robustbench"
    files = _sources(name, data, norm, root / data / norm)
    hashes, tensors = [], []
    for path, source in files.items():
        if not path.exists():
            _fetch(path, f"{mirror.rstrip('/')}/{data}/{norm}/{path.name}" if mirror else source)
        hashes.append(_digest(path))
        tensors += _tensors(path, str(path))
    module = _load(name, data, norm, root)
    _refuse_others(module, tensors, name)
    info = store.info(data)
    layers = tuple(
        Layer(name=key, shape=tuple(weight.shape), nonzero=int(torch.count_nonzero(weight)))
        for key, weight in prunable(module).items()
    )
    arch = f"{PREFIX}{name}"
    header = Header(
        arch=arch,
        classes=info.classes,
        shape=info.shape,
        protocol=rules,
        job=Job(pruner=arch, sparsity=0.0, seed=0),
        source=None,
        train_sha256=None,
        stages=(),
    )
    return Net(
        module,
        header,
        NetId(
            sha256=hashes[0] if len(hashes) == 1 else sha256_of(canonical_json(hashes)),
            arch=arch,
            prunable=sum(layer.size for layer in layers),
            nonzero=sum(layer.nonzero for layer in layers),
            layers=layers,
        ),
    )


def _models(data: str, norm: str) -> dict[str, dict[str, Any]]:
    """The zoo's table for a data set and a norm."""
    if machine.package("robustbench") is None:  # torchattacks bundles an old copy under that name
        raise PrunebenchError(
            "RobustBench's zoo needs the package robustbench; in a checkout of prunebench, run `pip install "
            "'.[robustbench]'` in an environment without torchattacks."
        )
    provide_autoattack()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    table: dict[str, dict[str, Any]] = model_dicts[BenchmarkDataset(data)].get(ThreatModel(norm), {})
    return table


def _sources(name: str, data: str, norm: str, folder: Path) -> dict[Path, str]:
    """The files of a model, each with its download address in the zoo."""
    models = _models(data, norm)
    if name not in models:
        raise unknown("RobustBench model", name, models, f"These are RobustBench's models for {data} and {norm}.")
    ids = models[name]["gdrive_id"]
    if ids is None:
        raise PrunebenchError(
            f"RobustBench loads {name} through timm from another hub, which is not supported; choose another model."
        )
    several = isinstance(ids, list)
    names = [f"{name}.pt_m{i}.pt" for i in range(len(ids))] if several else [f"{name}.pt"]
    addresses = [f"https://drive.google.com/uc?id={each}" for each in (ids if several else [ids])]
    return {folder / file: address for file, address in zip(names, addresses, strict=True)}


def _fetch(path: Path, source: str) -> None:
    """Download a checkpoint; if the file is not one, nothing is left at `path`."""
    import gdown
    import requests
    from gdown.exceptions import FileURLRetrievalError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as aside:
            file = Path(aside, path.name)
            gdown.download(source, str(file), quiet=True)
            _tensors(file, f"The file from {source}")
            file.replace(path)
    except (requests.RequestException, FileURLRetrievalError) as error:
        raise PrunebenchError(
            f"Could not download {source} ({reason(error)}); download it by other means and put it at {path}."
        ) from None
    except OSError as error:
        raise PrunebenchError(f"Could not write {path} ({error.strerror or error}); name another data root.") from error


def _digest(path: Path) -> str:
    return digest_outside(path, "a net of the zoo", LARGEST, way_out="fetch it again", complain=Refused)


def _tensors(path: Path, name: str) -> list[Tensor]:
    """All tensors of a checkpoint, however nested; `name` names the file in errors."""
    try:
        with open_outside(path, "a net of the zoo", LARGEST, way_out="fetch it again", complain=Refused) as file:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise Refused(
            "format",
            f"{name} cannot be read as plain tensors ({cut(reason(error), 200)}), and nothing else is unpickled; "
            "fetch it again or choose another model.",
        ) from None
    found = _nested(checkpoint)
    if not found:
        raise Refused("format", f"{name} holds no tensors; fetch it again or choose another model.")
    return found


def _nested(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _nested(part)]


def _load(name: str, data: str, norm: str, root: Path) -> nn.Module:
    from robustbench.utils import load_model

    try:
        module: nn.Module = load_model(name, model_dir=root, dataset=data, threat_model=norm)
    except (RuntimeError, LookupError, TypeError) as error:
        said = cut(" ".join(str(error).split()), 200)
        raise Refused(
            "keys", f"The weights of {name} in {root} do not fit its net ({said}); fetch them again."
        ) from None
    return module.float().eval().requires_grad_(False)


def _refuse_others(module: nn.Module, tensors: list[Tensor], name: str) -> None:
    """Check that every convolution and linear weight is the file's, because the zoo loads some models non-strictly."""
    known: dict[torch.Size, list[Tensor]] = {}
    for tensor in tensors:
        known.setdefault(tensor.shape, []).append(tensor)
    for key, weight in prunable(module).items():
        if not any(torch.equal(tensor.float(), weight) for tensor in known.get(weight.shape, [])):
            raise Refused(
                "keys",
                f"The layer {key!r} of {name} has weights that are not in its file, so they would be random; "
                "fetch the weights again or choose another model.",
            )
