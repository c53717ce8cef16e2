"""An engine for tests: no process is started but a pruner's."""

from __future__ import annotations

from concurrent.futures import Future


class Here:
    """An engine that takes every step in this process as soon as it is submitted, which takes no start of processes."""

    def __init__(self, workers=1):
        self.workers, self.taken, self.told = workers, [], []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def room(self, running):
        return running < self.workers

    def submit(self, step):
        self.taken.append(step.name)
        future = Future()
        future.set_result(step(lambda *told: self.told.append((step.name, *told))))
        return future

    def updates(self):
        told, self.told = self.told, []
        return iter(told)

    def why(self, error):
        return str(error)
