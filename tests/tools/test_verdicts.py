"""AutoAttack as we run it ends, image by image, as stock pyautoattack does."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.checkpoint import open_net
from tests.support.nets import RANKED, use_attacks
from tools.verdicts import CLAIMS, DEFAULT, Verdicts, compared


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_256_images_of_a_trained_sparse_net(name):
    folder = CLAIMS / name
    found = compared(folder, open_net(folder / "net.safetensors").header.protocol)
    assert 0 < int(found.theirs.sum()) < 256
    assert found.agree, found.differ


@pytest.mark.slow
def test_16_images(monkeypatch):
    """And the twin: attacks that give up leave images standing, which is seen."""
    folder = CLAIMS / DEFAULT[0]
    rules = open_net(folder / "net.safetensors").header.protocol
    found = compared(folder, rules, images=16)
    assert 0 < int(found.theirs.sum()) < 16 and found.differ == []
    use_attacks(monkeypatch, dict.fromkeys(RANKED, lambda model, images, *rest, generator: images))
    blind = compared(folder, rules, images=16)
    assert not blind.agree and torch.equal(blind.theirs, found.theirs)


def test_the_limits_on_paper():
    """One count in 256 and three images; images that change places count too."""
    standing = torch.arange(256) < 100
    for moved, agrees in (([99], True), ([98, 99], False), ([99, 100], True), ([98, 99, 100, 101], False)):
        other = standing.clone()
        other[moved] = ~other[moved]
        assert Verdicts(other, standing).differ == moved
        assert Verdicts(other, standing).agree is agrees
