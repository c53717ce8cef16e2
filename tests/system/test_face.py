"""`import prunebench`: quick, typed, and each name does what a verb of the command line does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import prunebench
from prunebench.bench.attacks.suite import Listed, Pursuit
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beyond import Beyond
from prunebench.bench.executor import Fast
from tests.support.nets import changed, job, suite_with, use_attacks
from tests.support.nets import quick_attacks as quick
from tools.verdicts import CLAIMS

FEW = changed(test=16, shard=16)


def test_importing_it_imports_no_torch():
    code = "import sys, prunebench; print('torch' in sys.modules, *sorted(prunebench.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, *names = done.stdout.split()
    assert loaded == "False" and names == sorted(dir(prunebench))


def test_every_public_name_is_there_and_says_what_it_is():
    assert all(getattr(prunebench, name).__doc__ for name in prunebench.__all__)
    with pytest.raises(AttributeError, match="prunebench has no 'trian'; it has Job"):
        prunebench.trian  # noqa: B018


def test_from_a_pruner_to_a_rank(tmp_path, monkeypatch):
    use_attacks(monkeypatch, quick())
    net = prunebench.train("random", FEW, tmp_path / "net", sparsity=0.9, device="cpu")
    assert net.header.job == job("random") and prunebench.load(tmp_path / "net" / "net.safetensors").id == net.id
    record = prunebench.score(tmp_path / "net" / "net.safetensors", out=tmp_path / "records", device="cpu")
    assert record.score.n == 16 and record.known_rules == FEW
    copied = tmp_path / "board" / "record.json"
    copied.parent.mkdir()
    for path in (tmp_path / "records").glob("record.*"):
        path.rename(copied.with_name(path.name))
    (board,) = prunebench.rank(tmp_path / "board").boards
    assert board.rows[0].robust.mean == record.score.robust / 16
    assert isinstance(prunebench.fast(net.module), Fast)
    assert all(difference.p == 1.0 for difference in prunebench.compare(str(copied), copied))


def test_a_module_is_scored_like_the_file_that_it_came_from(nets, monkeypatch, tmp_path):
    use_attacks(monkeypatch, quick())
    file, module = nets["imp"], prunebench.load(nets["imp"]).module
    one = prunebench.score(file, FEW, device="cpu").score
    other = prunebench.score(module, FEW, arch="digits-cnn", device="cpu")
    assert (one.clean, one.survived) == (other.score.clean, other.score.survived)
    assert not other.official and other.job.pruner == "import"
    with pytest.raises(prunebench.PrunebenchError, match="give its architecture and a protocol"):
        prunebench.score(module, FEW)
    with pytest.raises(prunebench.PrunebenchError, match="give arch and normalisation only with a module"):
        prunebench.score(file, FEW, arch="digits-cnn")
    for net, how in ((file, {}), (module, {"arch": "digits-cnn"})):
        with pytest.raises(prunebench.PrunebenchError, match="Attacks in tf32 need a CUDA card"):
            prunebench.score(net, FEW, device="cpu", arithmetic="tf32", **how)


def test_more_than_autoattack_is_measured_on_request(nets, monkeypatch):
    suite = replace(suite_with(quick()), best=Pursuit("test-1", {"again": Listed(quick()["square"], 31)}, {}, 1.0))
    monkeypatch.setitem(SUITES, "standard", suite)
    module = prunebench.load(nets["imp"]).module
    for net, how in ((nets["imp"], {}), (module, {"arch": "digits-cnn"})):
        record = prunebench.score(net, FEW, device="cpu", best=True, also=["distances"], **how)
        assert record.beyond.best.suite == "test-1" and record.beyond.distances is not None
        plain = prunebench.score(net, FEW, device="cpu", **how)
        assert plain.beyond == Beyond() and plain.score == record.score


def test_a_module_leaves_its_net_and_nothing_is_overwritten(nets, monkeypatch, tmp_path):
    use_attacks(monkeypatch, quick())
    module = prunebench.load(nets["imp"]).module
    record = prunebench.score(module, FEW, arch="digits-cnn", out=tmp_path, device="cpu")
    assert prunebench.load(tmp_path / "net.safetensors").id == record.net
    with pytest.raises(prunebench.PrunebenchError, match=r"already holds .*; name another folder"):
        prunebench.score(nets["dense"], FEW, out=tmp_path, device="cpu")


def test_data_sets_lie_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNEBENCH_DATA", str(tmp_path / "mine"))
    with pytest.raises(prunebench.PrunebenchError, match=str(tmp_path / "mine")):
        prunebench.train("dense", "mnist-linf", tmp_path / "net")


def test_a_claim_is_named_by_its_file_or_its_folder():
    folder = CLAIMS / "imp-s0.95-seed0"
    found = [prunebench.verify(path, device="cpu") for path in (folder, str(folder / "CLAIM.toml"))]
    assert found[0] == found[1] and found[0].good
    with pytest.raises(prunebench.PrunebenchError, match=r"holds 1[0-9] claims; name one of them, such as .*CLAIM"):
        prunebench.verify(CLAIMS)
    with pytest.raises(prunebench.PrunebenchError, match="There is no claim in"):
        prunebench.verify(folder.with_name("lost"))
