"""Scoring: a net file in, outcomes and a record out. No pruner code runs, and no attack's own claim is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunebench.bench import machine
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.data import Split, Store
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.interop.robustbench import PREFIX, open_zoo
from prunebench.bench.names import REFUSAL
from prunebench.bench.pattern import refuse_other_patterns
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import Protocol, load
from prunebench.bench.record import Record
from prunebench.bench.score.arithmetic import arithmetic_named
from prunebench.bench.score.measurement import Asked, Measurement
from prunebench.bench.score.result import refusal_of


def score(
    net: str | Path,
    protocol: str | Protocol | None = None,
    examples: int | None = None,
    *,
    out: str | Path | None = None,
    store: Store | None = None,
    device: str = "auto",
    report: ProgressCallback | None = None,
    parent: str | Path | None = None,
    also: Sequence[str] = (),
    best: bool = False,
    keep_proposals: bool = False,
    arithmetic: str = "float32",
    mirror: str | None = None,
) -> Record:
    """Attack the net in the file `net` with AutoAttack *standard* and count the test images that survive.

    `protocol`: by default the protocol the net was made for; any other must be named. `examples`: use only this many
    test images, from the start. `out`: a folder for the record, the outcomes and the journal from which a killed run
    resumes. `parent`: a dense net whose adversarials are also tried, for a flag. `also`: further measurements (names in
    `EXTRAS`) and weak attacks, such as "torchattacks:CW". `best`: attack the survivors again with stronger attacks, for
    the best-known number. `keep_proposals`: keep the adversarials, so that a claim can be replayed. `arithmetic`:
    that of the suite's attacks, "float32" or "tf32" (on a CUDA card); verdicts are always exact. `net` may be
    "robustbench:NAME", a dense net of RobustBench's zoo, for which `protocol` is required (`mirror`: see
    `interop.robustbench.open_zoo`). Raises Refused, and writes the reason to `out`, for a net that cannot be scored.
    """
    path, folder = Path(net), None if out is None else Path(out)
    where = machine.device_named(device)
    asked = Asked.of(also, best=best, keep_images=keep_proposals, arithmetic=arithmetic_named(arithmetic, where))
    opened = None
    try:
        store = store or Store(Path("data"))
        rules = protocol if isinstance(protocol, Protocol) or protocol is None else load(protocol, to_train=False)
        opened = open_zoo(str(net), rules, store, mirror=mirror) if str(net).startswith(PREFIX) else open_net(path)
        rules = rules or _made_for(opened, path)
        test, whole = _test_images(opened, path, rules, examples, store)
        if parent is not None:
            _test_images(dense := open_net(Path(parent)), Path(parent), rules, examples, store)
        measurement = Measurement(opened, path, rules, test, where, folder, report, asked)
        scored = measurement(dense if parent is not None else None, whole=whole)
    except Refused as refused:
        if folder is not None and not (protocol is not None and refused.check == "protocol"):  # the user named it
            refusal_of(path, opened, refused, where).save(folder / REFUSAL)
        raise
    if folder is not None:
        (folder / REFUSAL).unlink(missing_ok=True)
        scored.save(folder)
    return scored.record


def score_shard(
    net: str | Path,
    number: int,
    protocol: Protocol,
    examples: int | None = None,
    *,
    out: str | Path,
    store: Store,
    device: str = "auto",
    report: ProgressCallback | None = None,
    best: bool = False,
    keep_proposals: bool = False,
    arithmetic: str = "float32",
) -> None:
    """Run the attacks of a scoring on shard `number` alone, and write the results to the journal in `out`.

    `score` with the same arguments reads them there and makes a record without attacking that shard again. Raises
    Refused for a net that cannot be scored on these images.
    """
    path, opened = Path(net), open_net(Path(net))
    test, _ = _test_images(opened, path, protocol, examples, store)
    where = machine.device_named(device)
    asked = Asked.of((), best=best, keep_images=keep_proposals, arithmetic=arithmetic_named(arithmetic, where))
    Measurement(opened, path, protocol, test, where, Path(out), report, asked).shard(number)


def _made_for(net: Net, path: Path) -> Protocol:
    """The protocol in the net's header; refused if it has a built-in name but different rules."""
    rules = net.header.protocol
    try:
        known = load(rules.name)
    except PrunebenchError:
        return rules  # a protocol of the user's own: its rules travel in the header
    if known.sha256 != rules.sha256:
        raise Refused(
            "protocol",
            f"{path} was made for rules of {rules.name} (sha256 {rules.sha256[:12]}) that differ from today's "
            f"({known.sha256[:12]}); name a protocol with --protocol to score it anyway.",
        )
    return rules


def _test_images(net: Net, path: Path, rules: Protocol, examples: int | None, store: Store) -> tuple[Split, bool]:
    """The test images, and whether they are the protocol's full set; refused if they do not fit the net."""
    header, info = net.header, store.info(rules.data)
    if (header.classes, header.shape) != (info.classes, info.shape):
        raise Refused(
            "protocol",
            f"{path} takes {header.shape} images of {header.classes} classes, but {rules.name} has {info.shape} of "
            f"{info.classes}; name a protocol that fits.",
        )
    refuse_other_patterns(net.module, rules, header.job.sparsity, str(path))
    if examples is not None and rules.test is not None and examples > rules.test:
        raise PrunebenchError(
            f"{rules.name} has {rules.test} test images, fewer than "
            f"--examples {examples}; ask for {rules.test} or fewer, or leave --examples out for all of them."
        )
    test = store.testing(rules.data, examples or rules.test)
    return test, len(test) == len(store.testing(rules.data, rules.test))
