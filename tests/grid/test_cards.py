"""A step takes the card with the fewest steps among those with room, whatever process or engine runs it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import prunebench.bench.grid.task
from prunebench.bench.datasets import Info
from prunebench.bench.grid import cards
from prunebench.bench.grid.cards import COPIES, FIXED, Card, chosen, memory, need, seated
from prunebench.bench.grid.task import Step, Task
from tests.support.nets import STORE, TINY, job

GIB = 2**30


def card(index, free, total=80):
    return Card(index, f"GPU-{index}", free * GIB, total * GIB)


@pytest.mark.parametrize(
    ("free", "running", "place"),
    [
        ([80, 80], [0, 0], 0),
        ([80, 80], [1, 0], 1),  # fewer steps
        ([40, 60], [0, 0], 1),  # somebody else's work takes memory
        ([80, 7], [1, 0], 0),  # no room where there are fewer steps
        ([80, 80], [10, 9], 1),  # two that have not yet taken their memory: 80 - 10 * 8 leaves none, 80 - 9 * 8 just 8
        ([80, 80], [10, 10], None),  # it waits
        ([7, 7], [1, 1], None),
        ([5, 7], [0, 0], 1),  # there is no better time to wait for: the roomiest empty card
        ([5, 7], [0, 1], 0),
        ([], [], None),
    ],
)
def test_the_card_for_a_step_of_eight_gibibytes(free, running, place):
    found = chosen([card(index, gibibytes) for index, gibibytes in enumerate(free)], running, 8 * GIB)
    assert found == place


@pytest.fixture
def machine_with(monkeypatch):
    """Let this machine seem to have cards; returns how to take a seat on one of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(cards, "PAUSE", 0.01)


def test_the_free_memory_of_two_cards(monkeypatch):
    """Of 80 GiB 30 are taken. 7 of them lie in this process's cache, which is given back first: 57 are free."""
    free = [50 * GIB]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(57 * GIB))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[-1], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"card {index}"))
    assert cards.visible() == [Card(index, f"card {index}", 57 * GIB, 80 * GIB) for index in (0, 1)]


def take(desk, *simulated, gibibytes=30, device="cuda"):
    return seated(device, lambda: gibibytes * GIB, cards=lambda: list(simulated), desk=desk)


def test_steps_spread_over_the_cards_and_leave_them(machine_with, tmp_path):
    two = card(0, 80), card(1, 80)
    with take(tmp_path, *two) as first, take(tmp_path, *two) as second, take(tmp_path, *two) as third:
        assert [first, second, third] == ["cuda:0", "cuda:1", "cuda:0"]
    with take(tmp_path, *two) as fourth:
        assert fourth == "cuda:0"
    assert [path.name for path in tmp_path.iterdir()] == ["choosing"]


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_is_named_is_taken(device, machine_with, tmp_path):
    def never():
        raise AssertionError("nobody asked for a card")

    with seated(device, never, cards=never, desk=tmp_path) as found:
        assert found == device


def test_without_a_card_auto_stays(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a card is here")
    with take(tmp_path, device="auto") as found:
        assert found == "auto"


def test_where_no_card_has_room_a_step_waits(machine_with, tmp_path):
    """One card for two steps of 30 of its 80 GiB: the third comes when one of them has gone."""
    one, came = card(0, 80), threading.Event()

    def third():
        with take(tmp_path, one):
            came.set()

    with take(tmp_path, one):
        with take(tmp_path, one):
            waiting = threading.Thread(target=third)
            waiting.start()
            time.sleep(0.2)
            assert not came.is_set()
        assert came.wait(60)
    waiting.join()


def _die(desk, ready):
    seat = cards._seat(desk, [card(0, 80), card(1, 80)], GIB)
    ready.send(seat[0])
    os._exit(1)


def test_a_process_that_dies_gives_its_card_back(tmp_path):
    """Its file is left, and its lock is not: the twin is the same file while the process lives."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(tmp_path, theirs))
    process.start()
    assert mine.recv() == 0
    process.join()
    assert len(list(tmp_path.glob("GPU-0.*"))) == 1
    assert cards._steps(tmp_path, card(0, 80)) == 0 and not list(tmp_path.glob("GPU-0.*"))
    index, lock = cards._seat(tmp_path, [card(0, 80)], GIB)
    assert index == 0 and cards._steps(tmp_path, card(0, 80)) == 1
    lock.release()


def test_the_memory_of_a_training_on_paper(monkeypatch):
    """A linear layer from 12 pixels to 10 classes: 130 weights, 22 values for an image; twice for 50 images."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    monkeypatch.setattr(cards, "build", lambda arch, info: net.to("meta"))
    found = memory.__wrapped__("any", Info(10, (3, 2, 2), (0.5,) * 3, (0.5,) * 3), 50)
    assert found == FIXED + COPIES * 4 * (130 + 50 * 22)


def test_a_resnet_of_the_protocol_takes_some_gibibytes_and_a_digits_net_hardly_more_than_the_context():
    resnet = memory("resnet18", Info(10, (3, 32, 32), (0.5,) * 3, (0.5,) * 3), 256)
    assert 4 * GIB < resnet < 16 * GIB
    assert FIXED < need(TINY, STORE) < 1.1 * FIXED


def test_a_step_of_a_grid_runs_on_the_card_that_it_was_given(monkeypatch, tmp_path):
    from contextlib import nullcontext

    seen = []
    task = Task("dense", job(), TINY, tmp_path, tmp_path, STORE, "auto", 1, None, False, False, None, False)

    def seat(device, wanted):
        seen.append((device, wanted()))
        return nullcontext("cuda:3")

    monkeypatch.setattr(prunebench.bench.grid.task, "seated", seat)
    monkeypatch.setattr(Step, "_train", lambda step, report: seen.append(step.task.device))
    assert Step(task, "train")(lambda *told: None) is None
    assert seen == [("auto", need(TINY, STORE)), "cuda:3"]
