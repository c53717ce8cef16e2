"""Two nets on the same images: counts that can be had on paper, and pairs that must not be made."""

from __future__ import annotations

import numpy as np
import pytest

from prunebench.bench.claims.compare import ALPHA, compare
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes
from tests.support import records


def save(folder, name, right, robust, *, labels=None, **changes):
    """A record of a net that is right on the images `right` and robust on those of them in `robust`."""
    n = len(right)
    labels = np.arange(n) % 10 if labels is None else labels
    data = pack_outcomes(
        labels, np.where(right, labels, (labels + 1) % 10), dict.fromkeys(records.ATTACKS, right & robust), {}, {}
    )
    clean, standing = int(right.sum()), int((right & robust).sum())
    counts = {"n": n, "clean": clean, "robust": standing, "survived": dict.fromkeys(records.ATTACKS, standing)}
    record = records.make(name, score=counts | {"weak": {}, "curve": []}, outcomes=sha256_of(data), **changes)
    path = folder / f"{name}.json"
    record.save(path)
    write_bytes(outcomes_path(path), data)
    return path


def at(n, *spans):
    bits = np.zeros(n, bool)
    for start, stop in spans:
        bits[start:stop] = True
    return bits


def test_the_counts_and_p_on_paper(tmp_path):
    everything = at(100, (0, 100))
    a = save(tmp_path, "a", everything, at(100, (0, 58)))
    b = save(tmp_path, "b", at(100, (0, 97)), at(100, (8, 60)))  # 8 under A alone, 2 under B alone
    robust, clean = compare(a, b)
    assert (robust.n, robust.a, robust.b, robust.only_a, robust.only_b) == (100, 58, 52, 8, 2)
    assert robust.p == pytest.approx(2 * (45 + 10 + 1) / 2**10) and not robust.significant
    assert (clean.a, clean.b, clean.only_a, clean.only_b, clean.p) == (100, 97, 3, 0, 0.25)
    assert robust.sentence == (
        "Robust accuracy of A and B cannot be told apart: 58 against 52 of 100 images, 8 correct only for A, 2 only "
        "for B, exact McNemar p = 0.11."
    )


def test_the_better_one_is_named_whichever_comes_first(tmp_path):
    everything = at(100, (0, 100))
    a, b = save(tmp_path, "a", everything, at(100, (0, 40))), save(tmp_path, "b", everything, at(100, (0, 34)))
    assert compare(a, b)[0].p == 2 / 2**6 < ALPHA
    assert compare(a, b)[0].sentence.startswith("Robust accuracy of A is higher: 40 against 34")
    assert compare(b, a)[0].sentence.startswith("Robust accuracy of B is higher: 34 against 40")
    assert compare(a, a)[0].p == 1.0


def test_what_cannot_be_paired_is_refused(tmp_path):
    everything, some = at(100, (0, 100)), at(100, (0, 40))
    a = save(tmp_path, "a", everything, some)
    for name, changes, said in (
        ("rules", {"protocol": {"sha256": "0" * 64}}, "different rules"),
        ("data", {"data": {"sha256": "0" * 64}}, "different test images"),
        ("labels", {"labels": np.zeros(100, int)}, "different labels for the same images"),
    ):
        with pytest.raises(PrunebenchError, match=said):
            compare(a, save(tmp_path, name, everything, some, **changes))
    with pytest.raises(PrunebenchError, match="different numbers of images, 100 and 50"):
        compare(a, save(tmp_path, "fewer", everything[:50], some[:50]))
    assert compare(a, save(tmp_path, "same", everything, some))  # the twin


def test_outcomes_that_are_missing_or_edited_are_refused(tmp_path):
    everything, some = at(100, (0, 100)), at(100, (0, 40))
    a, b = save(tmp_path, "a", everything, some), save(tmp_path, "b", everything, some)
    outcomes_path(b).write_bytes(outcomes_path(b).read_bytes() + b"\0")
    with pytest.raises(PrunebenchError, match="its sha256 differs"):
        compare(a, b)
    outcomes_path(b).unlink()
    with pytest.raises(PrunebenchError, match="Cannot read"):
        compare(a, b)
    records.refusal().save(b)
    with pytest.raises(PrunebenchError, match="is a refusal"):
        compare(a, b)
