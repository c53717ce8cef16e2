"""The process in which a pruner's code runs. It trains and hands over tensors; it scores, seals and records nothing.

`python -m prunebench.bench.player.process FD` imports once what every pruner needs, then forks for each request that it
reads. A pruner's code runs only in the fork, which ends with it. The fork writes its messages to the file descriptor
FD.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunebench.bench import machine
from prunebench.bench.errors import NoRanking, PrunebenchError
from prunebench.bench.faults import fault
from prunebench.bench.lab import dry
from prunebench.bench.lab.backend import Backend, Computed, Fit, Loop
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.lab.tensorboard import Curves
from prunebench.bench.mask import State
from prunebench.bench.models import build
from prunebench.bench.player.handover import Describe, Play, Request, leave
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.spec import read, registered
from prunebench.pruners import resolve

Send = Callable[[str, Any], None]  # the kind of a message, and its content
PATIENCE = 0.02  # seconds between checks that the referee is still alive
SUBREAPER, DEATH_SIGNAL = 36, 1  # prctl: adopt orphans; die with the parent


def describe(request: Describe) -> list[dict[str, Any]]:
    """Each pruner's description of itself."""
    resolved = [resolve(spec) for spec in request.specs]
    return [{"options": one.options, "prunes": one.prunes} for one in resolved]


def play(request: Play, send: Send) -> None:
    """Let the pruner train, and write its weights to the folder of the request."""
    curves = Curves(request.folder / "tensorboard") if request.tensorboard else None
    backend = Whole(request.stages, curves=curves, send=send)
    lab, pruner = _lab(request, backend), resolve(request.spec).pruner
    backend.budget.append(lab.meter.granted)
    try:
        state = pruner(request.job, lab)
    except NoRanking as error:
        last = f"After stage {lab.meter.stages[-1].name!r}" if lab.meter.stages else "Before any stage"
        raise PrunebenchError(f"{last}: {error}") from None
    except PrunebenchError as error:
        if read(request.spec).head not in registered():
            raise  # a file's code may work long outside the lab's stages, so it does not run once more
        raise PrunebenchError(f"{error}{dry.needs(_lab(request, dry.Dry()), pruner)}") from None
    leave(request.folder, state, lab.meter.stages)


@dataclass(frozen=True, kw_only=True)
class Whole(Computed):
    """Computes stages, and reports progress as sample passes of the whole job.

    `budget`: the sample passes granted, then those of every stage that was begun, the last one included.
    """

    send: Send
    budget: list[int] = field(default_factory=list)

    def train(self, asked: Fit) -> Trained:
        """As Computed.train."""
        self.budget.append(asked.passes)
        return super().train(asked)

    def loop(self, asked: Loop) -> tuple[State, float]:
        """As Computed.loop."""
        self.budget.append(asked.passes)
        return super().loop(asked)

    def _named(self, stage: str) -> ProgressCallback:
        granted, *earlier, now = self.budget

        def report(what: str, done: float, of: float) -> None:
            passes = sum(earlier) + now * done / of
            self.send("told", [f"{stage}: {what}", passes, max(granted, passes)])

        return report


def _lab(request: Play, backend: Backend) -> Lab:
    torch.set_num_threads(request.threads)
    machine.search_arithmetic()
    return Lab(
        request.job,
        request.protocol,
        request.store,
        backend,
        device=machine.device_named(request.device),
        resolve=lambda spec: resolve(spec).pruner,
    )


def _prepare(request: Request) -> None:
    """Import what the request needs, once for all later forks; compute nothing, as that could start threads.

    The fork reports any error in the request.
    """
    if not isinstance(request, Play):
        return
    with suppress(Exception):
        if request.protocol.data != "digits":
            importlib.import_module("torchvision.datasets")
        with torch.device("meta"):
            build(request.protocol.model)


def _answer(request: Request, send: Send) -> None:
    """Answer the request; report an error in the pruner with its line number."""
    try:
        if isinstance(request, Describe):
            send("answer", describe(request))
        else:
            play(request, send)
            send("answer", None)
    except PrunebenchError as error:
        send("error", str(error))
    except BaseException as error:  # noqa: BLE001  a pruner may be third-party code, and may call sys.exit
        send("fault", [fault(error, request.specs), traceback.format_exc()])


class _Forwarder(logging.Handler):
    """Forwards log records to the referee."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        self.send("log", [record.name, record.levelno, record.getMessage()])


def _fork(number: str, request: Request, messages: int, control: int) -> None:
    """In the fork: answer the request, then end; prints go elsewhere, as standard output belongs to the referee."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _prctl(DEATH_SIGNAL, signal.SIGKILL)
    os.close(control)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)

    def send(kind: str, said: Any) -> None:
        line = json.dumps([number, kind, said]).encode() + b"\n"
        while line:
            line = line[os.write(messages, line) :]

    logging.getLogger("prunebench").addHandler(_Forwarder(send))
    _answer(request, send)
    sys.stderr.flush()


def serve(messages: int) -> None:
    """Answer requests from standard input, each in a fork, until the input ends; kill what a fork leaves running.

    A request is its length in eight bytes, then its text. When the fork and all processes that it started have ended,
    its exit status is written to the original standard output.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(SUBREAPER, 1)
    _prctl(DEATH_SIGNAL, signal.SIGKILL)
    control = os.dup(1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    while (asked := _request()) is not None:
        _prepare(asked[1])
        child = os.fork()
        if child == 0:
            try:
                _fork(*asked, messages, control)
            finally:
                os._exit(0)
        ended = _ended(child).to_bytes(8, "big", signed=True)
        with suppress(BrokenPipeError):  # the referee is gone
            os.write(control, ended)


def _request() -> tuple[str, Request] | None:
    """The next request and its number; None at the end."""
    head = _read(8)
    if len(head) < 8:
        return None
    here, sys.path[:], number, request = pickle.loads(_read(int.from_bytes(head, "big")))  # noqa: S301  from the referee
    os.chdir(here)  # the base of its relative paths
    return number, request


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size and (part := os.read(0, size - len(data))):
        data += part
    return data


def _ended(child: int) -> int:
    """The exit code of `child`, once all its processes have ended; kills it if the referee is gone."""
    code = None
    while code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif select.select([0], [], [], PATIENCE)[0]:  # only the end of the input can arrive now
            os.kill(child, signal.SIGKILL)
    while left := _children():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)
    return code


def _children() -> list[int]:
    """The child processes of this one, including adopted orphans."""
    with suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


def _prctl(option: int, value: int) -> None:
    """Call prctl on Linux; elsewhere orphans survive, and no process learns of its parent's death."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
