"""AutoAttack as we run it against stock pyautoattack, image by image, on the nets of the committed claims.

`python -m tools.verdicts [CLAIM]...` attacks 256 test images of each net (three sparse ones by default): our attacks
through the fast net, measured on the plain one as the referee does, and `pyautoattack.AutoAttack` on the plain net. It
lists every image that ends otherwise, and exits with 1 when a count differs by more than 1 or more than 3 images do.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from prunebench.bench.attacks.base import within
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.executor import fast
from prunebench.bench.names import NET
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.seeds import derive

CLAIMS = Path(__file__).parents[1] / "claims"
DEFAULT = ("imp-s0.95-seed0", "hydra-s0.95-seed0", "awt-s0.95-seed0")
IMAGES, COUNT_OFF, IMAGES_OFF = 256, 1, 3


@dataclass(frozen=True)
class Verdicts:
    """Which images survive all of AutoAttack, bool (n,): with Prunebench's attacks, and with pyautoattack's."""

    ours: Tensor
    theirs: Tensor

    @property
    def differ(self) -> list[int]:
        """The images whose verdicts differ."""
        return (self.ours != self.theirs).nonzero().flatten().tolist()

    @property
    def agree(self) -> bool:
        """Whether the difference is no larger than the noise of a different batch size."""
        off = abs(int(self.ours.sum()) - int(self.theirs.sum()))
        return off <= COUNT_OFF and len(self.differ) <= IMAGES_OFF


def ours(net: nn.Module, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
    """Which images survive Prunebench's attacks on the accelerated net, as measured on the plain net."""
    quick = fast(net)
    with torch.no_grad():
        standing = net(images).argmax(1) == labels
    for listed in SUITES["standard"].ranked.values():
        index = standing.nonzero().squeeze(1)
        if not len(index):
            break
        lent = images[index], labels[index]
        proposals = within(
            listed.attack(quick, *lent, threat, generator=torch.Generator().manual_seed(seed)), lent[0], threat
        )
        with torch.no_grad():
            standing[index] = net(proposals).argmax(1) == labels[index]
    return standing


def theirs(net: nn.Module, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
    """Which images survive stock pyautoattack."""
    attack = AutoAttack(net, eps=threat.radius, norm=threat.norm, seed=seed, version="standard")
    _, predicted = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return predicted == labels


def compared(folder: Path, rules: Protocol, images: int = IMAGES) -> Verdicts:
    """Both verdicts on the first `images` test images, for the net of the claim in `folder`."""
    test = Store(Path("data")).testing(rules.data, images)
    case = as_float(test.images), test.labels, rules.threat, derive(rules.attack_seed, "attack", "shard-0")
    net = open_net(folder / NET).module.eval().requires_grad_(False)
    return Verdicts(ours(net, *case), theirs(net, *case))


def main(names: list[str]) -> int:
    """Compare and print; returns the exit status."""
    faults = 0
    for name in names:
        folder = CLAIMS / name
        found = compared(folder, open_net(folder / NET).header.protocol)
        faults += not found.agree
        print(f"{name}: ours {int(found.ours.sum())}, theirs {int(found.theirs.sum())} of {len(found.ours)} stand")
        for image in found.differ:
            print(f"  image {image}: {'stands' if found.ours[image] else 'falls'} under ours only")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(DEFAULT)))
