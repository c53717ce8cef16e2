"""Scores that a pruner computes itself may hold NaN: the user reads one sentence, not a traceback."""

from __future__ import annotations

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.player.handover import Play
from prunebench.bench.player.process import play
from tests.support.nets import STORE, changed, job

RULES = changed(train=128, validate_every=100)
PRUNER = '''
from dataclasses import dataclass

from prunebench.bench.mask import keep_largest

@dataclass(frozen=True)
class Broken:
    """Divides a score by zero after its first stage."""

    def __call__(self, job, lab):
        {}
        scores = {{name: weight * 0 / 0 for name, weight in lab.initial().items() if name in lab.shapes}}
        return keep_largest(scores, lab.keep)
'''
TRAIN = "lab.fit('dense', lab.initial(), epochs=1)"


@pytest.mark.parametrize(("before", "said"), [(TRAIN, "After stage 'dense'"), ("pass", "Before any stage")])
def test_nan_scores_are_one_sentence_that_names_the_stage(before, said, tmp_path):
    (tmp_path / "broken.py").write_text(PRUNER.format(before))
    spec = f"{tmp_path / 'broken.py'}:Broken"
    asked = Play(spec, job("imp"), RULES, STORE, tmp_path, tmp_path / "stages", "cpu", 1, False)
    with pytest.raises(PrunebenchError, match=rf"{said}: Scores of 1\.0\.weight, .* are NaN, so the largest are not"):
        play(asked, lambda kind, told: None)
