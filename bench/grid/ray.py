"""Ray as an engine: the steps of a grid run as Ray tasks, on a cluster or on this machine.

The nodes share what a run reads and writes: its working folder, the run folder, data and pruners have the same paths
on every node. All results are in those files, written aside and renamed. A lost node therefore costs only its current
step, and two nodes that run the same step write the same bytes.
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
from prunebench.bench.grid.local import Runnable, throttled
from prunebench.bench.progress import ProgressUpdate

SHARE = 0.25  # of a GPU per job, by default
RETRIES = 3  # of a step after its process or node was lost
LOST = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")  # errors that Ray retries
DESK = ".nodes"  # in the run folder: the token by which nodes recognise it, and their progress files
TOKEN = "token"
SEE_ALL = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"  # of Ray: do not hide a node's other cards from a step
OFTEN = 1.0  # seconds between progress reports of a step, and between reads of them


class Ray:
    """Runs steps on the Ray cluster at `address` or, without an address, on this machine, `jobs` in parallel.

    A step takes `threads` CPUs and `gpus` GPUs, which may be a share of one. The default is SHARE on the device cuda,
    and on auto if the cluster has a GPU; else none. A step with a share sees all GPUs of its node, and takes the one
    that `cards` chooses. `folder` is the run folder. Raises PrunebenchError for options that Ray cannot honour.
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
                f"Ray chooses the GPU itself, so device {device!r} is not possible; name cuda or auto."
            )
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
            raise PrunebenchError(f"A job cannot have {gpus} GPUs; give a share in [0, 1] or a whole number.")
        if gpus and device == "cpu":
            raise PrunebenchError(f"A job on the device cpu cannot use {gpus} GPUs; leave --gpus-per-job out.")
        if address is not None and jobs is not None:
            raise PrunebenchError(f"Ray at {address} decides how many jobs run side by side; leave --jobs out.")
        if address is not None and address.startswith("ray://"):
            raise PrunebenchError(
                f"{address} is an address of Ray's client; run on a machine of the cluster with --address auto."
            )
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
        if self.address is None:  # steps exchange files, so a small object store is enough
            cpus = None if self.jobs is None else self.jobs * self.threads
            options = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "object_store_memory": 2**27}
        try:
            self._ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a node that is slow to start raises nothing more specific
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
        self._token, self._looked, self._seen = uuid.uuid4().hex, 0.0, dict[str, ProgressUpdate]()
        shutil.rmtree(self.desk, ignore_errors=True)  # left by a killed run
        write_bytes(self.desk / TOKEN, self._token.encode())
        options: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": self.gpus}
        if self.gpus and self.gpus < 1:  # Ray fills one card before the next; a step itself takes the freest
            options["runtime_env"] = {"env_vars": {SEE_ALL: "1"}}
        self._do = self._ray.remote(**options, max_retries=RETRIES, retry_exceptions=False)(_do)
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
        """How many steps the live nodes can run in parallel."""
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
        """Allow one queued step per running step: no node is idle, and an added node finds work."""
        return running < max(2 * self._fitting(), 1)

    def submit(self, step: Runnable) -> Future[Any]:
        """Run `step` on a node that has room for it; if that node is lost, on another."""
        task = self._do.remote(step, os.fspath(Path.cwd()), os.fspath(self.desk), self._token)
        future: Future[Any] = task.future()
        self._steps[future] = task
        return future

    def updates(self) -> Iterator[ProgressUpdate]:
        """Progress reported by the steps, in files that are read at most once per second."""
        if time.monotonic() - self._looked < OFTEN:
            return
        self._looked = time.monotonic()
        with suppress(OSError):  # a failed progress report must not stop the run
            for path in self.desk.glob("*.json"):
                with suppress(OSError, ValueError):  # the step has just ended
                    name, what, done, of = json.loads(path.read_bytes())
                    if self._seen.get(name) != (update := (name, what, done, of)):
                        self._seen[name] = update
                        yield update

    def why(self, error: BaseException) -> str:
        """The sentence of a PrunebenchError; else that the step was lost repeatedly, or why Ray could not run it."""
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, PrunebenchError):
            return str(cause)
        if type(error).__name__ in LOST:
            return (
                f"Its process or its node was lost {RETRIES + 1} times, perhaps because memory ran out "
                f"({type(error).__name__}); run again with more --threads or a larger --gpus-per-job."
            )
        return (
            f"Ray could not run it ({type(cause).__name__}: {str(cause).partition(chr(10))[0]}); make sure that all "
            "nodes have the same packages, pruners and versions, then run again."
        )


def _do(step: Runnable, home: str, desk: str, token: str) -> Any:
    """On a node: run `step`, in the working folder of the process that submitted it."""
    try:
        os.chdir(home)
        found = (Path(desk) / TOKEN).read_text()
    except OSError as error:
        found = str(error.strerror)
    if found != token:
        raise PrunebenchError(
            f"The node {socket.gethostname()} does not see {home} and {Path(desk).parent} as the node that started "
            f"the run does ({found[:40]}); share these folders between all nodes under the same paths."
        )
    update_path = Path(desk) / f"{step.name}.json"
    aside = update_path.with_suffix(".aside")

    def write(*progress: str | float) -> None:  # atomic for readers, but not flushed to disk: no `write_bytes`
        with suppress(OSError):  # if the disk is full, the job fails when it saves a result
            aside.write_text(json.dumps([step.name, *progress]))
            aside.replace(update_path)

    try:
        return step(throttled(write, OFTEN))
    finally:
        with suppress(OSError):
            update_path.unlink()


def _ray() -> Any:
    """Import Ray, with its usage statistics turned off. Raises PrunebenchError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PrunebenchError(
            f"Ray cannot be imported ({error}); run `pip install '.[ray]'` in a checkout of prunebench, "
            "or leave --engine ray out."
        ) from error
