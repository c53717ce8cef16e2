"""A claim of a tiny net, with outcomes and adversarial images, and what forgers do to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tomli_w
import torch

from prunebench.bench.attacks.base import Attack
from prunebench.bench.attacks.suite import Pursuit
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.checkpoint import open_net
from prunebench.bench.claims.claim import Claim, load_claim
from prunebench.bench.claims.make import make
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import load_arrays, pack_outcomes, standing_of
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, changed, quick_attacks, seal_state, suite_with

N = 400
RULES = changed(name="tiny-400", test=N, shard=128)


def make_claim(
    dense: Path, folder: Path, attacks: Mapping[str, Attack] | None = None, best: Pursuit | None = None
) -> Path:
    """The claim of the weights in the file `dense`, scored on N images; the record lies in `folder`/scored.

    `best`: the suite for the best-known number, which is claimed if there is one.
    """
    net = folder / "scored" / "net.safetensors"
    seal_state(net, open_net(dense).module, RULES)
    suite = suite_with(attacks or quick_attacks())
    with patch.dict(SUITES, {"standard": suite if best is None else replace(suite, best=best)}):
        score(net, out=net.parent, store=STORE, device="cpu", keep_proposals=True, best=best is not None)
    return make(net.with_name(RECORD), net, folder / "claim", best=best is not None)


def weakened(net: Path, path: Path, spread: float = 0.1) -> Path:
    """A net like `net`, its weights disturbed by noise of so many of their standard deviations, under a whole hash."""
    module, draw = open_net(net).module, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                weight += spread * weight.std() * torch.randn(weight.shape, generator=draw)
    return seal_state(path, module, RULES)


def copied(claim: Path, folder: Path) -> Path:
    """A copy of the claim and of its files, to be tampered with."""
    shutil.copytree(claim.parent, folder)
    return folder / claim.name


def edited(claim: Path, *, drop: tuple[str, ...] = (), **changes) -> Path:
    """Write other values into the claim; new hashes for `net`, `outcomes` and `proposals` that lie there now."""
    values = load_claim(claim).model_dump(mode="json", by_alias=True, exclude_none=True)
    for what in ("net", "outcomes", "proposals"):
        if what in values:
            values[what]["sha256"] = sha256_of((claim.parent / values[what]["path"]).read_bytes())
    values = {key: value for key, value in (values | changes).items() if key not in drop}
    claim.write_text(tomli_w.dumps(values))
    return claim


def robust(claim: Path) -> np.ndarray:
    """Which images are claimed to stand."""
    facts: Claim = load_claim(claim)
    return standing_of(load_arrays(claim.parent / "outcomes.npz", facts.outcomes.sha256, "outcomes"))


def overstated(claim: Path, points: float) -> Path:
    """Rewrite the claim and its outcomes, consistently, to say that so many points more of the images stand."""
    arrays = load_arrays(claim.parent / "outcomes.npz", load_claim(claim).outcomes.sha256, "outcomes")
    bits = standing_of(arrays)
    bits[np.flatnonzero(arrays["clean"] & ~bits)[: round(points * N / 100)]] = True
    return claiming(claim, bits)


def claiming(claim: Path, bits: np.ndarray, **changes) -> Path:
    """Rewrite the claim and its outcomes, consistently, to say that these images stand, bool (n,)."""
    arrays = load_arrays(claim.parent / "outcomes.npz", load_claim(claim).outcomes.sha256, "outcomes")
    survived = {name.removeprefix("survived/"): bits for name in arrays if name.startswith("survived/")}
    write_bytes(claim.parent / "outcomes.npz", pack_outcomes(arrays["labels"], arrays["predicted"], survived, {}, {}))
    return edited(claim, **({"robust": int(bits.sum())} | changes))
