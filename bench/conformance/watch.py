"""Watches a running pruner: what it computes, and which files, data and randomness it uses."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from prunebench.bench import executor
from prunebench.bench.data import Store, as_float
from prunebench.bench.datasets import DATASETS
from prunebench.bench.job import Job
from prunebench.bench.lab.backend import Computed, Fit
from prunebench.bench.lab.lab import Lab
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.protocol import Protocol
from prunebench.pruners import ResolvedPruner, resolve

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_BEYOND = {
    "subprocess.Popen": "started a process",
    "os.system": "started a process",
    "os.fork": "started a process",
    "os.posix_spawn": "started a process",
    "os.exec": "started a process",
    "socket.connect": "opened a connection",
}
_DATA = tuple(mark for known in DATASETS.values() for mark in known.marks)

_watching: list[Seen] = []  # the watched runs; an audit hook cannot be removed, so it looks here
_hooked: list[bool] = []


@dataclass
class Seen:
    """What was noticed while a pruner ran in `folder`."""

    folder: Path
    outside: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One run: its weights (None if it ended in `error`), its cost, and what was seen."""

    state: Any
    error: Exception | None
    lab: WatchedLab
    seen: Seen


def run(resolved: ResolvedPruner, task: Protocol, folder: Path, world: int) -> Run:
    """Run the pruner, with its stages in `folder` and the global generators seeded with `world`."""
    sparsity = task.sparsities[0] if resolved.prunes else 0.0
    job = Job(pruner=resolved.name, options=resolved.options, sparsity=sparsity, seed=0)
    counter = WorkCounter()
    backend = Trusted(folder / "stages", counter=counter)
    lab = WatchedLab(job, task, Store(Path("data")), backend, resolve=lambda spec: resolve(spec).pruner)
    lab.watch(counter)
    executor.lacking()  # may start a compiler, so it runs before the watch begins
    seen = Seen(folder)
    state, error = None, None
    with generators(world, seen), _elsewhere(folder, seen), watched(seen):
        try:
            with lab.counter:
                state = resolved.pruner(job, lab)
        except Exception as fault:  # noqa: BLE001  a pruner may be third-party code; its error is a finding
            error = fault
    return Run(state, error, lab, seen)


class WorkCounter(TorchDispatchMode):
    """Counts the multiplications of a pruner's own work, in forwards of the net (`price` per image)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.price, self.fitted, self.trusted = 0, 1, 0, 0

    @property
    def passes(self) -> float:
        """Sample passes of work, excluding the lab's own trainings."""
        return self.flops / self.price

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count its work."""
        result = func(*args, **(kwargs or {}))
        if not self.trusted and (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True, kw_only=True)
class Trusted(Computed):
    """Separates the lab's own trainings, which are charged correctly, from the pruner's work."""

    counter: WorkCounter

    def train(self, asked: Fit) -> Trained:
        """As Computed.train."""
        self.counter.trusted += 1
        try:
            trained = super().train(asked)
        finally:
            self.counter.trusted -= 1
        self.counter.fitted += asked.passes
        return trained


class WatchedLab(Lab):
    """A lab that records the budget it granted and the work done in it."""

    counter: WorkCounter
    granted: int

    def watch(self, counter: WorkCounter) -> None:
        """Count work in `counter` from now on."""
        self.counter, self.granted = counter, self.meter.granted
        with self.counter, torch.no_grad():
            self.model().eval()(as_float(self.train.images[:1]))
        self.counter.price, self.counter.flops = self.counter.flops, 0


@contextmanager
def generators(world: int, seen: Seen) -> Iterator[None]:
    """Seed the global generators with `world`, note which were used, and restore their states."""
    readers: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "numpy": (lambda: np.random.get_state(legacy=False), np.random.set_state),  # noqa: NPY002  the global one is meant
        "random": (random.getstate, random.setstate),
    }
    kept = {name: read() for name, (read, _) in readers.items()}
    torch.default_generator.manual_seed(world)
    np.random.seed(world)  # noqa: NPY002
    random.seed(world)
    before = {name: repr(_plain(read())) for name, (read, _) in readers.items()}
    try:
        yield
    finally:
        for name, (read, write) in readers.items():
            if repr(_plain(read())) != before[name]:
                seen.random.append(f"the global generator of {name} was used or seeded")
            write(kept[name])


def _plain(state: Any) -> Any:
    """A generator's state in a form that `repr` shows in full."""
    if isinstance(state, torch.Tensor | np.ndarray):
        return state.tolist()
    return {key: _plain(value) for key, value in state.items()} if isinstance(state, dict) else state


@contextmanager
def _elsewhere(folder: Path, seen: Seen) -> Iterator[None]:
    """Run in an empty folder, also used for temporary files, and note the files left there."""
    here, temporary, bytecode = Path.cwd(), tempfile.tempdir, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        tempfile.tempdir, sys.dont_write_bytecode = place, True  # imports must not write bytecode either
        try:
            yield
        finally:
            os.chdir(here)
            tempfile.tempdir, sys.dont_write_bytecode = temporary, bytecode
            left = sorted(path.relative_to(place) for path in Path(place).rglob("*"))
            seen.outside += [f"wrote {path} into the working or temporary folder" for path in left]


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Note every file that this process opens for writing, data set that it reads and process that it starts."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.pop()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching or not (event == "open" or event in _CHANGES or event in _BEYOND):
        return
    seen = _watching[-1]
    if event in _BEYOND:
        seen.outside.append(_BEYOND[event])
        return
    # A rename or link has two paths: the first may lose a file, the second gains one.
    paths = args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]
    for path in paths:
        if not isinstance(path, str | bytes | os.PathLike):
            continue  # a file that is already open
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  resolve() would access the disk
        if event == "open" and not _writes(*args[1:3]):
            if any(part in place for part in _DATA):
                seen.data.append(f"opened the data set file {os.path.basename(place)}")  # noqa: PTH119
        elif f"{os.sep}__pycache__" in place:
            continue  # compiled code, written by an import
        elif not place.startswith((f"{seen.folder}{os.sep}", os.devnull)) and place != str(seen.folder):
            seen.outside.append(f"wrote or changed {place}")


def _writes(mode: object, flags: object) -> bool:
    """Whether a file is opened for more than reading, judged by the arguments of the audit event."""
    by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return by_mode or (not isinstance(mode, str) and isinstance(flags, int) and bool(flags & _WRITES))
