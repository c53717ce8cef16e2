"""The comparison of arithmetics: its limits on paper, its table, and two trained nets at full size."""

from __future__ import annotations

import numpy as np
import pytest

from prunebench.bench.score.arithmetic import FLOAT32
from tests.support.nets import STORE, quick_attacks, use_attacks
from tools.arithmetic_noise import JUDGED, KINDS, Outcome, agree, row, scored
from tools.verdicts import CLAIMS


def outcome(*robust, images=256, flags=(), repaired=0, rejected=0):
    """The scoring in which the images `robust` survive the one attack."""
    bits = np.isin(np.arange(images), robust)
    return Outcome({"a": len(robust), "b": len(robust)}, bits, rejected, repaired, frozenset(flags))


EXACT = outcome(*range(100), flags=["black-box-wins"])


@pytest.mark.parametrize(
    ("other", "agrees"),
    [
        (EXACT, True),
        (outcome(*range(101), flags=["black-box-wins"]), True),
        (outcome(*range(99)), True),  # a flag that is down raises no doubt
        (outcome(*range(102)), False),
        (outcome(*range(98)), False),
        (outcome(*range(50, 150)), True),  # the images are shown in the table; the count is judged
        (outcome(*range(100), flags=["black-box-wins", "weak-strong-gap"]), False),
    ],
)
def test_the_limits_on_paper(other, agrees):
    assert agree(EXACT, other) is agrees


def test_a_row_tells_what_changed():
    other = outcome(*range(2, 101), flags=["constant"], repaired=7, rejected=3)
    assert row("net", "tf32", EXACT, other) == (
        "| net | tf32 | 99 99 | 2 | 1 | 3 | 7 | constant (not exact), not black-box-wins |"
    )
    assert row("net", "float32", outcome(1), outcome(1)).endswith("| 1 1 | 0 | 0 | 0 | 0 | none |")


def test_a_net_is_scored_in_an_emulated_arithmetic(nets, monkeypatch):
    """PGD proposes its last point wherever it fails, so repair attacks those again, and nothing else does."""
    use_attacks(monkeypatch, quick_attacks())
    exact, alone, repaired = (
        scored(nets["dense"], KINDS[kind], 16, STORE) for kind in ("float32", "tf32 alone", "tf32")
    )
    assert KINDS["float32"] is FLOAT32 and 0 < exact.robust.sum() < 16
    assert exact.repaired == alone.repaired == 0 and repaired.repaired >= 4 * repaired.robust.sum()
    assert alone.rejected > 0 and alone.survived.keys() == exact.survived.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hydra-s0.95-seed0", "imp-s0.95-seed0"])
def test_repair_brings_the_count_of_256_images_back(name):
    found = {kind: scored(CLAIMS / name / "net.safetensors", KINDS[kind], 256, STORE) for kind in ("float32", *JUDGED)}
    assert 0 < found["float32"].robust.sum() < 256
    for kind in JUDGED:
        assert agree(found["float32"], found[kind])
