"""A claim of a tiny net, with outcomes and adversarial images, and what forgers do to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import tomli_w
import torch

import bench.score
from bench import proposals
from bench.attacks import within
from bench.checkpoint import open_net
from bench.claim import Claim, load_claim, make
from bench.data import as_float
from bench.files import sha256_of, write_bytes
from bench.protocol import Protocol
from bench.record import Record, load_arrays, load_record, outcomes_path, pack_outcomes, proposals_path, standing
from bench.referee import Referee
from bench.score import RECORD, score
from tests.nets import STORE, changed, quick_attacks, seal_state

N = 400
RULES = changed(name="tiny-400", test=N, shard=128)


def scored_with_proposals(net: Path, folder: Path, rules: Protocol = RULES) -> Path:
    """Score `net` with quick attacks into `folder`, keep the images that fooled it, and return the record."""
    last: dict[bytes, torch.Tensor] = {}

    def remembering(attack):
        def run(model, images, labels, threat, *, generator):
            found = attack(model, images, labels, threat, generator=generator)
            near = within(found, images, threat)
            last.update({image.numpy().tobytes(): one for image, one in zip(images, near, strict=True)})
            return found

        return run

    with patch.object(bench.score, "STANDARD", {name: remembering(a) for name, a in quick_attacks().items()}):
        score(net, out=folder, store=STORE, device="cpu")
    record = load_record(folder / RECORD)
    arrays = load_arrays(outcomes_path(folder / RECORD), record.outcomes, "outcomes")
    test = STORE.testing(rules.data, rules.test)
    fooled = np.flatnonzero(arrays["clean"] & ~standing(arrays))
    originals = as_float(test.images).numpy()[fooled]
    images = np.stack([last[image.tobytes()].numpy() for image in originals])
    referee = Referee(open_net(net).module, rules, rules.shard, torch.device("cpu"))
    near = proposals.rounded(images, originals, rules.threat.radius)
    whole = referee.logits(torch.from_numpy(near)).argmax(1).numpy() == arrays["labels"][fooled]
    data = proposals.pack(proposals.Proposals(fooled, images), originals, rules.threat.radius, whole)
    write_bytes(proposals_path(folder / RECORD), data)
    resealed(record, proposals=sha256_of(data)).save(folder / RECORD)
    return folder / RECORD


def resealed(record: Record, **changes) -> Record:
    """`record` with other values and the hash that belongs to them."""
    facts = {key: getattr(record, key) for key in type(record).model_fields if key not in ("sha256", "schema_")}
    return Record.sealed(**facts | changes)


def make_claim(dense: Path, folder: Path) -> Path:
    """The claim of the weights in the file `dense`, scored on N images; the record lies in `folder`/scored."""
    net = folder / "scored" / "net.safetensors"
    seal_state(net, open_net(dense).module, RULES)
    return make(scored_with_proposals(net, net.parent), net, folder / "claim")


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
    return standing(load_arrays(claim.parent / "outcomes.npz", facts.outcomes.sha256, "outcomes"))


def overstated(claim: Path, points: float) -> Path:
    """Rewrite the claim and its outcomes, consistently, to say that so many points more of the images stand."""
    arrays = load_arrays(claim.parent / "outcomes.npz", load_claim(claim).outcomes.sha256, "outcomes")
    fooled = np.flatnonzero(arrays["clean"] & ~standing(arrays))[: round(points * N / 100)]
    survived = {name.removeprefix("survived/"): bits for name, bits in arrays.items() if name.startswith("survived/")}
    for bits in survived.values():
        bits[fooled] = True
    write_bytes(claim.parent / "outcomes.npz", pack_outcomes(arrays["labels"], arrays["predicted"], survived, {}, {}))
    return edited(claim, robust=load_claim(claim).robust + len(fooled))
