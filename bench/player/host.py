"""The referee's side of a pruner's process: starts, queries, reads and measures it, but never runs its code."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import pickle
import secrets
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunebench.bench.errors import PrunebenchError, printable, unknown
from prunebench.bench.player.handover import Describe, Described, Request
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.schema import explain
from prunebench.bench.spec import read, source_of

GONE = -signal.SIGKILL  # the exit code assumed for a process that reports none
LONGEST = 2**20  # bytes per message; a longer one from a pruner is dropped


class Fault(PrunebenchError):
    """An error in a pruner's own code: one sentence, and its traceback in `trace`."""

    def __init__(self, sentence: str, trace: str) -> None:
        super().__init__(sentence)
        self.trace = trace


@dataclass(frozen=True)
class DescribedPruner:
    """What the referee knows of a pruner: `name` from its spec, `source` (sha256) of its file, the rest as reported."""

    spec: str
    name: str
    options: dict[str, bool | int | float | str]
    prunes: bool
    source: str


class Host:
    """A process for pruners that is kept warm and answers each request in its own fork.

    `prefix`: the command to start it with, such as a sandbox.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self._messages = -1
        self._lock = threading.Lock()  # one request at a time

    def start(self) -> None:
        """Start the process unless it is running; it does its imports while the caller continues."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._messages, messages = os.pipe()
        os.set_blocking(self._messages, False)
        # Importing numpy starts threads, but a process must have a single thread to fork safely.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [*self.prefix, sys.executable, "-P", "-m", "prunebench.bench.player.process", str(messages)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(messages,),
                process_group=0,  # Ctrl-C is for this process alone, which then ends that one
                env=env,
            )
        except OSError as error:
            raise PrunebenchError(
                f"Cannot start a process for the pruner ({error.strerror}); free memory or processes, then run again."
            ) from None
        finally:
            os.close(messages)

    def close(self) -> None:
        """End the process, and whatever it is doing."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None
        if self._messages >= 0:
            os.close(self._messages)
            self._messages = -1

    def ask(self, request: Request, report: ProgressCallback | None = None) -> tuple[Any, float | None]:
        """Return the answer to the request, as JSON, and the processor seconds of all processes that worked on it.

        The kernel counts the seconds; None if it does not report them. Raises PrunebenchError for an error that the
        process reports, Fault for an error in the pruner's own code, and PrunebenchError if the process died.
        """
        with self._lock:
            try:
                return self._ask(request, report)
            except PrunebenchError:
                raise
            except BaseException:
                self.close()  # whatever the process is doing, nobody will read the result
                raise

    def _ask(self, request: Request, report: ProgressCallback | None) -> tuple[Any, float | None]:
        self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        before, number = _spent(process.pid), secrets.token_hex(8)
        data = pickle.dumps((Path.cwd(), sys.path, number, request))
        try:
            process.stdin.write(len(data).to_bytes(8, "big") + data)
            process.stdin.flush()
        except OSError:
            pass  # it is gone, as the end of its output shows below
        heard = _Heard(number, report)
        code = None
        while code is None:
            ready, _, _ = select.select([self._messages, process.stdout.fileno()], [], [])
            if self._messages in ready:
                heard.take(self._messages)
            if process.stdout.fileno() in ready:
                ended = os.read(process.stdout.fileno(), 8)
                code = int.from_bytes(ended, "big", signed=True) if len(ended) == 8 else GONE
        while heard.take(self._messages):
            pass
        after = _spent(process.pid)
        if self.prefix or code == GONE:  # a process for one request only, or a dead one
            self.close()
        spent = None if before is None or after is None else after - before
        if code == GONE:
            heard.last = None  # whatever was said before, nobody has counted the work behind it
        return heard.answer(code), spent


class _Heard:
    """The messages from a pruner's process so far, all treated as mere text."""

    def __init__(self, number: str, report: ProgressCallback | None) -> None:
        self.number, self.report, self.rest = number, report, b""
        self.last: tuple[str, Any] | None = None

    def take(self, messages: int) -> bool:
        """Read the available bytes; returns whether there were any."""
        try:
            data = os.read(messages, 2**16)
        except BlockingIOError:
            return False
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST:
            self.rest = b""
        for line in lines:
            told = self._hear(line)
            if told is not None and self.report is not None:
                self.report(*told)
        return bool(data)

    def _hear(self, line: bytes) -> tuple[str, float, float] | None:
        """Process one message and return its progress, if any; ignore a message that is not about this request."""
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            number, kind, said = json.loads(line)
            if number != self.number:
                return None
            if kind in ("answer", "error", "fault"):
                self.last = (kind, said)
            elif kind == "log":
                name, level, text = str(said[0]), int(said[1]), printable(str(said[2]))[:2000]
                if name.startswith("prunebench"):
                    logging.getLogger(name).log(level, "%s", text)
            elif kind == "told":
                done, of = float(said[1]), float(said[2])
                if math.isfinite(done) and math.isfinite(of):
                    return printable(str(said[0]))[:200], done, max(of, 1e-9)
        return None

    def answer(self, code: int) -> Any:
        """The answer, if the process gave one; raises its error otherwise."""
        if self.last is None:
            how = f"was killed by signal {-code}" if code < 0 else "ended without a result"
            raise PrunebenchError(
                f"The pruner's process {how}, perhaps because memory ran out; run again with fewer --jobs."
            )
        kind, said = self.last
        if kind == "answer":
            return said
        if kind == "error":
            raise PrunebenchError(str(said))
        sentence, trace = (*said, "", "")[:2] if isinstance(said, list) else (said, "")
        raise Fault(str(sentence), str(trace))


def _spent(pid: int) -> float | None:
    """Processor seconds of the ended children of the process for pruners; None if there is no /proc.

    `pid` is that process, or the command that started it, whose only child leads to it.
    """
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


@cache
def host() -> Host:
    """The shared Host of this process, without a sandbox."""
    made = Host()
    atexit.register(made.close)
    return made


def describe(specs: Sequence[str]) -> list[DescribedPruner]:
    """Describe the pruners that `specs` name; their code runs in another process.

    Raises PrunebenchError for an unknown name or option, and for a value of the wrong type.
    """
    told, _ = host().ask(Describe(tuple(specs)))
    try:
        found = [Described.model_validate(one) for one in told]
        if len(found) != len(specs):
            raise ValueError(f"{len(found)} answers")
    except (ValidationError, TypeError, ValueError) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise PrunebenchError(f"The pruners {', '.join(specs)} could not be described: {why}") from None
    return [_described(spec, one) for spec, one in zip(specs, found, strict=True)]


def _described(spec: str, told: Described) -> DescribedPruner:
    asked = read(spec)
    keys = [key for key, _ in asked.options]
    if foreign := sorted(told.options.keys() - set(keys)):
        raise unknown(f"option of {asked.head}", foreign[0], keys)
    return DescribedPruner(spec, asked.label, told.options, told.prunes, source_of(spec))
