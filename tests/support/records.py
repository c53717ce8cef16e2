"""Records made up for tests: valid in every way, with raw outcomes that their counts come from."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes
from prunebench.bench.protocol import PROTOCOLS, as_sparsity
from prunebench.bench.record import Record, Refusal

DIGITS = PROTOCOLS["digits-linf"]
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
PRUNABLE = 1000


def outcomes(n: int, clean: int, robust: int) -> bytes:
    """Outcomes in which the first `clean` of `n` images are right, and all attacks but the first find nothing."""
    labels = np.arange(n) % 10
    predicted = np.where(np.arange(n) < clean, labels, (labels + 1) % 10)
    standing = np.arange(n) < robust
    return pack_outcomes(labels, predicted, dict.fromkeys(ATTACKS, standing), {"pgd-20": standing}, {"0.2": standing})


def make(
    pruner: str = "imp",
    sparsity: float = 0.9,
    seed: int = 0,
    *,
    n: int = 100,
    clean: int = 80,
    robust: int = 50,
    **changes: Any,
) -> Record:
    """A sealed record; `changes` replace top-level parts, or keys of one where the change is a dict."""
    nonzero = PRUNABLE - math.ceil(Fraction(as_sparsity(sparsity)) * PRUNABLE)
    values: dict[str, Any] = {
        "protocol": {"name": DIGITS.name, "version": DIGITS.version, "sha256": DIGITS.sha256},
        "rules": DIGITS.model_dump(mode="json"),
        "job": {"pruner": pruner, "options": {}, "sparsity": sparsity, "seed": seed},
        "net": {
            "sha256": sha256_of(repr((pruner, sparsity, seed)).encode()),
            "arch": "digits-cnn",
            "prunable": PRUNABLE,
            "nonzero": nonzero,
            "layers": [{"name": "fc", "shape": [10, PRUNABLE // 10], "nonzero": nonzero}],
        },
        "patterns": [],
        "score": {
            "n": n,
            "clean": clean,
            "robust": robust,
            "survived": dict.fromkeys(ATTACKS, robust),
            "ran": list(ATTACKS),
            "rejected": 0,
            "kernel_only": 0,
            "batch": 64,
            "shard": 256,
            "weak": {"pgd-20": robust},
            "curve": [{"eps": "0.2", "robust": robust}],
            "flags": [{"name": "weak-strong-gap", "value": 0.0, "threshold": 0.1, "sentence": "No gap."}],
        },
        "data": {"name": "digits", "sha256": "d" * 64, "train_sha256": None},
        "official": True,
        "cost": {
            "stages": [{"name": "fit", "passes": 33_000_000, "seconds": 12.5}],
            "train_passes": 33_000_000,
            "train_seconds": 12.5,
            "score_passes": 1000,
            "score_seconds": 3.0,
            "device": "cpu",
        },
        "env": {"torch": "2.11.0"},
        "notes": {},
        "outcomes": sha256_of(outcomes(n, clean, robust)),
        "proposals": None,
        "pairs": None,
    }
    for key, change in changes.items():
        values[key] = values.get(key, {}) | change if isinstance(change, dict) else change
    foreign = "protocol" in changes or "name" in changes.get("data", {})
    if foreign and "schema" not in changes:  # rules that nobody has: from before records carried theirs
        values["schema"] = 4
    if values.get("schema", 7) < 7 and "patterns" not in changes:
        values.pop("patterns")
    if values.get("schema") in (3, 4):
        old = {"rejected": "disagreements", "kernel_only": "unconfirmed"}
        values["score"] = {old.get(key, key): value for key, value in values["score"].items()}
        values.pop("rules")
    return Record.sealed(**values)


def refusal(**changes: Any) -> Refusal:
    """A sealed record of refusal."""
    values = {
        "refused": "finite",
        "reason": "The logits of 3 images are not finite.",
        "file": "net.safetensors",
        "net": None,
        "protocol": {"name": DIGITS.name, "version": DIGITS.version, "sha256": DIGITS.sha256},
        "job": None,
        "env": {},
    }
    return Refusal.sealed(**(values | changes))


def save(folder: Path, record: Record, name: str | None = None) -> Path:
    """Write `record` and the outcomes that it was made from below `folder`, as a board keeps them."""
    path = folder / record.protocol.name / f"{name or record.job.name}.json"
    record.save(path)
    write_bytes(outcomes_path(path), outcomes(record.score.n, record.score.clean, record.score.robust))
    return path
