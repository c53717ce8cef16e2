"""The script for a bare CUDA machine, tried on the CPU with a tiny net: what it finds, keeps, and ends at its limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distributions, entry_points
from itertools import pairwise
from pathlib import Path

import pytest

from prunebench.bench.data import Split
from prunebench.bench.grid.dry_run import Line
from prunebench.bench.grid.plan import Forecast
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.protocol import load
from tools import gpu_board, gpu_figures, gpu_pack, gpu_steps
from tools.gpu_board import LATE, call, main, options, parts, planned, registered, told
from tools.gpu_calls import CALLS, PARTS, REHEARSED

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "tools" / "gpu_board.sh")
NOTHING = "smoke,convolutions,train,score,steps,tests,grid"
FIGURES = "smoke,convolutions,train,score,steps"


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
        log.write_text(f'a warning\n{{"line": "said {len(made)}"}}\nException ignored in: a thread\n')
        return ""

    monkeypatch.setattr(gpu_board, "call", called)
    return made


def test_a_part_is_kept_for_the_same_source_and_questions(tmp_path, calls, monkeypatch):
    def lines(*arguments):
        asked = options(["--out", "x", "--skip", "tests", *arguments])
        return [line for _, line in parts(asked, tmp_path)[0]]

    assert lines() == lines() == ["said 1", "said 2", "said 3", "said 4", "said 5"]
    assert calls == ["smoke", "convolutions", "train", "score", "steps"]
    assert lines("--images", "7") == ["said 6", "said 7", "said 8", "said 9", "said 10"]
    monkeypatch.setattr(gpu_board, "source", lambda *options: f"another{options[-1]}")
    assert lines("--images", "7") == ["said 11", "said 12", "said 13", "said 14", "said 15"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"line": "a"}\n', '{"line": "a"}'),
        ('{"line": "a"}\n[W911 init.cpp] a driver says good-bye\n', '{"line": "a"}'),
        ('{"line": "a"}\n{"line": "b"}\n  {"line": "c"}\n', '{"line": "b"}'),
        ("nothing of the kind\n", None),
        ("", None),
    ],
)
def test_what_a_measurement_told_is_found_among_what_libraries_say(text, found):
    assert told(text) == found


def test_a_measurement_that_tells_nothing_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_board, "call", lambda command, log, *_: log.write_text("hm\n") and "")
    rows, good = parts(options(["--out", "x", "--skip", "tests,convolutions,train,score,steps"]), tmp_path)
    assert rows == [("smoke", f"told nothing; see {tmp_path}/smoke.log")] and not good
    assert [path.name for path in tmp_path.iterdir()] == ["smoke.log"]


@pytest.mark.parametrize(("ended", "status"), [("exit 1", 1), (LATE[1], 0), (LATE[0], 0), ("", 0)])
def test_a_grid_that_fails_is_no_success_and_one_that_is_cut_off_no_failure(
    ended, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(gpu_board, "call", lambda *_: ended)
    assert main(["--out", str(tmp_path), "--skip", f"tests,{FIGURES}", "mnist-linf"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == f"| grid mnist-linf | 0 records, {ended or 'complete'} |"


def test_a_part_that_fails_is_said_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_board, "call", lambda *_: "exit 1")
    assert main(["--out", str(tmp_path), "--skip", "smoke,convolutions,tests,score,steps"]) == 1
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
    asked = ["--out", "out", "--device", "cpu", "--skip", f"tests,{FIGURES}", "mine.toml", "--pruner", "dense"]
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
    train, score = (gpu_figures.measure(what, "digits-cnn", 512, "cpu")["line"] for what in ("train", "score"))
    assert train.startswith("digits-cnn, PGD-10, epoch of 512: 3 s; plain loop in float32 and bfloat16: ")
    assert train.endswith(": 12 s (4.00 times) and 6 s (2.00 times)")
    assert score == "digits-cnn 90 % sparse, 10,000 images, 45% robust: 10 min to score"
    assert planned == [("dense", 0.0, 0.85, 0.45, 256), ("random", 0.9, 0.85, 0.45, 256)]


def test_the_ways_of_a_step_on_paper(monkeypatch):
    """Epochs of 9, 3, 1 and 2 s, of which the first compiles: 2 s for two steps of 256 images."""
    seen = []

    def fit(net, plan, train, validation, **options):
        seen.append((len(train), plan.last, train.images.device.type, options))
        return Trained({}, {}, [], [9.0, 3.0, 1.0, 2.0])

    monkeypatch.setattr(gpu_steps, "fit", fit)
    found = gpu_figures.measure("steps", "digits-cnn", 512, "cpu")
    assert found["line"] == "ms a step: digits-cnn uncompiled 1e+03; mnist-cnn uncompiled 1e+03"
    assert seen == [(512, 4, "cpu", {"seed": 0})] * 2
    seen.clear()
    monkeypatch.setattr(Split, "to", lambda split, device: split)
    found = gpu_figures.measure("steps", "resnet-small", 10**6, "cuda")
    assert found["milliseconds"].keys() == {"digits-cnn", "mnist-cnn", "resnet-small"}
    assert {key: row.keys() for key, row in found["milliseconds"].items()}["mnist-cnn"] == gpu_steps.WAYS.keys()
    assert [(train, options) for train, *_, options in seen[:3]] == [
        (20 * 256, {"seed": 0, "graphed": False}),
        (20 * 256, {"seed": 0, "graphed": True}),
        (20 * 256, {"seed": 0, "graphed": False, "fill": 8}),
    ]


def script(*arguments):
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_call_that_is_ended_packs_what_there_is(tmp_path):
    """It is ended while its part sleeps, which ends with it."""
    real = f'[ "$1" = -m ] && exec {sys.executable} "$@"'
    (tmp_path / "python").write_text(f"#!/bin/sh\n{real}\necho so far > {tmp_path}/out/log\nexec sleep 3600\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "out").mkdir()
    env = os.environ | {"PYTHON": str(tmp_path / "python")}
    command = ["bash", SCRIPT, "--out", str(tmp_path / "out"), "--pack", str(tmp_path / "home" / "pack")]
    board = subprocess.Popen(command, env=env)
    while not (tmp_path / "out" / "log").exists():
        time.sleep(0.02)
    board.send_signal(signal.SIGTERM)
    assert board.wait() == 128 + signal.SIGTERM
    assert gpu_pack.unpack(tmp_path / "home" / "pack", tmp_path / "again") == (1, True)
    assert (tmp_path / "again" / "log").read_text() == "so far\n"


def test_a_pack_that_is_not_whole_ends_the_call_before_it_begins(tmp_path):
    (tmp_path / "pack.1-records.000").write_bytes(b"\x1f\x8b and no more")
    done = script("--out", tmp_path / "new", "--skip", NOTHING, "--from", tmp_path / "pack")
    assert "are no complete pack" in done.stderr and "bring all of them again" in done.stderr
    assert done.returncode == 2 and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_order_of_calls_on_the_cpu(tmp_path):
    """The third call begins on a bare machine with what the second one packed, and trains nothing again."""
    done = script("--rehearse", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split("call ")[1:]
    assert [line.split(" | ")[0] for line in said[0].splitlines()[3:-1]] == [f"| {part}" for part in PARTS]
    assert all("| 3 records, complete |" in text for text in said[1:])
    assert all("packed: " in text for text in said)
    for machine, kept in (("machine1", 0), ("machine3", 3), ("machine4", 0)):
        assert (tmp_path / machine / "grid.log").read_text().count("kept: done before") == kept


@pytest.mark.parametrize(
    ("number", "there", "parts_of", "grid", "waits"),
    [
        (1, [], PARTS, 0, ""),
        (2, [], PARTS, 0, "waits for cifar-10-batches-py/data_batch_1, "),
        (2, [1, 2, 3, 4], PARTS, 0, "waits for cifar-10-batches-py/data_batch_5, cifar-10-batches-py/test_batch in "),
        (3, [1, 2, 3, 4, 5, "test"], (), 3, ""),
        (4, [], (), 0, "waits for MNIST/raw/"),
    ],
)
def test_a_grid_waits_for_its_images_and_what_was_left_takes_its_place(number, there, parts_of, grid, waits, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for batch in there:
        (folder / ("test_batch" if batch == "test" else f"data_batch_{batch}")).touch()
    call_of, why = planned(options(["--out", "x", "--call", str(number)]), tmp_path)
    assert call_of.parts == parts_of and call_of.run.count("--pruner") == grid and why.startswith(waits)
    assert (call_of.run[-2:] == ("--data", str(tmp_path / "data"))) is bool(grid) and bool(why) is bool(waits)


def test_a_call_that_waits_says_so_and_is_no_failure(tmp_path, calls):
    rows, good = parts(options(["--out", "x", "--call", "4", "--skip", "tests"]), tmp_path)
    assert rows[0][0] == "grid" and rows[0][1].startswith("waits for MNIST/raw/") and good and calls == []


def test_each_call_has_a_rehearsal_of_the_same_kind():
    """The grids of both name protocols that load, and pruners that there are."""
    names = {point.name for point in entry_points(group="prunebench.pruners")}
    assert CALLS.keys() == REHEARSED.keys()
    for number, call_of in CALLS.items():
        assert bool(call_of.run) is bool(REHEARSED[number].run)
        for run in filter(None, (call_of.run, REHEARSED[number].run)):
            assert load(run[0]).name in ("cifar10-linf-short", "mnist-linf", "rehearsal")
            assert {name for flag, name in pairwise(run) if flag == "--pruner"} <= names
    short = load(CALLS[2].run[0])
    assert not short.official and (short.training.epochs, short.test) == (15, 1000)
