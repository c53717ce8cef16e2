"""The script for a bare CUDA machine, tried on the CPU with a tiny net: what it finds, keeps, and ends at its limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distributions, entry_points
from pathlib import Path

import pytest

from prunebench.bench.grid.dry_run import Line
from prunebench.bench.grid.plan import Forecast
from tests.support.nets import SMALL
from tools import gpu_board, gpu_figures
from tools.gpu_board import LATE, call, main, options, parts, registered

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "tools" / "gpu_board.sh")
NOTHING = "tests,train,score,grid"


def test_options_of_the_run_are_left_alone():
    asked = options(["--out", "x", "--minutes", "3", "mnist-linf", "--pruner", "imp", "--device", "cuda:1"])
    assert (asked.minutes, asked.device) == (3.0, "cuda")
    assert asked.run == ["mnist-linf", "--pruner", "imp", "--device", "cuda:1"]


def test_how_a_part_ended(tmp_path):
    log = tmp_path / "part.log"
    assert call(["-c", "print('said')"], log, 60) == "" and log.read_text() == "said\n"
    assert call(["-c", "raise SystemExit(3)"], log, 60) == f"exit 3; see {log}"
    assert call(["-c", "print()"], log, 0) == "no time was left"


def test_a_part_ends_at_the_limit_and_what_it_started_with_it(tmp_path):
    """The part's child tells its number; a process that was not killed would be there still."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert call(["-c", script], tmp_path / "part.log", 5) == "cut off by the time limit"
    number = int((tmp_path / "part.log").read_text())
    while (state := Path(f"/proc/{number}/stat")).exists() and state.read_text().split()[2] not in "ZX":
        time.sleep(0.05)  # for ever, if it was not


@pytest.fixture
def calls(monkeypatch):
    """The names of the parts that were called; each says its number and succeeds."""
    made = []

    def called(command, log, seconds, folder=ROOT):
        made.append(log.stem)
        log.write_text(f"a warning\n=== said {len(made)} ===\n")
        return ""

    monkeypatch.setattr(gpu_board, "call", called)
    return made


def test_a_part_is_kept_for_the_same_source_and_questions(tmp_path, calls, monkeypatch):
    def lines(*arguments):
        return [line for _, line in parts(options(["--out", "x", *arguments]), tmp_path)[0]]

    assert lines() == lines() == ["said 1", "said 2", "said 3"] and calls == ["tests", "train", "score"]
    assert lines("--images", "7") == ["said 1", "said 4", "said 5"]
    monkeypatch.setattr(gpu_board, "source", lambda *_: "another")
    assert lines("--images", "7") == ["said 6", "said 7", "said 8"]


@pytest.mark.parametrize(("ended", "status"), [("exit 1", 1), (LATE[1], 0), (LATE[0], 0), ("", 0)])
def test_a_grid_that_fails_is_no_success_and_one_that_is_cut_off_no_failure(
    ended, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(gpu_board, "call", lambda *_: ended)
    assert main(["--out", str(tmp_path), "--skip", "tests,train,score", "mnist-linf"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == f"| grid mnist-linf | 0 records, {ended or 'complete'} |"


def test_a_part_that_fails_is_said_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_board, "call", lambda *_: "exit 1")
    assert main(["--out", str(tmp_path), "--skip", "tests,score"]) == 1
    assert "| train | exit 1 |" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_pruners_are_found_without_an_installation(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr(gpu_board, "version", missing)
    (found,) = distributions(path=[str(registered(tmp_path))])
    points = {point.name: point.value for point in found.entry_points if point.group == "prunebench.pruners"}
    assert points == {point.name: point.value for point in entry_points(group="prunebench.pruners")}
    assert "imp" in points


def test_paths_of_the_grid_are_those_of_the_caller(tmp_path, monkeypatch):
    """A TOML file beside the caller, who has a `prunebench` as well; the rules are wrong, so nothing is trained."""
    (tmp_path / "prunebench").mkdir()
    (tmp_path / "prunebench" / "__init__.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "mine.toml").write_text('base = "nothing-known"\n')
    monkeypatch.chdir(tmp_path)
    asked = ["--out", "out", "--device", "cpu", "--skip", "tests,train,score", "mine.toml", "--pruner", "dense"]
    assert main(asked) == 1
    log = (tmp_path / "out" / "grid.log").read_text()
    assert "Unknown protocol 'nothing-known'" in log and "not ours" not in log


def test_the_figures_on_paper(monkeypatch):
    """10,000 epochs take 30,000 s, and the attacks on a shard of 256 images 15.36 s; the plain loop takes two steps."""
    planned = []

    def forecast(jobs, rehearsal):
        planned.append((jobs[0][0], jobs[0][1].sparsity, rehearsal.clean, rehearsal.robust, len(rehearsal.test)))
        line = Line("any", 0.9, 1, 0, 0, train_seconds=30_000.0, score_seconds=15.36, bytes=0)
        return Forecast((line,), {}, 1, rehearsal)

    monkeypatch.setattr(gpu_figures, "forecast", forecast)
    monkeypatch.setattr(gpu_figures, "plain_step", lambda *_, half: 3.0 if half else 6.0)
    train, score = (gpu_figures.measure(what, "digits-cnn", 512, "cpu") for what in ("train", "score"))
    assert train.startswith("digits-cnn, PGD-10, epoch of 512: 3 s; plain loop in float32 and bfloat16: ")
    assert train.endswith(": 12 s (4.00 times) and 6 s (2.00 times)")
    assert score == "digits-cnn 90 % sparse, 10,000 images, 45% robust: 10 min to score"
    assert planned == [("dense", 0.0, 0.85, 0.45, 256), ("random", 0.9, 0.85, 0.45, 256)]


def script(*arguments):
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def volumes(tmp_path):
    return sorted((tmp_path / "home").glob("pack.*"))


@pytest.fixture
def packed(tmp_path):
    """A pack of 3 MB that do not compress, in volumes of 1 MiB; the stages are left out."""
    noise = os.urandom(3_000_000)
    for name in ("runs/nets/a", "runs/stages/b", "site/c"):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(noise)
    done = script("--out", tmp_path / "old", "--skip", NOTHING, "--pack", tmp_path / "home" / "pack", "--volume", 1)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in volumes(tmp_path)] == ["pack.000", "pack.001", "pack.002"]
    return noise


def test_a_pack_is_gone_on_from_and_what_is_there_is_newer(packed, tmp_path):
    new = tmp_path / "new"
    for text in (packed, b"newer"):
        assert script("--out", new, "--skip", NOTHING, "--from", tmp_path / "home" / "pack").returncode == 0
        assert [path.relative_to(new) for path in new.rglob("*") if path.is_file()] == [Path("runs/nets/a")]
        assert (new / "runs/nets/a").read_bytes() == text
        (new / "runs/nets/a").write_bytes(b"newer")


@pytest.mark.parametrize("harm", ["missing", "missing last", "flipped"])
def test_a_pack_that_is_not_whole_is_refused(harm, packed, tmp_path):
    path = volumes(tmp_path)[2 if harm == "missing last" else 1]
    whole = path.read_bytes()
    path.unlink() if "missing" in harm else path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    done = script("--out", tmp_path / "new", "--skip", NOTHING, "--from", tmp_path / "home" / "pack")
    assert "are no complete pack: bring all volumes" in done.stderr and done.returncode == 2
    assert not list((tmp_path / "new").iterdir())


def test_a_call_that_is_ended_packs_what_there_is(tmp_path):
    """It is ended while its part sleeps, which ends with it."""
    (tmp_path / "python").write_text(f"#!/bin/sh\necho so far > {tmp_path}/out/log\nexec sleep 3600\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "out").mkdir()
    env = os.environ | {"PYTHON": str(tmp_path / "python")}
    command = ["bash", SCRIPT, "--out", str(tmp_path / "out"), "--pack", str(tmp_path / "home" / "pack")]
    board = subprocess.Popen(command, env=env)
    while not (tmp_path / "out" / "log").exists():
        time.sleep(0.02)
    board.send_signal(signal.SIGTERM)
    assert board.wait() == 128 + signal.SIGTERM
    subprocess.run(["tar", "-xzf", str(tmp_path / "home" / "pack.000"), "-C", str(tmp_path), "./log"], check=True)
    assert (tmp_path / "log").read_text() == "so far\n"


@pytest.mark.slow
def test_the_whole_on_the_cpu(tmp_path):
    """Twice: the second call finds the measurements and the grid done."""
    rules = tmp_path / "rules.toml"
    rules.write_text(SMALL)
    board = ["--out", tmp_path / "out", "--device", "cpu", "--minutes", 9, "--arch", "digits-cnn", "--images", 128]
    grid = [rules, "--pruner", "random", "--sparsity", "0.9", "--seed", "0", "--examples", "4"]
    said = []
    for _ in range(2):
        done = script(*board, *grid)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout.splitlines())
    assert said[0] == said[1]
    head, rule, tests, train, score, run = said[1]
    assert (head, rule) == ("| what | found |", "| --- | --- |")
    assert "skipped" in tests or "passed" in tests
    assert train.startswith("| train | digits-cnn, PGD-10, epoch of 128: ") and train.count("times") == 2
    assert score.startswith("| score | digits-cnn 90 % sparse, 10,000 images") and score.endswith(" min to score |")
    assert run.endswith("| 1 records, complete |")
    assert "kept: done before" in (tmp_path / "out" / "grid.log").read_text()
