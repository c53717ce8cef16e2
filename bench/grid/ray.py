"""Ray as an engine: the machines of a cluster, or this one, take the steps of a grid as tasks of Ray.

The nodes share what a run reads and writes: the folder in which it was started, the run folder, data and pruners lie
under the same paths everywhere. Everything that is decided lies in those files, written aside and renamed, so that a
lost node costs what it was at, and two that do the same thing write the same bytes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import write_bytes
from prunebench.bench.grid.local import News, Work, seldom

SHARE = 0.25  # of a GPU, for a job, where nothing else is asked for
RETRIES = 3  # of a step whose process or node was lost
LOST = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")  # what Ray tries again
DESK = ".nodes"  # the folder of the run folder by which nodes know it, and where they leave how far they are
TOKEN = "token"
OFTEN = 1.0  # seconds between two words of a step, and between two looks at them


class Ray:
    """The tasks of a grid on Ray: on the cluster at `address`, or on this machine, `jobs` side by side, without one.

    A step takes `threads` CPUs and the share `gpus` of a GPU: by default SHARE on the device cuda, on auto where the
    cluster has a GPU, else none. `folder` is the run folder. Raises PrunebenchError for what cannot be asked of Ray.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str | None = None,
        jobs: int | None = None,
        threads: int = 1,
        device: str = "auto",
        gpus: float | None = None,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise PrunebenchError(
                f"Ray chooses the card, so it cannot be asked for device {device!r}; name cuda or auto."
            )
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
            raise PrunebenchError(f"A job cannot have {gpus} GPUs; give a share in [0, 1] or a whole number.")
        if gpus and device == "cpu":
            raise PrunebenchError(f"A job on the device cpu needs no {gpus} GPUs; leave --gpus-per-job out.")
        if address is not None and jobs is not None:
            raise PrunebenchError(f"How many jobs run side by side at {address} is up to Ray; leave --jobs out.")
        if address is not None and address.startswith("ray://"):
            raise PrunebenchError(f"{address} is Ray's client; run this on a machine of the cluster, with auto.")
        self.folder, self.address, self.jobs = folder.absolute(), address, jobs
        self.desk = self.folder / DESK
        self.threads, self.device, self.gpus = threads, device, gpus

    def __str__(self) -> str:
        return f"on Ray at {self.address}" if self.address else "on Ray"

    def __enter__(self) -> Self:
        self._ray = _ray()
        self._init()
        try:
            self._begin()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def _init(self) -> None:
        options: dict[str, Any] = {"address": self.address}
        if self.address is None:  # the steps hand on files, so little memory for objects is enough
            cpus = None if self.jobs is None else self.jobs * self.threads
            options = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": 2**27}
        try:
            self._ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a node that is slow to come up raises nothing more special
            raise PrunebenchError(
                f"Cannot use Ray at {self.address or 'this machine'} ({str(error).partition(chr(10))[0]}); start it "
                "with `ray start --head`, or leave --address out."
            ) from error

    def _begin(self) -> None:
        if self.gpus is None:
            has_some = self._ray.cluster_resources().get("GPU", 0) > 0
            self.gpus = SHARE if self.device == "cuda" or (self.device == "auto" and has_some) else 0.0
        if self._fitting() == 0:
            raise PrunebenchError(
                f"No node of the cluster has {self.threads} CPUs and {self.gpus:g} GPUs for a job; ask for less "
                "(--threads, --gpus-per-job), or start a node that has them."
            )
        self._token, self._looked, self._seen = uuid.uuid4().hex, 0.0, dict[str, News]()
        shutil.rmtree(self.desk, ignore_errors=True)  # of a run that was killed
        write_bytes(self.desk / TOKEN, self._token.encode())
        self._do = self._ray.remote(
            num_cpus=self.threads, num_gpus=self.gpus, max_retries=RETRIES, retry_exceptions=False
        )(_do)
        self._steps: dict[Future[Any], Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for future, step in self._steps.items():
                if not future.done():
                    self._ray.cancel(step, force=True)
        self._ray.shutdown()
        shutil.rmtree(self.desk, ignore_errors=True)

    def _fitting(self) -> int:
        """How many steps the nodes that are alive can take side by side."""
        found = 0
        for node in self._ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            fit = has.get("CPU", 0) // self.threads
            if self.gpus:
                cards = has.get("GPU", 0)
                fit = min(fit, cards // self.gpus if self.gpus >= 1 else cards * (1 // self.gpus))
            found += int(fit)
        return found

    def room(self, running: int) -> bool:
        """As many steps again as are at work wait in line: no node is idle, and one that is added finds work."""
        return running < max(2 * self._fitting(), 1)

    def submit(self, step: Work) -> Future[Any]:
        """Have `step` done by a node that has room for it, and by another one if that is lost."""
        task = self._do.remote(step, os.fspath(Path.cwd()), os.fspath(self.desk), self._token)
        future: Future[Any] = task.future()
        self._steps[future] = task
        return future

    def news(self) -> Iterator[News]:
        """What the steps have told; it lies in files, at which nobody looks more than once a second."""
        if time.monotonic() - self._looked < OFTEN:
            return
        self._looked = time.monotonic()
        with suppress(OSError):  # nothing is given up for progress
            for path in self.desk.glob("*.json"):
                with suppress(OSError, ValueError):  # the step ended just now
                    name, what, done, of = json.loads(path.read_bytes())
                    if self._seen.get(name) != (told := (name, what, done, of)):
                        self._seen[name] = told
                        yield told

    def why(self, error: BaseException) -> str:
        """An error of ours as it is; that the step was lost again and again; or what Ray could not do."""
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, PrunebenchError):
            return str(cause)
        if type(error).__name__ in LOST:
            return (
                f"Its process or its node was lost {RETRIES + 1} times, perhaps for want of memory "
                f"({type(error).__name__}); run again, with more --threads or a larger --gpus-per-job."
            )
        return (
            f"Ray could not have it done ({type(cause).__name__}: {str(cause).partition(chr(10))[0]}); see that all "
            "nodes have the same packages, pruners and versions, then run again."
        )


def _do(step: Work, home: str, desk: str, token: str) -> Any:
    """On a node: do `step`, where the one who submitted it stands."""
    try:
        os.chdir(home)
        found = (Path(desk) / TOKEN).read_text()
    except OSError as error:
        found = str(error.strerror)
    if found != token:
        raise PrunebenchError(
            f"The node {socket.gethostname()} does not see {home} and {Path(desk).parent} as they are where the run "
            f"began ({found[:40]}); nodes share these folders under the same paths."
        )
    left = Path(desk) / f"{step.name}.json"
    aside = left.with_suffix(".aside")

    def tell(*told: str | float) -> None:  # whole for who reads it, but not made sure of on the disk: no `write_bytes`
        with suppress(OSError):  # a disk that cannot take it fails the job when that has something to keep
            aside.write_text(json.dumps([step.name, *told]))
            aside.replace(left)

    try:
        return step(seldom(tell, OFTEN))
    finally:
        with suppress(OSError):
            left.unlink()


def _ray() -> Any:
    """Ray, which sends no statistics to anybody from here. Raises PrunebenchError when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PrunebenchError(
            f"Ray cannot be imported ({error}); run `pip install 'prunebench[ray]'`, or leave --engine ray out."
        ) from error
