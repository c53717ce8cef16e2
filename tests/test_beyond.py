"""What a record may say beyond AutoAttack: no more than its score and its outcomes allow."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from prunebench.bench.beyond import Distances
from tests.support.records import make

BEST = {"suite": "best-1", "robust": 40, "by": {"malt": 10}, "long": 0, "passes": 1}
PLANTED = {"images": 64, "passed_over": 0, "found": {"square": 60}, "together": 60, "control": 3}
OTHER = {"threat": {"norm": "L2", "eps": "1/2"}, "robust": 30}
BLUR = {"severity": 3, "right": {"fog": 70}}


@pytest.mark.parametrize("part", [{"best": BEST}, {"planted": PLANTED}, {"other_norm": OTHER}, {"corruptions": BLUR}])
def test_what_fits_the_score_is_accepted(part):
    """100 images, 80 right when clean, 50 robust."""
    record = make(beyond=part)
    assert record.beyond.model_dump(exclude_none=True).keys() == part.keys()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"best": BEST | {"robust": 41}}, "best.robust = 41 and the images in best.by do not add up to robust = 50"),
        ({"best": BEST | {"robust": 0, "by": {}}}, "do not add up"),
        ({"best": BEST | {"long": 101}}, "best.long = 101 is more than the 100 images"),
        ({"best": BEST | {"suite": "\x1b[31mbest"}}, "pattern"),
        ({"best": BEST | {"by": {"../malt": 10}}}, "pattern"),
        ({"planted": PLANTED | {"images": 81}}, "planted.images = 81 is more than the 80 images"),
        ({"planted": PLANTED | {"control": 65}}, "more plants were found than the 64"),
        ({"other_norm": OTHER | {"robust": 81}}, "other_norm.robust = 81 is more than the 80 images"),
        ({"corruptions": BLUR | {"right": {"fog": 101}}}, "corruptions.right.fog = 101 is more than the 100 images"),
    ],
)
def test_what_the_score_rules_out_is_refused(part, said):
    with pytest.raises(ValidationError, match=said):
        make(beyond=part)


def test_a_record_of_an_older_schema_says_nothing_beyond():
    with pytest.raises(ValidationError, match="beyond is in records since schema 6, but this is schema 5"):
        make(schema=5, beyond={"best": BEST})
    assert "beyond" not in make(schema=5).model_dump(by_alias=True)


@pytest.mark.parametrize(("odd", "count"), [(0.1, 0), (np.inf, 0), (-0.1, 1), (np.nan, 1)])
def test_impossible_distances_are_counted(odd, count):
    found = Distances(attack="fmn", median=0.1).recounted({"distance": np.array([0.0, 0.1, odd], np.float32)})
    assert found["impossible distances"] == (count, 0)
