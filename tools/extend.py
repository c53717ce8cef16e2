"""Add measurements to published records: the best-known number, the planted test, distances, and others.

    python -m tools.extend leaderboard/records/digits-linf --also planted --also distances --out runs/extend --jobs 2

AutoAttack does not run again: its survivors come from a record's own outcomes, which are recounted first. The nets lie
beside the records, and so does the dense net of the same seed, whose adversarials `best` tries too. A record keeps what
it has. New records (schema 7) first go to --out, from where a killed run resumes. They replace the old ones at the
end, or with --jobs 0. The ledger beside the records' folder then says of the new records what it said of the old ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunebench.bench import machine
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beside import net_path, publish
from prunebench.bench.beyond import Beyond
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.names import JOURNAL, RECORD
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, pairs_path, proposals_path, recount
from prunebench.bench.pattern import patterns_of
from prunebench.bench.record import Record, load_all, load_record, schema_for
from prunebench.bench.score import flags
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.cascade import Found, facts_of
from prunebench.bench.score.extras import EXTRAS, measured
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.pursuit import Pursued, pursue_all
from prunebench.bench.score.referee import Referee, batch_size
from prunebench.leaderboard import provenance

BEST = "best"


def missing(record: Record, also: Sequence[str]) -> list[str]:
    """Which of the measurements in `also` the record lacks."""
    return [name for name in also if getattr(record.beyond, name.replace("-", "_")) is None]


def extended(path: Path, out: Path, data: Path, also: Sequence[str]) -> Record:
    """The record at `path` with the measurements `also` that it lacks; it and its files go to the folder `out`.

    Raises PrunebenchError if the outcomes beside the record are not its own, or its rules are not known.
    """
    record = load_record(path)
    assert isinstance(record, Record)
    rules = record.known_rules
    if rules is None:
        raise PrunebenchError(f"{path} names rules that are neither in it nor built in; score its net again.")
    torch.set_num_threads(1)
    arrays = recount(path, record)
    net, where = open_net(net_path(path)), torch.device("cpu")
    test = Store(data).testing(rules.data, record.score.n)
    referee = Referee(net.module, rules, batch_size(rules, net.header.arch, where.type), where)
    clean = torch.from_numpy(arrays["clean"])
    standing, now = {}, clean
    for name in record.score.survived:
        standing[name] = now = now & torch.from_numpy(arrays[f"survived/{name}"])
    more = {name: arrays[name] for name in record.beyond.kinds(record.score.n)}
    facts: dict[str, Any] = {name: getattr(record.beyond, name) for name in Beyond.model_fields}
    notes, passes, seconds = dict(record.notes), 0, 0.0
    with exact_float32():
        if not torch.equal(referee.answers(as_float(test.images)), torch.from_numpy(arrays["predicted"]).long()):
            raise PrunebenchError(f"The net beside {path} predicts otherwise than its outcomes say; score it again.")
        if BEST in (wanted := missing(record, also)):
            again, parent = pursued(record, path, out, referee, net, test, standing)
            facts["best"] = again.counted(suite_of(rules).best.name, now)
            more |= {f"best/{name}": bits.numpy() for name, bits in again.standing.items()}
            passes, seconds = again.passes, again.seconds
            notes |= {"best_kernels": referee.fast.bits(net.header.shape), "best_commit": machine.env(where)["commit"]}
            notes |= {} if parent is None else {"parent": parent}
        before = referee.passes
        found, bits = measured([name for name in wanted if name != BEST], referee, test, clean, now)
        passes += referee.passes - before
    facts, more = facts | found, more | bits
    score = record.score.model_copy(update={"flags": _flags(record, facts)})
    cost = record.cost.model_copy(
        update={
            "score_passes": record.cost.score_passes + passes,
            "score_seconds": record.cost.score_seconds + seconds,
        }
    )
    changes = {"score": score, "beyond": Beyond.model_validate(facts), "cost": cost, "notes": notes}
    changes["patterns"] = patterns_of(net.module) if record.patterns is None else record.patterns
    return _saved(record, changes, arrays | more, [*more], path, out)


def pursued(
    record: Record, path: Path, out: Path, referee: Referee, net: Net, test: Split, standing: dict[str, Tensor]
) -> tuple[Pursued, str | None]:
    """The pursuit of AutoAttack's survivors, and the sha256 of the dense net whose adversarials it tried."""
    parent = None
    dense = path.with_name(f"dense-s0-seed{record.job.seed}{path.suffix}")
    if dense != path and dense.exists():
        other = open_net(net_path(dense))
        parent = other.id.sha256, Referee(other.module, referee.rules, referee.batch, referee.device)
    found = Found(standing, {}, {}, rejected=0, kernel_only=0, repaired=0, passes=0, seconds=0.0, images=None)
    journal = Journal(out / JOURNAL, facts_of(referee, net, test))
    return pursue_all(referee, test, found, journal, parent=parent), None if parent is None else parent[0]


def _flags(record: Record, facts: dict[str, Any]) -> tuple[Any, ...]:
    """The record's flags, with the planted test's if `facts` have it."""
    if facts["planted"] is None:
        return record.score.flags
    planted = flags.planted(facts["planted"])
    return (*(flag for flag in record.score.flags if flag.name != planted.name), planted)


def _saved(
    record: Record, changes: dict[str, Any], arrays: dict[str, np.ndarray], more: list[str], path: Path, out: Path
) -> Record:
    """The record with `changes`, saved below `out` with its outcomes and the files beside `path`."""
    survived, weak, curve = (
        {name.removeprefix(f"{kind}/"): bits for name, bits in arrays.items() if name.startswith(f"{kind}/")}
        for kind in ("survived", "weak", "curve")
    )
    outcomes = pack_outcomes(
        arrays["labels"], arrays["predicted"], survived, weak, curve, {name: arrays[name] for name in more}
    )
    kept = {name: getattr(record, name) for name in Record.model_fields if name not in ("sha256", "schema_")}
    rules = record.rules or (record.known_rules and record.known_rules.model_dump(mode="json"))
    schema = schema_for(record.attack_arithmetic)
    made: Record = Record.sealed(**kept | changes | {"schema": schema, "rules": rules, "outcomes": sha256_of(outcomes)})
    for of in (pairs_path, proposals_path):
        if of(path).exists():
            write_bytes(of(out / RECORD), of(path).read_bytes())
    write_bytes(outcomes_path(out / RECORD), outcomes)
    made.save(out / RECORD)
    return made


def done(path: Path, out: Path, also: Sequence[str]) -> bool:
    """Whether `out` holds a new record, with the measurements `also`, of the net that the record at `path` scores."""
    try:
        old, new = load_record(path), load_record(out / RECORD)
        recount(out / RECORD, new) if isinstance(new, Record) else None
    except PrunebenchError:
        return False
    if not (isinstance(old, Record) and isinstance(new, Record)) or missing(new, also):
        return False
    same = [(one.net, one.protocol, one.data, one.score.robust, one.score.survived) for one in (old, new)]
    best, rules = new.beyond.best, new.known_rules
    return same[0] == same[1] and rules is not None and (best is None or best.suite == suite_of(rules).best.name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="extend", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="a folder of records with their nets beside them")
    choices = [BEST, *EXTRAS]
    parser.add_argument("--also", action="append", choices=choices, help="a measurement; best alone by default")
    parser.add_argument("--out", type=Path, required=True, help="the folder for new records until all are there")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes work at once; 0 publishes what is done")
    asked = parser.parse_args(arguments)
    also = asked.also or [BEST]
    results = load_all(asked.records)
    old = {path: record for path, record in results.items() if isinstance(record, Record) and missing(record, also)}
    folders = {path: asked.out / path.relative_to(asked.records).with_suffix("") for path in old}
    waiting = [path for path in old if asked.jobs and net_path(path).exists() and not done(path, folders[path], also)]
    waiting.sort(key=lambda path: (bool(old[path].job.options), path))  # methods before their variants and shuffles
    with ProcessPoolExecutor(max(asked.jobs, 1), mp_context=get_context("spawn")) as pool:
        work = {pool.submit(extended, path, folders[path], asked.data, also): path for path in waiting}
        for number, future in enumerate(as_completed(work), 1):
            record = future.result()
            best = "" if record.beyond.best is None else f" -> {record.beyond.best.robust}"
            print(f"{number}/{len(waiting)} {work[future].stem}: {record.score.robust}{best}", flush=True)
    attest(asked.records, {path: folders[path] for path in old if done(path, folders[path], also)})
    return 0


def attest(records: Path, made: dict[Path, Path]) -> None:
    """Publish the records in the folders `made`, by the path of the old one, and carry their attestations over."""
    home = next((folder for folder in records.parents if (folder / provenance.LEDGER).exists()), None)
    if home is not None:  # first, for a kill in between must not lose what the ledger says
        renamed = {load_record(path).sha256: load_record(folder / RECORD) for path, folder in made.items()}
        ledger = provenance.read_ledger(home)
        carried = [
            attestation.model_copy(update={"record": renamed[attestation.record].sha256})
            for attestation in ledger.entries
            if attestation.record in renamed
        ]
        both = load_all(home / "records") | {folder / RECORD: load_record(folder / RECORD) for folder in made.values()}
        provenance.note(home, both, carried)
    for path, folder in made.items():
        publish(folder / RECORD, net_path(path), path)
    if home is not None:
        provenance.note(home, load_all(home / "records"), [])


if __name__ == "__main__":
    sys.exit(main())
