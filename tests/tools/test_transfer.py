"""The images that fooled one net of a grid are tried on the survivors of the others, by the referee."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beside import net_path, publish
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import load_arrays, outcomes_path, standing_of
from prunebench.bench.record import load_record
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, TINY, quick_attacks, suite_with
from tools import transfer


@pytest.fixture
def records(tmp_path, nets, monkeypatch):
    """The folder of two records with what fooled their nets: dense under strong attacks, IMP under a weak one."""
    strong = quick_attacks()
    suites = {"dense": suite_with(strong), "imp": suite_with(dict.fromkeys(strong, strong["apgd-ce"]))}
    for name, net in nets.items():
        monkeypatch.setitem(SUITES, "standard", suites[name])
        score(net, out=tmp_path / name, store=STORE, device="cpu", keep_proposals=True)
        record = load_record(tmp_path / name / RECORD)
        publish(tmp_path / name / RECORD, net, tmp_path / "records" / f"{record.job.name}.json")
    return tmp_path / "records"


def test_what_fools_another_net_too_is_counted(records):
    """Counted again by hand: the other's images, on the net itself, where this one still stands."""
    found = transfer.measured(records, STORE.root)
    assert len(found) == 2
    test = STORE.testing(TINY.data, TINY.test)
    images, fell = as_float(test.images), 0
    every = transfer.images_of(transfer.grid(records), images, TINY.threat.radius)
    for path, of in found.items():
        (other,) = [name for name in every if name != path.stem]
        stands = standing_of(load_arrays(outcomes_path(path), load_record(path).outcomes, "outcomes"))
        with torch.no_grad():
            right = open_net(net_path(path)).module.eval()(every[other]).argmax(1) == test.labels
        assert of.left == int((torch.from_numpy(stands) & right).sum()) and of.best is None
        assert of.robust == int(stands.sum()) and sum(of.by.values()) == of.robust - of.left
        fell += of.robust - of.left
    assert fell, "premise: something is found"
    page = transfer.table(found)
    assert all(f"| {path.stem} | {of.robust} |  | {of.left} | " in page for path, of in found.items())


def test_a_nets_own_images_are_not_tried_and_untouched_ones_fool_nobody(records):
    """The twin: with the other's images replaced by the clean ones nothing is found."""
    kept = transfer.grid(records)
    test = STORE.testing(TINY.data, TINY.test)
    for path, record in kept.items():
        images = dict.fromkeys([other.stem for other in kept], as_float(test.images))
        of = transfer.transferred(path, record, TINY, test, images)
        assert of.left == of.robust and of.by == {}


def test_what_cannot_be_measured_is_refused(records):
    path = next(records.glob("dense*.json"))
    publish(path, net_path(path), records / "deeper" / "a.json")
    with pytest.raises(PrunebenchError, match=r"1 of 1 records below .* have adversarial images, but two are needed"):
        transfer.grid(records / "deeper")
    np.savez(outcomes_path(path), nothing=np.zeros(1))
    with pytest.raises(PrunebenchError, match="sha256"):
        transfer.measured(records, STORE.root)
