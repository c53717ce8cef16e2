"""The conformance suite: checks the rules for pruners on a task that takes seconds.

    from prunebench.bench.conformance.suite import check
    report = check("my_module:MyPruner")  # or a registered name, or "path/to/file.py:MyPruner"
    assert report.holds, report

The suite observes what one Python process can see, while the pruner's module is first imported and while it runs.
Work that a pruner does in another process or thread is not counted. A file that compiled code opens itself is seen
only in the working folder and the temporary folder.
"""

from __future__ import annotations

import dataclasses
import tempfile
import typing
from pathlib import Path
from typing import Any

import torch

from prunebench.bench import machine
from prunebench.bench.checkpoint import Header, open_net, seal
from prunebench.bench.conformance.report import CHECKS, Check, Report
from prunebench.bench.conformance.watch import Run, Seen, generators, run, watched
from prunebench.bench.errors import BudgetExceeded, Refused
from prunebench.bench.faults import fault
from prunebench.bench.lab.lab import Pruner
from prunebench.bench.mask import State, keep_count
from prunebench.bench.names import NET
from prunebench.bench.protocol import Protocol, Threat
from prunebench.bench.recipe import Training
from prunebench.pruners import ResolvedPruner, resolve

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
LOST = 0.1  # share of the kept weights that may be zero after shuffling
WORLDS = (86_028_121, 86_028_157, 86_028_159)  # global seeds that no pruner is likely to set
SLACK = 1.05  # allowed ratio of work to price paid; a forward is a little more than its multiplications


def check(pruner: str, task: Protocol = TASK) -> Report:
    """Run the pruner that `pruner` names, with its options, through every check.

    `pruner`: as on the command line. `task`: a protocol on the digits. Raises PrunebenchError if there is no such
    pruner, or if it cannot be imported.
    """
    machine.env(torch.device("cpu"))  # calls git once, in a separate process
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        loading = Seen(folder / "import")
        with generators(WORLDS[0], loading), watched(loading):
            resolved = resolve(pruner)
        found = {"options": _options(resolved)}
        first = run(resolved, task, folder / "first", WORLDS[1])
        second = run(resolved, task, folder / "second", WORLDS[2])
        found |= {"runs": _runs(first, pruner), "loads": _loads(first, resolved, folder / NET)}
        names = list(first.lab.shapes) if found["loads"][0] or _whole(first) else []
        found |= {
            "sparsity": _sparsity(first, resolved, names),
            "budget": _budget(first),
            "deterministic": _deterministic(first, second),
            "random-state": _said(
                loading.random + first.seen.random, "the generators of torch, numpy and random are unchanged"
            ),
            "test-split": _said(loading.data + first.seen.data, "no data set was opened during the run"),
        }
        other = _other(resolved.pruner)
        third = (
            None
            if other is None
            else run(dataclasses.replace(resolved, pruner=other), task, folder / "first", WORLDS[1])
        )
        runs = [run.seen for run in (first, second, third) if run is not None]
        seen = [line for seen in (loading, *runs) for line in seen.outside]
        found["files"] = _said(seen, "no file outside its folder, no process, no connection")
        found["shuffle"] = _shuffle(first, third, names, resolved)
    return Report(pruner, tuple(Check(name, *found[name]) for name in CHECKS))


Found = tuple[bool | None, str]
_NOT_RUN: Found = (None, "there are no weights to check")


def _said(offences: list[str], good: str) -> Found:
    return (False, "; ".join(dict.fromkeys(offences))) if offences else (True, good)


# The options of the class


def _options(resolved: ResolvedPruner) -> Found:
    cls: Any = type(resolved.pruner)
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
        faults.append("an unknown option is accepted silently")
    except TypeError:
        pass
    names = ", ".join(option.name for option in dataclasses.fields(cls))
    return _said(faults, f"{names or 'no options'}: frozen, typed, unknown ones refused")


# Findings on a run


def _runs(run: Run, pruner: str) -> Found:
    if run.error is None:
        return True, "ended with a result"
    if isinstance(run.error, BudgetExceeded):
        return None, "stopped by the budget"
    return False, fault(run.error, [pruner])


def _whole(run: Run) -> bool:
    """Whether the weights can be counted, whatever else is wrong with them."""
    shapes, state = run.lab.shapes, run.state
    return isinstance(state, dict) and all(
        isinstance(state.get(name), torch.Tensor) and tuple(state[name].shape) == shape
        for name, shape in shapes.items()
    )


def _loads(run: Run, resolved: ResolvedPruner, path: Path) -> Found:
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
        source=resolved.source,
        stages=(),
        train_sha256=run.lab.train_sha256,
        job=run.lab.job.model_copy(update={"sparsity": 0.0}),  # checked separately
    )
    try:
        seal(path, run.state, header, passes_granted=0)
        opened = open_net(path).module.state_dict()
    except Refused as refused:
        return False, str(refused)
    same = all(torch.equal(opened[name], tensor.detach().cpu()) for name, tensor in run.state.items())
    return same, f"sealed and opened again: {len(opened)} tensors, {'the same' if same else 'different'} values"


def _sparsity(run: Run, resolved: ResolvedPruner, names: list[str]) -> Found:
    if run.error is not None or not names:
        return _NOT_RUN
    kept, whole = sum(_counts(run.state, names).values()), run.lab.prunable
    allowed = keep_count(whole, run.lab.job.sparsity)
    if not resolved.prunes:
        return True, f"it declares that it does not prune, and keeps {kept} of {whole} weights"
    found = f"keeps {kept} of {whole} weights; {run.lab.job.sparsity} allows at most {allowed}"
    return 0 < kept <= allowed, found + (", and without any the net ignores its images" if kept == 0 else "")


def _budget(run: Run) -> Found:
    meter = run.lab.meter
    if isinstance(run.error, BudgetExceeded):
        return False, str(run.error)
    if run.error is not None:
        return _NOT_RUN
    stages = ", ".join(f"{stage.name} {stage.passes:,}" for stage in meter.stages) or "nothing was charged"
    spent = f"spent {meter.spent:,} of {meter.granted:,} sample passes: {stages}"
    if meter.granted != run.lab.granted or meter.spent < run.lab.counter.fitted:
        return (
            False,
            f"the meter was changed: {run.lab.granted:,} were granted, {run.lab.counter.fitted:,} charged; {spent}",
        )
    own, paid = run.lab.counter.passes, meter.spent - run.lab.counter.fitted
    if own > SLACK * paid:
        return False, f"its own work cost {own:,.0f} sample passes, but it paid for {paid:,}; {spent}"
    return meter.spent <= meter.granted, spent


def _deterministic(first: Run, second: Run) -> Found:
    if first.error is not None:
        return _NOT_RUN
    if second.error is not None:
        return False, f"the second run ended in {type(second.error).__name__}: {second.error}"
    if not (isinstance(first.state, dict) and isinstance(second.state, dict)):
        return _NOT_RUN
    if first.state.keys() != second.state.keys():
        return False, "the second run gave different keys"
    differ = [name for name, tensor in first.state.items() if not _equal(tensor, second.state[name])]
    if differ:
        return (
            False,
            f"the second run gave different values in {differ[0]} ({len(differ)} of {len(first.state)} tensors)",
        )
    return True, "two runs, the second in another folder, gave the same bytes"


def _equal(one: Any, other: Any) -> bool:
    """Whether two tensors have the same bytes, including NaN."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and one.detach().cpu().numpy().tobytes() == other.detach().cpu().numpy().tobytes()


def _other(pruner: Pruner) -> Pruner | None:
    """The same pruner with its option `shuffle` inverted; None if it has no such option."""
    if type(getattr(pruner, "shuffle", None)) is not bool:
        return None
    return dataclasses.replace(pruner, shuffle=not pruner.shuffle)  # type: ignore[type-var, attr-defined]


def _shuffle(first: Run, third: Run | None, names: list[str], resolved: ResolvedPruner) -> Found:
    if third is None:
        return True, "it has no option shuffle, which would show what its masks add to their layer densities"
    if first.error is not None or not names:
        return _NOT_RUN
    if third.error is not None or not _whole(third):
        return False, f"with the option shuffle flipped, it ended in {third.error or 'no weights'}"
    one, other = (first, third) if not getattr(resolved.pruner, "shuffle", False) else (third, first)
    plain, moved = _counts(one.state, names), _counts(other.state, names)
    if not any(plain.values()):
        return _NOT_RUN
    told = f"without {', '.join(map(str, plain.values()))}; with {', '.join(map(str, moved.values()))}"
    lost = sum(plain.values()) - sum(moved.values())
    # Fewer may be nonzero: a weight kept by a shuffled mask may be zero and have no gradient (IWI's remainder).
    if any(moved[name] > plain[name] for name in names) or lost > LOST * sum(plain.values()):
        return False, f"layers keep different numbers of weights with and without shuffle: {told}"
    if resolved.prunes and all(torch.equal(first.state[name] != 0, third.state[name] != 0) for name in names):
        return False, "shuffle has no effect: the masks are the same with and without it"
    return True, f"kept by layer: {told}"


def _counts(state: State, names: list[str]) -> dict[str, int]:
    return {name: int(torch.count_nonzero(state[name])) for name in names}
