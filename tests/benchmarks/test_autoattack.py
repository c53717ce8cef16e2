"""AutoAttack *standard*, whole: our attacks on the fast net against stock pyautoattack on the plain one.

Both on the same images in one run. `python -m tests.benchmarks.test_autoattack [THREADS] [NAME]...` prints the figures
as Markdown; with one thread in processor time, which a busy machine does not change.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.mask import draw, masked
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import Threat
from tools.verdicts import CLAIMS, ours, theirs


@dataclass(frozen=True)
class Case:
    """What is attacked, and how many times faster ours is meant to be."""

    images: int
    eps: str
    goal: float
    density: float | None = None  # of a ResNet-18; None: the net of a claim on the digits
    rounds: int = 1


# A point that stands costs about 7,800 forwards and 1,900 backwards, and an image that falls next to nothing: eps is
# such that about half of the images stand.
CASES = {
    "resnet18-0.9": Case(16, "0.0004", 4, 0.1),
    "resnet18-0.95": Case(16, "0.0004", 7, 0.05),
    "resnet18-0.99": Case(16, "0.0018", 15, 0.01),
    "digits-cnn-0.95": Case(256, "0.2", 2, rounds=3),
}


def scenes(count: int, seed: int) -> Tensor:
    """Random images of 32x32, smooth with some noise."""
    chance = torch.Generator().manual_seed(seed)
    coarse, fine = torch.rand(count, 3, 8, 8, generator=chance), torch.rand(count, 3, 32, 32, generator=chance)
    return 0.75 * F.interpolate(coarse, size=(32, 32), mode="bilinear") + 0.25 * fine


def sparse(density: float) -> nn.Module:
    """A ResNet-18 with random weights at that share of its places; batch norms as images set them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build("resnet18").requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(density * weight.numel()) for name, weight in prunable(net).items()}
    net.load_state_dict(masked(net.state_dict(), draw(shapes, keeps, torch.Generator().manual_seed(1))))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        net.train()(scenes(128, 5))
    return net.eval()


def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """The net, the images and the labels; of a random net, what it says itself."""
    if case.density is None:
        test = Store("data").testing("digits", case.images)
        net = open_net(CLAIMS / "imp-s0.95-seed0" / "net.safetensors").module
        return net, as_float(test.images), test.labels
    net, images = sparse(case.density), scenes(case.images, 100)
    with torch.no_grad():
        return net, images, net(images).argmax(1)


def measured(case: Case, threads: int = 2) -> dict[str, Any]:
    """Medians of the seconds of ours and of the peer's, and who stands in the end."""
    torch.set_num_threads(threads)
    net, images, labels = made(case)
    clock = time.process_time if threads == 1 else time.perf_counter
    threat = Threat(norm="Linf", eps=case.eps)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    standing = {}

    def timed(name: str, run: Callable[..., Tensor]) -> None:
        began = clock()
        standing[name] = run(net, images, labels, threat, 0)
        seconds[name].append(clock() - began)

    for _ in range(case.rounds):
        timed("ours", ours)
        timed("peer", theirs)
    ours_s, peer_s = (statistics.median(found) for found in seconds.values())
    return {
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": ours_s / peer_s,
        "rounds": case.rounds,
        "target": f"{1 / case.goal:.3f}",
        "images": case.images,
        "eps": case.eps,
        "stand": int(standing["ours"].sum()),
        "differ": int((standing["ours"] != standing["peer"]).sum()),
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("default")  # stock pyautoattack warns of what it finds suspicious
def test_autoattack(benchmark: Any, name: str) -> None:
    """The ratio of the medians."""
    benchmark.extra_info.update(benchmark.pedantic(measured, args=(CASES[name],), rounds=1))


def main(threads: int = 2, *names: str) -> None:
    """Print the figures, each as soon as it is there."""
    print("| net | images, standing, verdicts that differ | ours, s | stock, s | times faster | goal |")
    print("|---|---|---|---|---|---|")
    for name in names or CASES:
        found = measured(CASES[name], threads)
        print(
            f"| {name} | {found['images']} at eps {found['eps']}, {found['stand']}, {found['differ']} | "
            f"{found['ours_s']:.1f} | {found['peer_s']:.1f} | {1 / found['ratio']:.2f} | {CASES[name].goal} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
