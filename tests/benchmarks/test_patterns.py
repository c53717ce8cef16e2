"""A ResNet-18 in patterns of zeros: on our kernels, and as a smaller dense net, against the same net dense in torch.

The same images, alternating in one run. `python -m tests.benchmarks.test_patterns` prints the table of
bench/executor/BENCHMARKS.md.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunebench.bench.channels import shrunk
from prunebench.bench.executor import fast
from prunebench.bench.mask import masked
from prunebench.bench.models import build, prunable
from prunebench.bench.pattern import Chooser
from tests.benchmarks.test_executor import ROUNDS, WORK, Clock, Net, medians, pictures

# (pattern, share of the weights, as a smaller net) -> how many times faster than the dense net it is meant to be.
TARGETS = {
    ("2:4", 0.5, False): 1.0,
    ("channel", 0.5, False): 1.0,
    ("channel", 0.5, True): 1.5,
    ("channel", 0.1, False): 4,
    ("channel", 0.1, True): 4,
}
SHARES = {"channel": (0.5, 0.1), "2:4": (0.5,), "unstructured": (0.5, 0.1)}


def pruned(pattern: str, share: float) -> nn.Module:
    """A ResNet-18 that keeps at most that share of its weights, at random places of the pattern, every layer alike."""
    net = build("resnet18").eval().requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    noise = torch.Generator().manual_seed(1)
    chooser = Chooser(pattern, shapes, round(share * sum(sizes.values())), lambda: net)
    keeps = chooser.capped({name: int(share * size) for name, size in sizes.items()})
    masks = chooser({name: torch.rand(shape, generator=noise) for name, shape in shapes.items()}, keeps)
    net.load_state_dict(masked(net.state_dict(), masks))
    return net


@pytest.mark.parametrize(("pattern", "share", "smaller"), TARGETS)
def test_a_pattern_against_the_dense_net(benchmark: Any, pattern: str, share: float, smaller: bool) -> None:
    """Forward and input gradient, processor time on one thread, the ratio of the medians."""
    net, images = pruned(pattern, share), pictures(WORK.images)
    nets: list[Net] = [shrunk(net) if smaller else fast(net), net]
    ours, peer = benchmark.pedantic(medians, args=(nets, images, WORK), kwargs={"gradient": True}, rounds=1)
    target = 1 / TARGETS[pattern, share, smaller]
    benchmark.extra_info.update(ours_s=ours, peer_s=peer, ratio=ours / peer, rounds=ROUNDS, target=f"{target:.3f}")


def row(pattern: str, share: float, clock: Clock) -> list[str]:
    """How many times faster than dense: by `fast`, smaller, and that by `fast`; forward, then with the gradient."""
    net, images = pruned(pattern, share), pictures(clock.images)
    small = shrunk(net) if pattern == "channel" else None
    nets: list[Net] = [net, fast(net), *([] if small is None else [small, fast(small)])]
    cells = []
    for gradient in (False, True):
        dense, *others = medians(nets, images, clock, gradient=gradient)
        cells += [*(f"{dense / other:.2f}" for other in others), *[""] * (4 - len(nets))]
    left = sum(int(weight.count_nonzero()) for weight in prunable(net).values())
    return [pattern, f"{left / sum(weight.numel() for weight in prunable(net).values()):.1%}", *cells]


def main(clock: Clock) -> None:
    """Print the ratios of all patterns as Markdown, line by line."""
    what = ("`fast`", "smaller", "`fast`, smaller")
    head = ["pattern", "weights left", *(f"{kind}: {x}" for kind in ("forward", "with gradient") for x in what)]
    for cells in (head, ["---"] * len(head)):
        print(f"| {' | '.join(cells)} |", flush=True)
    for pattern, shares in SHARES.items():
        for share in shares:
            print(f"| {' | '.join(row(pattern, share, clock))} |", flush=True)


if __name__ == "__main__":
    main(WORK)
