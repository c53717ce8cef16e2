"""The processes of a grid: what they log is heard where it was started."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bench.engine import Pool


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
        for step in (Warns("capture", "prunebench.capture"), Warns("executor", "prunebench.executor")):
            pool.submit(step).result()
    assert [record.getMessage() for record in caplog.records] == ["capture says so"]
