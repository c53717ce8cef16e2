"""The script for a bare CUDA machine, tried on the CPU with a tiny net: what it finds, keeps, and ends at its limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, entry_points
from pathlib import Path

import pytest
import torch

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import Threat
from tests.support.nets import RANKED, SMALL
from tools import gpu_board
from tools.gpu_board import MIB, PEER_PASSES, Board, main, options, pack, registered, stock, unpack, volumes

ROOT = Path(__file__).resolve().parents[2]


def board(tmp_path, *arguments):
    return Board(options(["--out", str(tmp_path / "out"), "--device", "cpu", *arguments]))


def test_options_of_the_run_are_left_alone():
    asked = options(["--out", "x", "--minutes", "3", "mnist-linf", "--pruner", "imp", "--device", "cuda:1"])
    assert (asked.minutes, asked.device) == (3.0, "cuda")
    assert asked.run == ["mnist-linf", "--pruner", "imp", "--device", "cuda:1"]


def test_a_part_ends_at_the_limit_and_what_it_started_with_it(tmp_path):
    """A part that would sleep for an hour, and its child that would write a file when it is not stopped."""
    limited = board(tmp_path, "--minutes", "0.05")
    child = f"import time; time.sleep(6); open({str(tmp_path / 'alive')!r}, 'w')"
    script = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(3600)"
    assert limited.call("part", "-c", script) == "cut off by the time limit"
    assert limited.call("part", "-c", "print()") == "no time was left"
    subprocess.run([sys.executable, "-c", "import time; time.sleep(7)"], check=True)
    assert not (tmp_path / "alive").exists()


def test_how_a_part_ended(tmp_path):
    whole = board(tmp_path)
    assert whole.call("part", "-c", "print('said')") == ""
    assert (tmp_path / "out" / "part.log").read_text() == "said\n"
    assert whole.call("part", "-c", "raise SystemExit(3)") == "exit 3"


def test_a_measurement_is_kept_for_the_same_source_and_questions(tmp_path, monkeypatch):
    calls = []

    def call(self, name, *command, **where):
        calls.append(name)
        (self.out / f"{name}.log").write_text(f'a warning\n{{"ours": {len(calls)}}}\n')
        return ""

    monkeypatch.setattr(Board, "call", call)
    assert board(tmp_path).measured("train")["ours"] == 1
    assert board(tmp_path).measured("train")["ours"] == 1 and len(calls) == 1
    assert board(tmp_path, "--images", "7").measured("train")["ours"] == 2
    monkeypatch.setattr(gpu_board, "source", lambda: "another")
    assert board(tmp_path, "--images", "7").measured("train")["ours"] == 3


def test_what_fails_is_said_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Board, "call", lambda self, name, *command, **where: "exit 1")
    assert main(["--out", str(tmp_path / "out"), "--device", "cpu", "--skip", "tests"]) == 1
    assert "| train | exit 1; see " in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize(
    ("ended", "status"), [("exit 1", 1), ("cut off by the time limit", 0), ("no time was left", 0), ("", 0)]
)
def test_a_grid_that_fails_is_no_success_and_one_that_is_cut_off_no_failure(
    ended, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Board, "call", lambda self, name, *command, **options: ended)
    asked = ["--out", str(tmp_path / "out"), "--device", "cpu", "--skip", "tests,table", "mnist-linf"]
    assert main(asked) == status
    assert f"{ended or 'complete'} |" in capsys.readouterr().out.splitlines()[-1]


def test_an_earlier_call_is_gone_on_from(tmp_path):
    (tmp_path / "before" / "runs").mkdir(parents=True)
    (tmp_path / "before" / "runs" / "file").write_text("kept")
    assert (board(tmp_path, "--from", str(tmp_path / "before")).out / "runs" / "file").read_text() == "kept"


def test_pruners_are_found_without_an_installation(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(gpu_board, "version", missing)
    (found,) = distributions(path=[registered(tmp_path)])
    points = {point.name: point.value for point in found.entry_points if point.group == "prunebench.pruners"}
    assert points == {point.name: point.value for point in entry_points(group="prunebench.pruners")}
    assert "imp" in points


def test_what_is_there_is_newer_than_an_earlier_call(tmp_path):
    (tmp_path / "before").mkdir()
    for folder, said in (("before", "old"), ("out", "new")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "file").write_text(said)
    (tmp_path / "before" / "other").write_text("old")
    out = board(tmp_path, "--from", str(tmp_path / "before")).out
    assert ((out / "file").read_text(), (out / "other").read_text()) == ("new", "old")


@pytest.fixture
def packed(tmp_path):
    """A folder of 3,000 bytes that do not compress, the stem of its pack in volumes of 1,000, and these volumes."""
    noise = torch.randint(256, (3000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    out = tmp_path / "packed"
    for name in ("runs/nets/a", "runs/stages/b", "site/c", "registered/d", "runs/.lock", "runs/e.lock"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(noise.numpy().tobytes())
    stem = tmp_path / "home" / "pack"
    return out, stem, pack(out, stem, 1000)


@pytest.mark.parametrize("ending", ["", ".00"])
def test_a_pack_is_gone_on_from(ending, packed, tmp_path):
    """Four volumes: 3,000 bytes that do not compress and the names; what need not be kept would make six times that."""
    out, stem, written = packed
    assert [path.name for path in written] == ["pack.00", "pack.01", "pack.02", "pack.03"]
    assert sorted(stem.parent.iterdir()) == written and list(volumes(stem).values()) == written
    sizes = [path.stat().st_size for path in written]
    assert sizes[:3] == [1000] * 3 and 0 < sizes[3] <= 1000
    new = board(tmp_path, "--from", f"{stem}{ending}").out
    assert [path for path in new.rglob("*") if path.is_file()] == [new / "runs/nets/a"]
    assert (new / "runs/nets/a").read_bytes() == (out / "runs/nets/a").read_bytes()
    (new / "runs/nets/a").write_text("new")
    assert (board(tmp_path, "--from", str(stem)).out / "runs/nets/a").read_text() == "new"


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("harm", ["missing", "flipped", "cut"])
def test_a_pack_with_a_volume_missing_or_broken_is_refused(harm, number, packed, tmp_path):
    """The twin: the same pack, mended, is taken."""
    _, stem, written = packed
    path, whole = written[number], written[number].read_bytes()
    middle = len(whole) // 2
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:middle] + (bytes([whole[middle] ^ 255]) + whole[middle + 1 :]) * (harm == "flipped"))
    said = f"{path.name} is missing, a volume" if harm == "missing" and number < 3 else "do not make a pack"
    with pytest.raises(PrunebenchError, match=said):
        board(tmp_path, "--from", str(stem))
    assert not list((tmp_path / "out").rglob("*"))
    path.write_bytes(whole)
    unpack(stem, tmp_path / "mended")
    assert (tmp_path / "mended" / "runs/nets/a").is_file()


def test_what_is_no_pack_is_said_in_a_sentence(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--from", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'none'}.00 is missing")


def test_volumes_of_an_older_pack_go_and_other_files_stay(packed):
    out, stem, _ = packed
    for name in ("pack.04", "pack.100", "pack.4", "pack.tar", "pack2.00"):
        (stem.parent / name).write_text("old")
    assert pack(out, stem, MIB) == [stem.with_name("pack.00")]
    assert {path.name for path in stem.parent.iterdir()} == {"pack.00", "pack.4", "pack.tar", "pack2.00"}


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_volume_that_holds_nothing_is_refused(size, capsys):
    with pytest.raises(SystemExit):
        options(["--out", "x", "--volume", size])
    assert "a volume needs a number above 0" in capsys.readouterr().err


def test_a_call_that_is_ended_packs_what_there_is(tmp_path, monkeypatch):
    def call(self, name, *command, **where):
        (self.out / f"{name}.log").write_text("so far")
        os.kill(os.getpid(), signal.SIGTERM)
        return ""

    monkeypatch.setattr(Board, "call", call)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path / "out"), "--pack", str(tmp_path / "pack"), "--device", "cpu"])
    finally:
        signal.signal(signal.SIGTERM, before)
    unpack(tmp_path / "pack", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "tests.log").read_text() == "so far"


def test_tests_leave_two_thirds_of_the_time(tmp_path, monkeypatch):
    shares = []

    def call(self, name, *command, share=1.0, **where):
        shares.append(share)
        return "cut off by the time limit"

    monkeypatch.setattr(Board, "call", call)
    line, good = board(tmp_path).tests()
    assert line.startswith("cut off by their own limit, a third of the time that was left;") and not good
    assert shares == [1 / 3]


def test_a_share_of_the_time_ends_a_part_and_not_the_call(tmp_path):
    limited = board(tmp_path, "--minutes", "1")
    sleep = ("-c", "import time; time.sleep(3600)")
    assert limited.call("part", *sleep, share=0.005) == "cut off by the time limit"
    assert limited.call("part", "-c", "print()") == ""


def test_paths_of_the_grid_are_those_of_the_caller(tmp_path, monkeypatch):
    """A TOML file beside the caller, who has a `prunebench` as well; the rules are wrong, so nothing is trained."""
    (tmp_path / "prunebench").mkdir()
    (tmp_path / "prunebench" / "__init__.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "mine.toml").write_text('base = "nothing-known"\n')
    monkeypatch.chdir(tmp_path)
    line, good = board(tmp_path).grid(["mine.toml", "--pruner", "dense"])
    log = (tmp_path / "out" / "grid.log").read_text()
    assert "nothing-known" in log and "not ours" not in log
    assert not good and "exit " in line


@pytest.fixture
def withstanding():
    """A net for 10 classes and two images on which no attack of eps 1e-6 gets anywhere; a list of passes of each."""
    weights = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    costs = []

    def net(x):
        costs.append(len(x) * (3 if x.requires_grad and torch.is_grad_enabled() else 1))
        return x.flatten(1) @ weights.T

    labels = net(images).argmax(1)
    costs.clear()
    return net, images, labels, costs


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_the_peer_is_stock_pyautoattack_and_its_passes_are_known(name, withstanding, monkeypatch):
    """Its own classes run, none of ours; the table lays their pace over the passes that are counted here."""
    for room in ("apgd", "fab", "square"):  # the twin: what runs ours instead, dies
        for attack in ("apgd_ce", "apgd_t", "fab_t", "square"):
            monkeypatch.setattr(f"prunebench.bench.attacks.base.{room}.{attack}", None, raising=False)
    monkeypatch.setattr("prunebench.bench.attacks.suite.linf_square", None)
    net, images, labels, costs = withstanding
    asked = images, labels, Threat(norm="Linf", eps="1/1000000")
    stock()[name](net, *asked, generator=torch.Generator().manual_seed(0))
    assert sum(costs) / len(images) == pytest.approx(PEER_PASSES[name], rel=0.01)
    with pytest.raises(TypeError, match="not callable"):
        RANKED[name](net, *asked, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore")  # stock pyautoattack warns of what it finds suspicious
def test_scoring_is_measured_on_both_sides():
    """What a ratio says: the seconds of 10,000 images, ours and stock's."""
    asked = options(["--out", "", "--device", "cpu", "--arch", "digits-cnn", "--images", "16", "--seconds", "0.01"])
    found = gpu_board.measure_scoring(asked)
    assert found["ratio"] == pytest.approx(found["ours"] / found["peer"])
    assert found["minutes"] * 60 * found["ours"] == pytest.approx(gpu_board.TEST)


@pytest.mark.slow
def test_the_whole_on_the_cpu(tmp_path):
    """Twice: the second call finds the measurements and the grid done."""
    rules = tmp_path / "rules.toml"
    rules.write_text(SMALL)
    command = [
        "bash",
        str(ROOT / "tools" / "gpu_board.sh"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--minutes",
        "9",
        "--arch",
        "digits-cnn",
        "--images",
        "128",
        "--seconds",
        "0.05",
        str(rules),
        "--pruner",
        "random",
        "--sparsity",
        "0.9",
        "--seed",
        "0",
        "--examples",
        "4",
    ]
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    said = []
    for _ in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout.splitlines())
    head, rule, tests, train, score, grid = said[1]
    assert said[0] == said[1] and (head, rule) == ("| what | found |", "| --- | --- |")
    assert "skipped" in tests or "passed" in tests
    assert train.startswith("| digits-cnn, PGD-10 training, an epoch of 128 | ours ") and "ratio" in train
    assert score.startswith("| AutoAttack standard, digits-cnn 90 % sparse, 10,000 images") and "ratio" in score
    assert grid.endswith("| 1 records in " + str(tmp_path / "out" / "runs" / "records") + ", complete |")
    assert "kept: done before" in (tmp_path / "out" / "grid.log").read_text()
    measured = json.loads((tmp_path / "out" / "measured-train.json").read_text())
    assert measured["ratio"] == measured["peer"] / measured["ours"] and measured["env"]["device"] == "cpu"
