"""Checkpoints trained elsewhere: read without running their code, matched by name, sealed as net files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunebench.bench import collapse
from prunebench.bench.checkpoint import Header, Net, open_net, seal
from prunebench.bench.data import Store
from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.files import read_outside, sha256_of
from prunebench.bench.interop.matching import MEAN, STD, matched
from prunebench.bench.interop.reading import tensors_of
from prunebench.bench.job import Job
from prunebench.bench.mask import State
from prunebench.bench.models import build, prunable
from prunebench.bench.names import NET
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import LARGEST_NET as LARGEST

PRUNER = "import"


@dataclass(frozen=True)
class Imported:
    """A sealed checkpoint: its path, and how each of its tensors was matched: (their name, our name, how).

    `warnings`: reasons to doubt the net even before an attack, one sentence each.
    """

    path: Path
    net: Net
    matches: list[tuple[str, str, str]]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        """The import as a JSON value."""
        names = [dict(zip(("theirs", "ours", "how"), match, strict=True)) for match in self.matches]
        facts = {"net": str(self.path), "sha256": self.net.id.sha256, "sparsity": self.net.sparsity}
        return facts | {"matches": names, "warnings": self.warnings}


def ingest(
    file: Path,
    arch: str,
    rules: Protocol,
    out: Path,
    store: Store,
    *,
    sparsity: float | None = None,
    label: str | None = None,
    normalisation: str | None = None,
) -> Imported:
    """Seal the checkpoint `file` of the architecture `arch` as a net file in `out`, to be scored by `rules`.

    A weight is read unchanged, as weight times mask (`weight_orig` and `weight_mask`, or `mask`), or under the mask of
    its scores (`popup_scores`, as HYDRA saves them). Binary scores are the mask; with others each layer keeps the
    largest |score|, as many as `sparsity` allows. The net must reach `sparsity`, by default the counted value.

    The header states that the net was not trained under the rules here: the job's pruner is "import", no stage was
    charged, and the rules are named after `rules` plus "-import", so they are not official. Raises Refused, with the
    names, for tensors that are missing, foreign, or of another shape.
    """
    if label is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", label):
        raise PrunebenchError(f"The label {label!r} is not a plain name; write at most 64 letters, digits and . _ + -.")
    path = out / NET
    if path.exists():
        raise PrunebenchError(f"{path} already exists and is not overwritten; choose another folder with --out.")
    info = store.info(rules.data)
    ours = build(arch, info=info).state_dict()
    with torch.device("meta"):
        names = list(prunable(build(arch, info=info)))
    data = read_outside(file, "a checkpoint", LARGEST, complain=Refused)
    theirs = tensors_of(data, file)
    state, matches = matched(theirs, ours, names, arch, sparsity, str(file))
    state, told = _completed(state, ours, info, normalisation, str(file))
    whole = sum(ours[name].numel() for name in names)
    zeros = whole - sum(int(torch.count_nonzero(state[name])) for name in names)
    asked = min(zeros * 10_000 // whole, 9_999) / 10_000 if sparsity is None else sparsity
    header = Header(
        arch=arch,
        classes=info.classes,
        shape=info.shape,
        source=sha256_of(data),
        train_sha256=None,
        stages=(),
        protocol=rules.model_copy(update={"name": f"{rules.name[:57]}-import", "model": arch}),
        job=Job(pruner=PRUNER, options={} if label is None else {"label": label}, sparsity=asked, seed=0),
    )
    seal(path, state, header, passes_granted=0)
    net = open_net(path)
    return Imported(path, net, matches + told, collapse.warnings(net))


def _completed(
    state: State, ours: State, info: Info, normalisation: str | None, file: str
) -> tuple[State, list[tuple[str, str, str]]]:
    """`state` plus what a checkpoint may omit: pixel statistics, and batch norm's counters."""
    told = []
    given = {} if normalisation is None else _normalisation(normalisation, info.shape[0])
    if given and (MEAN in state or STD in state):
        raise Refused("keys", f"{file!r} contains its own normalisation; leave --normalisation out.")
    if (MEAN in state) != (STD in state):
        raise Refused("keys", f"{file!r} has only the mean or only the deviation of pixels; it needs both or neither.")
    for name, tensor in ours.items():
        if name not in state:
            state[name] = given.get(name, tensor).clone()
            counter = name.endswith(".num_batches_tracked")
            told.append(("", name, "0: not in the file" if counter else "given" if given else "of the data set"))
    return {name: state[name] for name in ours}, told


def _normalisation(text: str, channels: int) -> dict[str, Tensor]:
    try:
        halves = ["0", "1"] if text == "none" else text.split("/")
        mean, std = ([float(number) for number in half.split(",")] for half in halves)
        if not all(math.isfinite(number) for number in mean + std) or min(std) <= 0:
            raise ValueError
        mean, std = (half * channels if len(half) == 1 else half for half in (mean, std))
        if {len(mean), len(std)} != {channels}:
            raise ValueError
    except ValueError:
        raise PrunebenchError(
            f"Cannot read the normalisation {text!r}; write none, or MEAN/STD with one number or {channels} separated "
            "by commas each, all of STD above 0."
        ) from None
    return {MEAN: torch.tensor(mean).view(-1, 1, 1), STD: torch.tensor(std).view(-1, 1, 1)}
