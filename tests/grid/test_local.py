"""The processes of a grid: what they log is heard where it was started, and one that dies takes nothing with it."""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pytest

from prunebench.bench.grid.local import Pool


@dataclass(frozen=True)
class Warns:
    """A step that logs a sentence and returns nothing."""

    name: str
    logger: str

    def __call__(self, report):
        logging.getLogger(self.logger).warning("%s says so", self.name)


def test_what_a_worker_logs_is_heard_here(caplog):
    """But not why nets run dense: the run says that once, for all of its jobs."""
    with Pool(2) as pool:
        for step in (Warns("compiled", "prunebench.compiled"), Warns("executor", "prunebench.executor")):
            pool.submit(step).result()
    assert [record.getMessage() for record in caplog.records] == ["compiled says so"]


@dataclass(frozen=True)
class Works:
    """A step that returns its process once the file `go` is there."""

    name: str
    go: Path

    def __call__(self, report):
        while not self.go.exists():
            time.sleep(0.05)
        return os.getpid()


@dataclass(frozen=True)
class Dies:
    """A step whose process is killed, as the system does when memory is short."""

    name: str

    def __call__(self, report):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_takes_neither_its_neighbour_nor_its_successors_with_it(tmp_path):
    """Two side by side: one dies while the other works, dies again in its new place, and then that place is of use."""
    with Pool(2) as pool:
        neighbour = pool.submit(Works("neighbour", tmp_path / "go"))
        for _ in range(2):
            with pytest.raises(BrokenProcessPool) as died:
                pool.submit(Dies("dies")).result()
            assert "Its worker process died, perhaps because memory ran out" in pool.why(died.value)
        assert not neighbour.done()
        following = pool.submit(Works("next", tmp_path / "go"))
        (tmp_path / "go").touch()
        assert following.result() != neighbour.result()


def test_a_process_that_dies_while_it_has_nothing_to_do_is_replaced(tmp_path):
    with Pool(1) as pool:
        step = Works("step", tmp_path)
        first = pool.submit(step).result()
        os.kill(first, signal.SIGKILL)
        (worker,) = pool._workers
        while not worker._broken:
            time.sleep(0.05)
        assert pool.submit(step).result() != first


def test_a_process_that_has_begun_is_taken_before_one_that_has_not(tmp_path):
    with Pool(3) as pool:
        assert len({pool.submit(Works(f"{k}", tmp_path)).result() for k in range(4)}) == 1
