"""The referee against pyautoattack's own evaluation on the plain net: the same seed, the same verdicts.

Where attacks see the net itself they are the same on every image. Kernels and folded norms round otherwise, and an
attack that hangs on a last bit may end elsewhere: no more than another batch shape does to pyautoattack itself.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pyautoattack import AutoAttack
from pyautoattack.state import EvaluationState

from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.grid.task import train
from prunebench.bench.names import RECORD
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.record import load_record
from prunebench.bench.score.scoring import score
from prunebench.bench.seeds import derive
from tests.support.nets import RANKED, STORE, TINY, changed, job, outcomes


def reference(net, rules, monkeypatch, *, other=0, batch=None):
    """What pyautoattack says: attack -> who is still robust after it, image by image."""
    after = {}
    note = EvaluationState.add_run_attack

    def listen(state, attack):
        after[attack] = state.robust_flags.clone().numpy()
        note(state, attack)

    monkeypatch.setattr(EvaluationState, "add_run_attack", listen)
    test = STORE.testing(rules.data, rules.test)
    seed = derive(rules.attack_seed, "attack", "shard-0") + other
    attack = AutoAttack(
        open_net(net).module, eps=rules.threat.radius, norm=rules.threat.norm, seed=seed, version="standard"
    )
    _, predicted = attack.run_standard_evaluation(as_float(test.images), test.labels, batch_size=batch or len(test))
    monkeypatch.undo()
    final = (predicted == test.labels).numpy()
    assert np.array_equal(after["square"], final)
    return after


@pytest.fixture(scope="module")
def theirs(nets):
    """The verdicts of pyautoattack on the net of a name, made once."""

    @cache
    def found(name):
        with pytest.MonkeyPatch.context() as patch:
            return reference(nets[name], TINY, patch)

    return found


@pytest.mark.parametrize("name", [pytest.param("dense", marks=pytest.mark.slow), "imp"])
def test_every_verdict_is_pyautoattacks(name, scored, theirs):
    ours = outcomes(scored[name])
    record = load_record(scored[name] / RECORD)
    assert record.score.batch == record.score.shard == record.score.n == TINY.test  # one shard, one batch shape
    # A comparison of constants would prove little: images fall to the clean test and to attacks, and images stand.
    assert 0 < record.score.robust < record.score.survived["apgd-ce"] <= record.score.clean < record.score.n

    assert list(theirs(name)) == list(RANKED)
    assert "floats wide" in record.env["kernels"]  # not the net itself, and the net is too small to run on torch
    for attack in RANKED:
        assert int((ours[f"survived/{attack}"] != theirs(name)[attack]).sum()) <= 3, attack
    assert abs(int(theirs(name)["square"].sum()) - record.score.robust) <= 1
    assert record.score.rejected == 0


@pytest.mark.parametrize("name", [pytest.param("dense", marks=pytest.mark.slow), "imp"])
def test_without_kernels_every_verdict_is_the_very_same(name, nets, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr("prunebench.bench.executor.lacking", lambda: "none are wanted.")
    record = score(nets[name], out=tmp_path, store=STORE, device="cpu")
    assert record.env["kernels"] == "plain"
    for attack in RANKED:
        assert np.array_equal(outcomes(tmp_path)[f"survived/{attack}"], theirs(name)[attack]), attack


def test_a_comparison_of_other_nets_fails(scored):
    """The twin: verdicts are images' own, so another net's do not pass for them."""
    dense, imp = (outcomes(scored[name])["survived/square"] for name in ("dense", "imp"))
    assert not np.array_equal(dense, imp)


def test_a_weaker_list_of_attacks_fails(scored):
    """The twin: without the later attacks some verdict is another."""
    for folder in scored.values():
        found = outcomes(folder)
        assert not np.array_equal(found["survived/apgd-ce"], found["survived/square"])


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "sparsity"), [("dense", None), ("imp", 0.95)])
def test_256_images_and_other_batch_shapes(spec, sparsity, tmp_path, monkeypatch):
    """Nets of the official training, on kernels. With another batch pyautoattack draws otherwise: its own verdicts then
    differ by up to 2 in the count, on 4 of IMP's images."""
    rules = changed(PROTOCOLS["digits-linf"], name="digits-linf-256", test=256)
    net = train(spec, job(spec, sparsity), rules, tmp_path, tmp_path / "stages", STORE, device="cpu")
    record = score(net, out=tmp_path, store=STORE, device="cpu")
    ours = outcomes(tmp_path)
    assert record.score.batch == 256 and 0 < record.score.robust < record.score.clean < 256

    for attack, robust in reference(net, rules, monkeypatch).items():
        apart = np.flatnonzero(ours[f"survived/{attack}"] != robust)
        print(attack, int(robust.sum()), "robust, other verdicts on images", apart.tolist())
        assert len(apart) <= 3, attack
        assert abs(int(robust.sum()) - record.score.survived[attack]) <= 1, attack
    for batch in (100, 64):
        theirs = reference(net, rules, monkeypatch, batch=batch)["square"]
        assert abs(int(theirs.sum()) - record.score.robust) <= 2
        assert int((theirs != ours["survived/square"]).sum()) <= 4
