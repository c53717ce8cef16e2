"""Work that waits in the middle until it is killed, once: for tests that kill. Processes on other nodes import it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from prunebench.bench.data import Split, Store
from prunebench.bench.progress import ProgressCallback
from tests.support.pruner_texts import FAULTS_AND_CUT

NODE = "PRUNEBENCH_TEST_NODE"


def hold(mark: Path) -> None:
    """Whoever comes first writes into `mark` which node of Ray it is on, and stays; all others go on.

    A pruner's process knows the node from its environment. A file "let-go" beside the mark ends it, for a test that
    went wrong.
    """
    try:
        file = mark.open("x")
    except FileExistsError:
        return
    with file:
        file.write(os.environ.get(NODE, "unknown"))
    while not mark.with_name("let-go").exists():
        time.sleep(1)


def _note_node() -> None:
    """Leave the node of this worker of Ray, if it is one, where its processes find it."""
    import ray

    if ray.is_initialized() and NODE not in os.environ:
        os.environ[NODE] = ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class HeldStore(Store):
    """Holds the first that asks for test images when some shard in the run folder `out` has been attacked."""

    out: Path = Path()

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The training images; a worker of Ray asks for them before it starts a process for the pruner."""
        _note_node()
        return super().training(name, validation=validation, train=train)

    def testing(self, name: str, count: int | None = None) -> Split:
        """The test images."""
        _note_node()
        if any(self.out.rglob("journal/*.json")):
            hold(self.out / "scoring-held")
        return super().testing(name, count)


@dataclass(frozen=True)
class HalvedStore(Store):
    """Has 64 training images and as many for validation, whatever is asked for."""

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The first of each."""
        whole = super().training(name, validation=validation, train=train)
        return whole[0].take(slice(0, 64)), whole[1].take(slice(0, 64))


@dataclass(frozen=True)
class Telling:
    """A step that tells how far it is and then waits for the file `go`."""

    name: str
    go: Path

    def __call__(self, report: ProgressCallback) -> str:
        report("half", 1.0, 2.0)
        while not self.go.exists():
            time.sleep(0.1)
        return "done"


PRUNER = (
    '''
from dataclasses import dataclass
from pathlib import Path

from tests.support.held import hold


@dataclass(frozen=True)
class Held:
    """Random weights cut at the end; between its two stages the first of all is held."""

    mode: str = "works"

    def __call__(self, job, lab):
        fail(self.mode)
        first = lab.fit("first", lab.initial(), epochs=1)
        hold(Path(__file__).with_name("training-held"))
        return cut(lab.fit("second", first.weights, epochs=1).weights, lab.shapes, lab.keep)
'''
    + FAULTS_AND_CUT
)
