"""A protocol that takes seconds, nets made by it, and attacks that are as quick: what the slow tests share."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.bench.attacks.base import Attack
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.attacks.suite import Listed, Suite
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.checkpoint import Header, pack, seal, unpack
from prunebench.bench.data import Store
from prunebench.bench.datasets import Info
from prunebench.bench.grid.run import job_of
from prunebench.bench.grid.task import train
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.recipe import Training
from prunebench.pruners import resolve

TINY = Protocol(
    name="tiny",
    data="digits",
    model="digits-cnn",
    threat=Threat(norm="Linf", eps="0.15"),
    units=2.0,
    sparsities=(0.9,),
    seeds=(0,),
    validation=64,
    train=512,
    test=64,
    shard=64,
    attack_seed=3,
    training=Training(objective="pgd", steps=3, step_size="0.075", epochs=3, batch=64, lr=0.1, validate_every=3),
)
STORE = Store(Path("there-is-no-such-folder"))  # digits come with scikit-learn
SMALL = """
base = "digits-linf"
name = "small"
units = 1.0
train = 64
validation = 10
test = 8
[training]
epochs = 1
steps = 1
step_size = "0.2"
"""  # a protocol as a user writes it, on top of a built-in one
SPECS = {"dense": ("dense", None), "imp": ("imp:rounds=2", 0.9)}


def changed(rules: Protocol = TINY, **changes) -> Protocol:
    """`rules` with other values; those of `training` may be named on their own."""
    training = {key: changes.pop(key) for key in list(changes) if key in Training.model_fields}
    return rules.model_copy(update=changes | {"training": rules.training.model_copy(update=training)})


# Trained without an attack, by the share of TRADES that looks at clean images: nothing withstands its eps, and the
# whole AutoAttack takes a second.
UNATTACKED = changed(
    threat=Threat(norm="Linf", eps="0.4"), objective="trades", beta=0.0, steps=1, step_size="0.4", train=128
)


def job(spec: str = "dense", sparsity: float | None = None, seed: int = 0) -> Job:
    """The job of the pruner `spec`; sparsity 0.9 where one is needed."""
    resolved = resolve(spec)
    return job_of(resolved, 0.9 if sparsity is None and resolved.prunes else sparsity, seed)


def make_nets(folder: Path) -> dict[str, Path]:
    """The two nets of SPECS, trained below `folder` unless they are there."""
    return {
        name: train(spec, job(spec, sparsity), TINY, folder / name, folder / "stages", STORE, device="cpu")
        for name, (spec, sparsity) in SPECS.items()
    }


@dataclass(frozen=True, kw_only=True)
class Reporting(Computed):
    """Computes stages, and reports the progress of each under its name."""

    report: ProgressCallback | None

    def _named(self, stage: str) -> ProgressCallback:
        report = self.report
        return lambda what, done, total: None if report is None else report(f"{stage}: {what}", done, total)


def lab(tmp_path: Path, rules: Protocol = TINY, *, sparsity: float = 0.9, kind: type[Lab] = Lab, **options) -> Lab:
    """A lab for a job of that sparsity; `options`: of the lab, and `report` and `curves` of what computes for it."""
    report, curves = options.pop("report", None), options.pop("curves", None)
    backend = Reporting(tmp_path / "stages", curves, report=report)
    return kind(Job(pruner="any", sparsity=sparsity, seed=0), rules, STORE, backend, **options)


def seal_state(path: Path, module: nn.Module, rules: Protocol = TINY, info: Info | None = None) -> Path:
    """A net file with the weights of `module`, an architecture of `rules`."""
    info = info or STORE.info(rules.data)
    header = Header(
        arch=rules.model,
        classes=info.classes,
        shape=info.shape,
        protocol=rules,
        job=job(),
        source=None,
        train_sha256=None,
        stages=(),
    )
    seal(path, module.state_dict(), header, passes_granted=0)
    return path


def forged(net: Path, path: Path, *, drop: str | None = None, **header) -> Path:
    """A copy of `net` with a whole hash, but without the tensor `drop` and with other values in its header."""
    tensors, about = unpack(net.read_bytes(), str(net))
    tensors = {name: tensor for name, tensor in tensors.items() if name != drop}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(tensors, about | header))
    return path


def outcomes(folder: Path) -> dict[str, np.ndarray]:
    """The raw outcomes in the folder of a scoring."""
    with np.load(outcomes_path(folder / "record.json")) as file:
        return dict(file)


RANKED = {name: listed.attack for name, listed in SUITES["standard"].ranked.items()}
WEAK = {name: listed.attack for name, listed in SUITES["standard"].weak.items()}


def quick_attacks() -> dict[str, Attack]:
    """Stand-ins under the names of AutoAttack's four, ever stronger: PGD with 1, 2, 5 and 10 steps."""
    return {name: partial(pgd, steps=n, step_size=0.05) for name, n in zip(RANKED, (1, 2, 5, 10), strict=True)}


def suite_with(attacks: Mapping[str, Attack]) -> Suite:
    """The standard suite with these ranked attacks in place of its own, at their prices."""
    real = SUITES["standard"]
    prices = {name: real.ranked[name].passes if name in real.ranked else 1 for name in attacks}
    return replace(real, ranked={name: Listed(attack, prices[name]) for name, attack in attacks.items()})


def use_attacks(monkeypatch: pytest.MonkeyPatch, attacks: Mapping[str, Attack]) -> None:
    """Let protocols mean these attacks by "standard"."""
    monkeypatch.setitem(SUITES, "standard", suite_with(attacks))


def toml(rules: Protocol) -> str:
    """`rules` as a TOML file."""
    plain = {key: value for key, value in rules.model_dump(mode="json").items() if value is not None}
    tables = {key: plain.pop(key) for key in ("threat", "training")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def misplaced(net: nn.Module) -> nn.Module:
    """A copy of `net` with every weight of its convolutions a place further: what kernels with a wrong offset do."""
    other = copy.deepcopy(net)
    for layer in other.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.roll(1, dims=3)
    return other


class Bright(nn.Module):
    """Class 1 for images whose mean is above one half, class 0 below: what an attack can do is known on paper."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, 2)."""
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)
