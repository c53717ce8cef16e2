"""The conformance suite: the rules of a pruner, checked on a task of seconds.

    from prunebench.bench.conformance.suite import check
    report = check("my_module:MyPruner")  # or a registered name, or "path/to/file.py:MyPruner"
    assert report.holds, report

What is watched is what one process of Python can see, while the pruner's module is first imported and while it works.
Work that a pruner does in another process or another thread is not counted, and a file that compiled code opens by
itself is seen in the working and the temporary folder alone.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from prunebench.bench import executor, machine
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.data import Store, as_float
from prunebench.bench.datasets import DATASETS
from prunebench.bench.errors import BudgetExceeded, Refused, printable
from prunebench.bench.lab.backend import Computed, Fit
from prunebench.bench.lab.lab import Lab, Pruner
from prunebench.bench.lab.schedule import Trained
from prunebench.bench.mask import State, keep_count
from prunebench.bench.protocol import Job, Protocol, Threat, Training
from prunebench.pruners import Chosen, parse

# Twelve epochs of two steps: the fewest in which every built-in pruner has an epoch for each of its stages.
TASK = Protocol(
    name="conformance",
    data="digits",
    model="digits-cnn",
    threat=Threat(norm="Linf", eps="0.15"),
    units=3.0,
    sparsities=(0.937,),
    seeds=(0,),
    validation=32,
    train=128,
    test=64,
    shard=64,
    training=Training(objective="pgd", steps=2, step_size="0.1", epochs=4, batch=64, lr=0.1, validate_every=100),
)
LOST = 0.1  # share of the weights that shuffling may leave at zero
WORLDS = (86_028_121, 86_028_157, 86_028_159)  # global seeds, apart from any that a pruner may set
SLACK = 1.05  # work over the price paid for it; a forward of a net is a little more than its multiplications

# What each check asks for, and how to mend a pruner that does not hold it.
CHECKS = {
    "options": "Write a frozen dataclass, every field annotated bool, int, float or str with a default of that type.",
    "runs": "Let it end without an error on the tiny task; the error stands above.",
    "loads": "Return the whole state dict of lab.model(): its keys, shapes and types, every value finite.",
    "sparsity": "Leave at most lab.keep weights that are not zero: choose them with bench.mask and train with masks=.",
    "budget": "Train through lab.fit, and pay for work of your own with lab.loop(passes=...) or lab.meter.charge.",
    "deterministic": "Draw from lab.generator(name) alone: no clock, no set order, no randomness of the system.",
    "random-state": "Leave the global generators of torch, numpy and random alone: use lab.generator(name).",
    "test-split": "Learn from lab.train and lab.validation alone; the referee alone opens the test images.",
    "files": "Return weights and nothing else: write no file, start no process; lab.loop saves what must last.",
    "shuffle": "Permute with bench.mask.shuffled after the masks are fixed, so that every layer keeps its count.",
}


@dataclass(frozen=True)
class Check:
    """One rule: `holds` is None where it could not be asked, `found` says what was seen, `mend` what to do."""

    name: str
    holds: bool | None
    found: str

    @property
    def mend(self) -> str:
        """How to make it hold."""
        return CHECKS[self.name]


@dataclass(frozen=True)
class Report:
    """What the suite found out about one pruner; printed, a line a check and a second one where it fails."""

    pruner: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def broken(self) -> list[str]:
        """The names of the checks that fail."""
        return [check.name for check in self.checks if check.holds is False]

    def __str__(self) -> str:
        words = {True: "holds", False: "FAILS", None: "not asked"}
        lines = []
        for check in self.checks:
            lines.append(f"{check.name:14} {words[check.holds]:10} {_line(check.found)}")
            if check.holds is False:
                lines.append(f"{'':25} {check.mend}")
        kept = sum(check.holds is True for check in self.checks)
        return "\n".join([*lines, f"{_line(self.pruner)}: {kept} of {len(self.checks)} checks hold."])

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON value."""
        checks = [dataclasses.asdict(check) | {"mend": None if check.holds else check.mend} for check in self.checks]
        return {"pruner": self.pruner, "holds": self.holds, "checks": checks}


@dataclass
class _Seen:
    """What was noticed while a pruner was at work in `folder`."""

    folder: Path
    outside: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


@dataclass
class _Run:
    """One run: the weights (None: it ended in `error`), what it cost, and what was seen."""

    state: Any
    error: Exception | None
    lab: _Lab
    seen: _Seen


def check(pruner: str, task: Protocol = TASK) -> Report:
    """Run the pruner that `pruner` names, with its options, through every check.

    `pruner`: as on the command line. `task`: a protocol on the digits. Raises PrunebenchError when there is no such
    pruner, or when it cannot be imported.
    """
    machine.env(torch.device("cpu"))  # asks git once, in a process of its own
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        loading = _Seen(folder / "import")
        with _generators(WORLDS[0], loading), _watched(loading):
            chosen = parse(pruner)
        found = {"options": _options(chosen)}
        first = _run(chosen, task, folder / "first", WORLDS[1])
        second = _run(chosen, task, folder / "second", WORLDS[2])
        found |= {"runs": _runs(first), "loads": _loads(first, chosen, folder / "net.safetensors")}
        names = list(first.lab.shapes) if found["loads"][0] or _whole(first) else []
        found |= {
            "sparsity": _sparsity(first, chosen, names),
            "budget": _budget(first),
            "deterministic": _deterministic(first, second),
            "random-state": _said(
                loading.random + first.seen.random, "the generators of torch, numpy and random are as they were"
            ),
            "test-split": _said(loading.data + first.seen.data, "no data set was opened while it was at work"),
        }
        other = _other(chosen.pruner)
        third = (
            None
            if other is None
            else _run(dataclasses.replace(chosen, pruner=other), task, folder / "first", WORLDS[1])
        )
        runs = [run.seen for run in (first, second, third) if run is not None]
        seen = [line for seen in (loading, *runs) for line in seen.outside]
        found["files"] = _said(seen, "nothing was written, started or connected to outside its folder")
        found["shuffle"] = _shuffle(first, third, names, chosen)
    return Report(pruner, tuple(Check(name, *found[name]) for name in CHECKS))


Found = tuple[bool | None, str]
_NOT_RUN: Found = (None, "there are no weights to look at")


def _said(offences: list[str], good: str) -> Found:
    return (False, "; ".join(dict.fromkeys(offences))) if offences else (True, good)


# The options of the class


def _options(chosen: Chosen) -> Found:
    cls: Any = type(chosen.pruner)
    faults = []
    if not cls.__dataclass_params__.frozen:
        faults.append(f"{cls.__name__} is a dataclass that is not frozen")
    hints = typing.get_type_hints(cls)
    for option in dataclasses.fields(cls):
        kind, default = hints[option.name], option.default
        if kind not in (bool, int, float, str):
            faults.append(f"{option.name} is annotated {getattr(kind, '__name__', kind)}")
        elif default is dataclasses.MISSING:
            faults.append(f"{option.name} has no default")
        elif type(default) is not kind:
            faults.append(f"{option.name}: {kind.__name__} has the default {default!r}")
    try:
        cls(no_such_option=1)
        faults.append("an unknown option is taken without a word")
    except TypeError:
        pass
    names = ", ".join(option.name for option in dataclasses.fields(cls))
    return _said(faults, f"frozen, typed, unknown ones refused: {names or 'it has none'}")


# What can be said of a run


def _runs(run: _Run) -> Found:
    if run.error is None:
        return True, "ended with a result"
    if isinstance(run.error, BudgetExceeded):
        return None, "stopped by the budget"
    return False, f"{type(run.error).__name__}: {run.error}"


def _whole(run: _Run) -> bool:
    """Whether there are weights to count, whatever else is wrong with them."""
    shapes, state = run.lab.shapes, run.state
    return isinstance(state, dict) and all(
        isinstance(state.get(name), torch.Tensor) and tuple(state[name].shape) == shape
        for name, shape in shapes.items()
    )


def _loads(run: _Run, chosen: Chosen, path: Path) -> Found:
    if run.error is not None:
        return _NOT_RUN
    if not (isinstance(run.state, dict) and all(isinstance(value, torch.Tensor) for value in run.state.values())):
        return False, f"it returned {type(run.state).__name__}, not a dict of tensors"
    task, info = run.lab.protocol, run.lab.info
    header = Header(
        arch=task.model,
        classes=info.classes,
        shape=info.shape,
        protocol=task,
        source=chosen.source,
        stages=(),
        train_sha256=run.lab.train_sha256,
        job=run.lab.job.model_copy(update={"sparsity": 0.0}),  # counted apart
    )
    try:
        seal(path, run.state, header, passes_granted=0)
        opened = open_net(path).module.state_dict()
    except Refused as refused:
        return False, str(refused)
    same = all(torch.equal(opened[name], tensor.detach().cpu()) for name, tensor in run.state.items())
    return same, f"sealed and opened again: {len(opened)} tensors, {'the same' if same else 'other'} values"


def _sparsity(run: _Run, chosen: Chosen, names: list[str]) -> Found:
    if run.error is not None or not names:
        return _NOT_RUN
    kept, whole = sum(_counts(run.state, names).values()), run.lab.prunable
    allowed = keep_count(whole, run.lab.job.sparsity)
    if not chosen.prunes:
        return True, f"it says that it does not prune, and keeps {kept} of {whole} weights"
    return kept <= allowed, f"keeps {kept} of {whole} weights; {run.lab.job.sparsity} leaves {allowed} at most"


def _budget(run: _Run) -> Found:
    meter = run.lab.meter
    if isinstance(run.error, BudgetExceeded):
        return False, str(run.error)
    if run.error is not None:
        return _NOT_RUN
    stages = ", ".join(f"{stage.name} {stage.passes:,}" for stage in meter.stages) or "nothing was charged"
    spent = f"spent {meter.spent:,} of {meter.granted:,} sample passes: {stages}"
    if meter.granted != run.lab.granted or meter.spent < run.lab.work.fitted:
        return (
            False,
            f"the meter was changed: {run.lab.granted:,} were granted, {run.lab.work.fitted:,} charged; {spent}",
        )
    own, paid = run.lab.work.passes, meter.spent - run.lab.work.fitted
    if own > SLACK * paid:
        return False, f"did the work of {own:,.0f} sample passes of its own and paid for {paid:,}; {spent}"
    return meter.spent <= meter.granted, spent


def _deterministic(first: _Run, second: _Run) -> Found:
    if first.error is not None:
        return _NOT_RUN
    if second.error is not None:
        return False, f"the second run ended in {type(second.error).__name__}: {second.error}"
    if not (isinstance(first.state, dict) and isinstance(second.state, dict)):
        return _NOT_RUN
    if first.state.keys() != second.state.keys():
        return False, "the second run gave other keys"
    differ = [name for name, tensor in first.state.items() if not _equal(tensor, second.state[name])]
    if differ:
        return False, f"the second run gave other values in {differ[0]} ({len(differ)} of {len(first.state)} tensors)"
    return True, "two runs, the second in another folder, gave the same bytes"


def _equal(one: Any, other: Any) -> bool:
    """Whether two tensors are the same bytes, NaN and all."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and one.detach().cpu().numpy().tobytes() == other.detach().cpu().numpy().tobytes()


def _other(pruner: Pruner) -> Pruner | None:
    """The same pruner with its option `shuffle` turned over; None when it has no such option."""
    if type(getattr(pruner, "shuffle", None)) is not bool:
        return None
    return dataclasses.replace(pruner, shuffle=not pruner.shuffle)  # type: ignore[type-var, attr-defined]


def _shuffle(first: _Run, third: _Run | None, names: list[str], chosen: Chosen) -> Found:
    if third is None:
        return True, "it has no option shuffle; with one, its masks could be told from their layer densities"
    if first.error is not None or not names:
        return _NOT_RUN
    if third.error is not None or not _whole(third):
        return False, f"with shuffle turned over it ended in {third.error or 'no weights'}"
    one, other = (first, third) if not getattr(chosen.pruner, "shuffle", False) else (third, first)
    plain, moved = _counts(one.state, names), _counts(other.state, names)
    told = f"without {', '.join(map(str, plain.values()))}; with {', '.join(map(str, moved.values()))}"
    lost = sum(plain.values()) - sum(moved.values())
    # Fewer may be left: a weight that a shuffled mask keeps may be zero and have no gradient (IWI's remainder).
    if any(moved[name] > plain[name] for name in names) or lost > LOST * sum(plain.values()):
        return False, f"layers keep other numbers of weights with shuffle than without: {told}"
    if chosen.prunes and all(torch.equal(first.state[name] != 0, third.state[name] != 0) for name in names):
        return False, "shuffle moves nothing: the masks are the same with it and without"
    return True, f"kept by layer: {told}"


def _counts(state: State, names: list[str]) -> dict[str, int]:
    return {name: int(torch.count_nonzero(state[name])) for name in names}


# A run under watch


class _Work(TorchDispatchMode):
    """Counts the multiplications of what a pruner computes itself, in forwards of the net (`price` for an image)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.price, self.fitted, self.trusted = 0, 1, 0, 0

    @property
    def passes(self) -> float:
        """Sample passes of work, the lab's own trainings left out."""
        return self.flops / self.price

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let `func` work and count it."""
        result = func(*args, **(kwargs or {}))
        if not self.trusted and (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True, kw_only=True)
class _Trusted(Computed):
    """Tells the lab's own trainings, which are charged rightly, from the work of the pruner."""

    work: _Work

    def train(self, asked: Fit) -> Trained:
        """As Computed.train."""
        self.work.trusted += 1
        try:
            trained = super().train(asked)
        finally:
            self.work.trusted -= 1
        self.work.fitted += asked.passes
        return trained


class _Lab(Lab):
    """A lab that knows what it granted, and how much work was done in it."""

    work: _Work
    granted: int

    def watched(self, work: _Work) -> _Lab:
        """This lab, ready to count in `work`."""
        self.work, self.granted = work, self.meter.granted
        with self.work, torch.no_grad():
            self.model().eval()(as_float(self.train.images[:1]))
        self.work.price, self.work.flops = self.work.flops, 0
        return self


def _run(chosen: Chosen, task: Protocol, folder: Path, world: int) -> _Run:
    """Let the pruner work, with its stages in `folder` and the global generators in a state that `world` names."""
    sparsity = task.sparsities[0] if chosen.prunes else 0.0
    job = Job(pruner=chosen.name, options=chosen.options, sparsity=sparsity, seed=0)
    work = _Work()
    backend = _Trusted(folder / "stages", work=work)
    lab = _Lab(job, task, Store(Path("data")), backend, resolve=lambda spec: parse(spec).pruner).watched(work)
    executor.lacking()  # starts a compiler where there are no kernels yet: before anybody is watched
    seen = _Seen(folder)
    state, error = None, None
    with _generators(world, seen), _elsewhere(folder, seen), _watched(seen):
        try:
            with lab.work:
                state = chosen.pruner(job, lab)
        except Exception as fault:  # noqa: BLE001  a pruner may be anybody's code; its fault is a finding
            error = fault
    return _Run(state, error, lab, seen)


@contextmanager
def _generators(world: int, seen: _Seen) -> Iterator[None]:
    """Give the global generators the seed `world`, note which were used, and put them back as they were."""
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
    """A generator's state as something that `repr` shows in full."""
    if isinstance(state, torch.Tensor | np.ndarray):
        return state.tolist()
    return {key: _plain(value) for key, value in state.items()} if isinstance(state, dict) else state


@contextmanager
def _elsewhere(folder: Path, seen: _Seen) -> Iterator[None]:
    """Work in an empty folder that is also the one for temporary files, and note what was left there."""
    here, temporary, bytecode = Path.cwd(), tempfile.tempdir, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        tempfile.tempdir, sys.dont_write_bytecode = place, True  # an import on the way must not write either
        try:
            yield
        finally:
            os.chdir(here)
            tempfile.tempdir, sys.dont_write_bytecode = temporary, bytecode
            left = sorted(path.relative_to(place) for path in Path(place).rglob("*"))
            seen.outside += [f"wrote {path} into the working or temporary folder" for path in left]


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

_watching: list[_Seen] = []  # the run under watch; an audit hook cannot be taken out again, so it looks here


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching or not (event == "open" or event in _CHANGES or event in _BEYOND):
        return
    seen = _watching[-1]
    if event in _BEYOND:
        seen.outside.append(_BEYOND[event])
        return
    # Of two paths, of a renaming or a link, the first is where something goes missing, the second where it appears.
    paths = args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]
    for path in paths:
        if not isinstance(path, str | bytes | os.PathLike):
            continue  # a file that is open already
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  resolve() would look at the disk
        if event == "open" and not _writes(*args[1:3]):
            if any(part in place for part in _DATA):
                seen.data.append(f"opened the data set file {os.path.basename(place)}")  # noqa: PTH119
        elif f"{os.sep}__pycache__" in place:
            continue  # compiled code, written by an import
        elif not place.startswith((f"{seen.folder}{os.sep}", os.devnull)) and place != str(seen.folder):
            seen.outside.append(f"wrote or changed {place}")


def _writes(mode: object, flags: object) -> bool:
    """Whether a file is opened for more than reading, by the arguments of the audit event."""
    by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return by_mode or (not isinstance(mode, str) and isinstance(flags, int) and bool(flags & _WRITES))


_hooked: list[bool] = []


@contextmanager
def _watched(seen: _Seen) -> Iterator[None]:
    """Note every file that this process opens for writing, every data set that it reads, every process it starts."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.pop()


def _line(text: str) -> str:
    """`text`, which may come from anybody's code, as one printable line of bounded length."""
    shown = printable(text)
    return shown if len(shown) <= 400 else f"{shown[:400]}..."
