"""The referee against stock pyautoattack: the same sparse net, the same images, one thread, alternating."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack

from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.files import sole_user
from prunebench.bench.grid.run import job_of
from prunebench.bench.grid.task import train
from prunebench.bench.protocol import load
from prunebench.bench.score.scoring import score
from prunebench.bench.seeds import derive
from prunebench.pruners import resolve
from tests.support.nets import RANKED

KEPT = Path(__file__).parents[2] / "runs" / "benchmarks"
ROUNDS = 3
IMAGES = 128


@pytest.fixture(scope="module", params=[0.95, 0.98])
def net(request: pytest.FixtureRequest) -> Path:
    """A magnitude-pruned net of `digits-linf`, trained once and kept."""
    torch.set_num_threads(1)
    with sole_user(KEPT):
        job = job_of(resolve("magnitude"), request.param, 0)
        return train("magnitude", job, load("digits-linf"), KEPT / job.name, KEPT / "stages", Store(Path("data")))


def test_scoring_time(benchmark: Any, net: Path) -> None:
    """The processor's time: our whole scoring of 128 images, weak attacks and probes too, and AutoAttack's alone."""
    rules = load("digits-linf")
    test = Store(Path("data")).testing(rules.data, IMAGES)
    images = as_float(test.images)
    peer_seconds: list[float] = []
    our_seconds: list[float] = []

    def peer() -> None:
        module = open_net(net).module.requires_grad_(True)  # as a user hands his net over
        attack = AutoAttack(module, eps=rules.threat.radius, norm="Linf", seed=derive(0, "attack", "shard-0"))
        assert attack.attacks_to_run == list(RANKED)
        began = time.process_time()
        attack.run_standard_evaluation(images, test.labels, batch_size=IMAGES)
        peer_seconds.append(time.process_time() - began)

    def ours() -> None:
        began = time.process_time()
        score(net, examples=IMAGES)
        our_seconds.append(time.process_time() - began)

    benchmark.pedantic(ours, setup=peer, rounds=ROUNDS, warmup_rounds=1)
    ratios = [a / b for a, b in zip(our_seconds, peer_seconds, strict=True)]
    benchmark.extra_info.update(
        ours_s=statistics.median(our_seconds),
        peer_s=statistics.median(peer_seconds),
        ratio=statistics.median(ratios),
        rounds=len(ratios),
        target=0.5,
    )
