"""On a card, what a pruner computes beside the common training has the arithmetic that the rules name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prunebench.bench.player import process


class Begun(Exception):
    """The lab is being made."""


@pytest.mark.parametrize("before", [(False, True), (True, True), (False, False)])
def test_a_search_has_tf32_convolutions_and_float32_products_whatever_held_before(before, monkeypatch):
    cudnn, matmul, found = torch.backends.cudnn, torch.backends.cuda.matmul, []

    def begun(*_, **__):
        found.append((cudnn.allow_tf32, matmul.allow_tf32))
        raise Begun

    def play():
        cudnn.allow_tf32, matmul.allow_tf32 = before
        with pytest.raises(Begun):
            process.play(
                SimpleNamespace(
                    threads=1, job=None, protocol=None, store=None, stages=None, tensorboard=False, device="cpu"
                ),
                None,
            )

    kept = cudnn.allow_tf32, matmul.allow_tf32
    monkeypatch.setattr(process, "Lab", begun)
    try:
        play()
        monkeypatch.setattr(process.machine, "search_arithmetic", lambda: None)
        play()  # the twin
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = kept
    assert found == [(True, False), before]
