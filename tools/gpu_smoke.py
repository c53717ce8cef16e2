"""The first look at a device: does everything import, and take a step there?"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import torch

import prunebench.bench
import prunebench.leaderboard
import prunebench.pruners
from prunebench.bench.attacks.standard import STANDARD
from prunebench.bench.checkpoint import Header, seal
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.objectives import OBJECTIVES
from prunebench.bench.names import NET
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from prunebench.bench.spec import registered
from tools.gpu_figures import Noise

# Packages of the web pages, of claims, of extras and of cards, without which a machine trains, scores and ranks.
UNNEEDED = {"imagecorruptions", "itables", "plotly", "requests", "robustbench", "tomli_w", "torchattacks", "triton"}


def smoke(device: str, folder: Path) -> str:
    """Import every module, load every pruner, train a step with each objective, run each attack, make a record."""
    rooms = (prunebench.bench, prunebench.leaderboard, prunebench.pruners)
    names = [found.name for room in rooms for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    imported = sum(_imports(name) for name in names)
    pruners = [point.load() for point in registered().values()]
    rules = PROTOCOLS["digits-linf"]
    sizes = {"train": 64, "validation": 16, "test": 2, "shard": 2, "units": 20.0}
    short = {"epochs": 1, "steps": 1, "step_size": "0.2", "batch": 64}
    rules = rules.model_copy(update=sizes | {"training": rules.training.model_copy(update=short)})
    store, where = Noise(Path(), shape=(1, 8, 8)), torch.device(device)
    lab = Lab(Job(pruner="any", sparsity=0.0, seed=0), rules, store, Computed(folder), device=where)
    for objective in OBJECTIVES:
        state = lab.fit(objective, lab.initial(), epochs=1, objective=objective).weights
    referee = Referee(lab.model(state), rules, 2, where)
    images = store.testing("", 2).images.float() / 255
    with exact_float32():
        labels = referee.logits(images).argmax(1)
        for listed in STANDARD.ranked.values():
            referee.fooled(listed.attack, images, labels, 0, surrogate=listed.surrogate)
    info = store.info("")
    header = Header(
        arch=rules.model,
        classes=info.classes,
        shape=info.shape,
        protocol=rules,
        job=lab.job,
        source=None,
        train_sha256=None,
        stages=(),
    )
    seal(folder / NET, state, header, passes_granted=0)
    scored = score(folder / NET, rules, store=store, device=device).score
    return (
        f"{imported} modules, {len(pruners)} pruners, {len(OBJECTIVES)} objectives, {len(STANDARD.ranked)} attacks, "
        f"a record of {scored.n} images"
    )


def _imports(name: str) -> bool:
    """Whether the module is imported, which it is unless it needs one of UNNEEDED."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in UNNEEDED:
            raise
        return False
    return True
