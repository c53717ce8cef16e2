"""A stage is computed once: whatever was killed, spoilt or asked for twice, the same tensors come out of the store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import prunebench.bench.lab.stages
from prunebench.bench.checkpoint import pack
from prunebench.bench.lab.stages import StageStore, load_stage, save_stage

STATE = {"weight": torch.tensor([1.5, -0.0]), "mask": torch.tensor([True, False]), "count": torch.tensor(7)}
ABOUT = {"seconds": 0.25, "curve": [{"epoch": 1}]}


def computing(calls, state=STATE, about=ABOUT):
    """A way to compute a stage that notes each call."""

    def compute(partial):
        calls.append(partial)
        return state, about

    return compute


def check_once(stages):
    calls = []
    first, again = (stages.remember("key", computing(calls)) for _ in range(2))
    assert len(calls) == 1
    for state, about in (first, again):
        assert about == ABOUT and state.keys() == STATE.keys()
        assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)


def test_computed_once_and_the_same_ever_after(tmp_path):
    check_once(StageStore(tmp_path))
    calls = []
    StageStore(tmp_path).remember("key", computing(calls))  # another process's view of the folder
    assert not calls
    StageStore(tmp_path).remember("other", computing(calls))
    assert len(calls) == 1


def test_twin_a_store_that_forgets(tmp_path, monkeypatch):
    monkeypatch.setattr(prunebench.bench.lab.stages, "save_stage", lambda *arguments: None)
    with pytest.raises(AssertionError):
        check_once(StageStore(tmp_path))


SPOILT = {
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "foreign": lambda data: b"not a stage at all",
    "another file": lambda data: pack({"weight": torch.zeros(2)}, None).replace(b"about", b"abaut"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_stage_is_computed_anew(how, tmp_path):
    stages, calls = StageStore(tmp_path), []
    stages.remember("key", computing(calls))
    (done,) = tmp_path.rglob("done.safetensors")
    done.write_bytes(SPOILT[how](done.read_bytes()))
    assert load_stage(done) is None
    state, about = stages.remember("key", computing(calls))
    assert len(calls) == 2 and about == ABOUT and torch.equal(state["weight"], STATE["weight"])
    stages.remember("key", computing(calls))
    assert len(calls) == 2  # and whole again


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_partial_file_is_as_none(how, tmp_path):
    path = tmp_path / "partial.safetensors"
    assert load_stage(path) is None
    save_stage(path, STATE, {"done": 3})
    state, about = load_stage(path)
    assert about == {"done": 3} and torch.equal(state["mask"], STATE["mask"])
    path.write_bytes(SPOILT[how](path.read_bytes()))
    assert load_stage(path) is None


def test_what_failed_leaves_its_partial_file_and_no_lock(tmp_path):
    def fail(partial):
        save_stage(partial, STATE, {"done": 1})
        raise RuntimeError("killed")

    def go_on(partial):
        found.append(load_stage(partial)[1])
        return STATE, ABOUT

    found = []
    with pytest.raises(RuntimeError, match="killed"):
        StageStore(tmp_path).remember("key", fail)
    StageStore(tmp_path).remember("key", go_on)
    assert found == [{"done": 1}]
    assert not list(tmp_path.rglob("partial.safetensors")) and len(list(tmp_path.rglob("done.safetensors"))) == 1


def race(stages):
    """How often two threads that ask at the same time compute."""
    calls, begun = [], threading.Barrier(2)

    def compute(partial):
        calls.append(partial)
        time.sleep(0.3)
        return STATE, ABOUT

    def ask():
        begun.wait()
        stages.remember("key", compute)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(calls)


def test_two_that_ask_at_once_compute_once(tmp_path):
    assert race(StageStore(tmp_path)) == 1


def test_twin_without_a_lock_both_compute(tmp_path, monkeypatch):
    class Open:
        def __init__(self, folder, wait):
            folder.mkdir(parents=True, exist_ok=True)

        __enter__ = __exit__ = lambda *_: None

    monkeypatch.setattr(prunebench.bench.lab.stages, "sole_user", Open)
    assert race(StageStore(tmp_path)) == 2


CHILD = """
import sys, time, torch
from pathlib import Path
from prunebench.bench.lab.stages import StageStore, save_stage

def compute(partial):
    save_stage(partial, {"x": torch.ones(1)}, {"done": 1})
    Path(sys.argv[2]).touch()
    time.sleep(600)

StageStore(Path(sys.argv[1])).remember("key", compute)
"""


def test_another_process_is_waited_for_and_taken_over_from_when_it_is_killed(tmp_path):
    begun, found = tmp_path / "begun", []

    def go_on(partial):
        found.append(load_stage(partial)[1])
        return STATE, ABOUT

    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", CHILD, str(tmp_path / "stages"), str(begun)]
    asking = threading.Thread(target=lambda: StageStore(tmp_path / "stages").remember("key", go_on), daemon=True)
    with subprocess.Popen(words, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as child:
        try:
            until = time.monotonic() + 120
            while not begun.exists():
                assert child.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            asking.start()
            asking.join(timeout=0.5)
            assert asking.is_alive() and not found  # it waits
        finally:
            child.kill()
    asking.join(timeout=60)
    assert not asking.is_alive() and found == [{"done": 1}]
