"""Scoring records' nets again: the draw of records, and the check that each record matches its net.

A record's hashes protect it against accidents, not against its author. So some records are drawn after submission and
scored again in full on this machine. Another processor changes a few images, which `claims.verdict` allows for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beside import beside
from prunebench.bench.claims.verdict import REFUTED, Verdict, whole
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError, Refused, cut
from prunebench.bench.facts import Flag
from prunebench.bench.names import NET, RECORD
from prunebench.bench.outcomes import best_of, recount, standing_of
from prunebench.bench.progress import ProgressCallback
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.record import LARGEST_NET, Record
from prunebench.bench.score.scoring import score
from prunebench.bench.seeds import order

MARGIN = 0.02  # share of images: differences up to this, or flags within it of their thresholds, refute nothing
FEW = 3  # records drawn when it is unknown which are new
PATIENCE = 60.0  # seconds per call of git


def fresh() -> int:
    """An unpredictable seed for a draw, from the operating system."""
    return secrets.randbits(48)


@dataclass(frozen=True)
class Draw:
    """The paths of the records to measure again; `told`: a sentence on how they were drawn."""

    paths: tuple[Path, ...]
    told: str


def draw(
    records: Mapping[Path, Record], folder: Path, count: int, seed: int, since: Sequence[str], store: Store
) -> Draw:
    """Draw at most `count` of the official `records`, whose paths are below `folder`.

    `since`: git commits; only records added or changed since the first that exists here and is not checked out are
    drawn. At most FEW of all records are drawn when there is no such commit or nothing changed. Records whose data
    sets are not on this machine are left out.
    """
    official = [path for path in sorted(records) if records[path].official and records[path].built_in]
    here = [path for path in official if store.present(PROTOCOLS[records[path].protocol.name].data)]
    told, pool = f"{len(here)} official records", here
    if since:
        base, changed = _changed(folder, since)
        pool = [path for path in here if changed.intersection(map(_absolute, (folder / path, *beside(folder / path))))]
        told = f"{len(pool)} official records that changed since {base[:12]}" if base else told
        if not pool:
            why = f"nothing changed since {base[:12]}" if base else f"no commit {' or '.join(since)} to compare with"
            pool, count, told = here, min(count, FEW), f"{len(here)} official records ({why})"
    drawn = sorted(pool[index] for index in order(len(pool), "rescore", seed)[:count])
    said = f"Drew {len(drawn)} of {told} with --draw {seed}"
    absent = len(official) - len(here)
    return Draw(tuple(drawn), said + (f"; the data sets of {absent} others are missing (--data)." if absent else "."))


def _changed(folder: Path, since: Sequence[str]) -> tuple[str | None, set[Path]]:
    """The commit compared with (None: there is none), and the files below `folder` that changed since."""
    try:
        head = _git(folder, "rev-parse", "HEAD").strip()
    except PrunebenchError:
        return None, set()
    for name in since:
        try:
            commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
            base = _git(folder, "merge-base", commit, head).strip()
        except PrunebenchError:
            continue
        if base == head:
            continue
        options = (
            "-z",
            "--name-only",
            "--no-renames",
            "--no-ext-diff",
            "--no-textconv",
            "--relative",
            "--diff-filter=d",
        )
        names = _git(folder, "diff", *options, base, "--", ".")
        names += _git(folder, "ls-files", "-z", "--others", "--exclude-standard", "--", ".")
        return base, {_absolute(folder / name) for name in names.split("\0") if name}
    return None, set()


def _absolute(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise PrunebenchError(f"git did not work ({error}).") from None
    if done.returncode != 0:
        raise PrunebenchError(f"git {arguments[0]} ended with {done.returncode}.")
    return os.fsdecode(done.stdout)


def rescore(
    path: Path,
    record: Record,
    net: Path,
    store: Store,
    *,
    parent: Path | None = None,
    device: str = "auto",
    report: ProgressCallback | None = None,
) -> tuple[Verdict, Record]:
    """Score the net in the file `net` again, by the built-in rules, and compare with the record at `path`.

    The best-known number is measured again if the record has one; `parent`: the dense net whose adversarials entered
    it. Returns the verdict ("holds", "refuted" or "undecided") and the new record. Facts that do not depend on the
    machine must be equal: net, layers, job, rules, images, cost. Outcomes of images may differ in either direction
    within the attack's noise. Raises Refused when the net cannot be scored, and PrunebenchError for rules, or a suite
    for the best-known number, that prunebench has no longer.
    """
    claimed, best = recount(path, record), record.beyond.best
    if not record.built_in:
        raise PrunebenchError(
            f"{path} calls itself official under {record.protocol.name} with the sha256 "
            f"{record.protocol.sha256[:12]}..., which no built-in protocol has today; score the net again."
        )
    rules = PROTOCOLS[record.protocol.name]
    if best is not None and best.suite != suite_of(rules).best.name:
        raise PrunebenchError(
            f"{path} has a best-known number by {best.suite}, but that suite is now {suite_of(rules).best.name}; score "
            "the net again with --best."
        )
    with tempfile.TemporaryDirectory(prefix="prunebench-rescore-") as scratch:
        copy = Path(scratch, NET)  # alone, so that no file beside the net is read
        _copy(net, copy)
        again = score(
            copy,
            rules,
            out=scratch,
            store=store,
            device=device,
            report=report,
            best=best is not None,
            parent=_copied(parent, Path(scratch, "parent.safetensors")),
        )
        measured = recount(copy.with_name(RECORD), again)
    odd = _unequal(record, again) or _flagged(record, again)
    if odd is not None:
        return Verdict("refuted", odd), again
    return _compared(claimed, measured), again


def _copied(net: Path | None, copy: Path) -> Path | None:
    if net is not None:
        _copy(net, copy)
    return None if net is None else copy


def _copy(net: Path, copy: Path) -> None:
    found = net.stat() if net.exists() else None
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_NET:
        raise Refused("file", f"{net} is not a regular file of at most {LARGEST_NET} bytes; put the net there.")
    shutil.copyfile(net, copy)


def _unequal(record: Record, again: Record) -> str | None:
    """The first difference between record and net in facts that are the same on every machine."""
    passes = [[(stage.name, stage.passes) for stage in one.cost.stages] for one in (record, again)]
    weak = [sorted(again.score.weak.keys() & one.score.weak.keys()) for one in (record, again)]  # either may have more
    for what, said, found in (
        ("the net's sha256", record.net.sha256, again.net.sha256),
        ("the sparsity, layer by layer", record.net, again.net),
        ("the pattern of its zeros", again.patterns if record.patterns is None else record.patterns, again.patterns),
        ("the job", record.job, again.job),
        ("the rules", record.protocol, again.protocol),
        ("official", record.official, again.official),
        ("the images", record.data, again.data),
        ("the number of images", record.score.n, again.score.n),
        (
            "the attacks",
            (tuple(record.score.survived), record.score.ran),
            (tuple(again.score.survived), again.score.ran),
        ),
        ("the weak attacks", *weak),
        ("the attacks for the best-known number", *(_pursuing(one) for one in (record, again))),
        ("the security curve", [p.eps for p in record.score.curve], [p.eps for p in again.score.curve]),
        ("the pruner's source", record.notes.get("source"), again.notes.get("source")),
        ("the passes of the training", (record.cost.train_passes, passes[0]), (again.cost.train_passes, passes[1])),
    ):
        if said != found:
            return f"{what} is {cut(str(said), 120)} in the record, but {cut(str(found), 120)} for the net"
    return None


def _pursuing(record: Record) -> tuple[str, ...]:
    """The attacks for the best-known number, and the net whose adversarials were tried last."""
    best = record.beyond.best
    return () if best is None else (*best.by, str(record.notes.get("parent")))


def _flagged(record: Record, again: Record) -> str | None:
    """A flag that is missing in the record, has another threshold there, or is up here alone by more than noise."""
    theirs = {flag.name: flag for flag in record.score.flags}
    for flag in again.score.flags:
        said = theirs.get(flag.name)
        if flag.value is None:
            continue  # needs more than the net: how it was trained, the dense net, or a measurement on request
        if said is None:
            return f"the flag {flag.name} is missing from the record"
        if said.threshold != flag.threshold:
            return (
                f"the flag {flag.name} has the threshold {said.threshold:g} in the record and {flag.threshold:g} here"
            )
        if _clearly_up(flag) and not said.up:
            return f"the flag {flag.name} is up here ({flag.value:.3g} > {flag.threshold:g}), but not in the record"
    return None


def _clearly_up(flag: Flag) -> bool:
    """Whether a flag is up by more than noise; values of flags are shares of the images."""
    return flag.value is not None and flag.value > flag.threshold + MARGIN


def _compared(claimed: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> Verdict:
    """The verdict on the outcomes: the labels, the images standing after each attack, at the end, and as best known."""
    if not np.array_equal(claimed["labels"], measured["labels"]):
        return Verdict("refuted", "the outcomes belong to other images than the test images here")
    same = claimed["predicted"] == measured["predicted"]
    found = whole(np.ones_like(same), same)
    if found.word == "refuted":
        return Verdict(
            "refuted",
            f"{int((~same).sum())} of {len(same)} clean images get another label from the net than the record says",
            p=found.p,
        )
    verdict = _both_ways(standing_of(claimed), standing_of(measured))
    if verdict.word == "refuted":
        return verdict
    best = _both_ways(best_of(claimed), best_of(measured))
    if best.word != "holds" and any(name.startswith("best/") for name in measured):
        verdict = replace(best, sentence=f"the best-known number: {best.sentence}")
    if verdict.word == "refuted":
        return verdict
    for name in measured:
        if name in ("labels", "predicted"):
            continue
        beside = _both_ways(claimed["clean"] & claimed[name], measured["clean"] & measured[name])
        if beside.word == "refuted":
            return Verdict("refuted", f"{name}: {beside.sentence}", beside.images, beside.p)
    return verdict


def _both_ways(claimed: np.ndarray, measured: np.ndarray) -> Verdict:
    """The verdict on the images standing, bool (n,) both: a claim may understate, a record may not.

    Where hardly any image survives, each survivor depends on a last bit, and `whole` compares changes with only a few
    images. So differences of up to MARGIN of all images refute nothing.
    """
    verdict, reverse, n = whole(claimed, measured), whole(measured, claimed), len(claimed)
    if "refuted" not in (verdict.word, reverse.word):
        return verdict
    if int((claimed != measured).sum()) <= MARGIN * n:
        return Verdict("undecided", f"{verdict.sentence} That is within {MARGIN:.0%} of the images.", (), verdict.p)
    if verdict.word == "refuted":
        return verdict
    told = f"{int(measured.sum())} of {n} are robust, but only {int(claimed.sum())} in the record"
    return Verdict("refuted", f"{told} (p = {reverse.p:.2g} < {REFUTED:g}).", reverse.images, reverse.p)
