"""Add the best-known number to published records: attack the images that survived AutoAttack in them again.

    python -m tools.pursue leaderboard/records/digits-linf --out runs/pursue --jobs 2

AutoAttack does not run again: its survivors come from a record's own outcomes, which are recounted first. The nets lie
beside the records, and so does the dense net of the same seed, whose adversarials are tried too. New records (schema 6)
first go to --out, from where a killed run resumes. They replace the old ones at the end, or with --jobs 0. The ledger
beside the records' folder then says of the new records what it said of the old ones.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from prunebench.bench import machine
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.beside import JOURNAL, RECORD, net_path, publish
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, pairs_path, proposals_path, recount
from prunebench.bench.pattern import patterns_of
from prunebench.bench.record import SCHEMA, Record, load_all, load_record
from prunebench.bench.score.cascade import Found, facts_of
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.pursuit import pursue_all
from prunebench.bench.score.referee import Referee, batch_size, exact_float32
from prunebench.leaderboard import provenance


def pursued(path: Path, out: Path, data: Path) -> Record:
    """The record at `path` with its best-known number; it and its files go to the folder `out`.

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
    dense = path.with_name(f"dense-s0-seed{record.job.seed}{path.suffix}")
    parent = None
    if dense != path and dense.exists():
        other = open_net(net_path(dense))
        parent = other.id.sha256, Referee(other.module, rules, referee.batch, where)
    standing, now = {}, torch.from_numpy(arrays["clean"])
    for name in record.score.survived:
        standing[name] = now = now & torch.from_numpy(arrays[f"survived/{name}"])
    found = Found(standing, {}, {}, rejected=0, kernel_only=0, passes=0, seconds=0.0, images=None)
    with exact_float32():
        if not torch.equal(referee.answers(as_float(test.images)), torch.from_numpy(arrays["predicted"]).long()):
            raise PrunebenchError(f"The net beside {path} predicts otherwise than its outcomes say; score it again.")
        journal = Journal(out / JOURNAL, facts_of(referee, net, test))
        again = pursue_all(referee, test, found, journal, parent=parent)
    beyond = record.beyond.model_copy(
        update={"best": again.counted(suite_of(rules).best.name, standing[[*standing][-1]])}
    )
    survived, weak, curve = (
        {name.removeprefix(f"{kind}/"): bits for name, bits in arrays.items() if name.startswith(f"{kind}/")}
        for kind in ("survived", "weak", "curve")
    )
    more = {name: arrays[name] for name in record.beyond.kinds(record.score.n)}
    more |= {f"best/{name}": bits.numpy() for name, bits in again.standing.items()}
    outcomes = pack_outcomes(arrays["labels"], arrays["predicted"], survived, weak, curve, more)
    facts = {name: getattr(record, name) for name in Record.model_fields if name not in ("sha256", "schema_")}
    cost = record.cost.model_copy(
        update={
            "score_passes": record.cost.score_passes + again.passes,
            "score_seconds": record.cost.score_seconds + again.seconds,
        }
    )
    kernels = referee.fast.bits(net.header.shape)
    made: Record = Record.sealed(
        **facts
        | {
            "schema": SCHEMA,
            "patterns": patterns_of(net.module) if record.patterns is None else record.patterns,
            "rules": record.rules or rules.model_dump(mode="json"),
            "beyond": beyond,
            "cost": cost,
            "outcomes": sha256_of(outcomes),
            "notes": record.notes
            | {"best_kernels": kernels, "best_commit": machine.env(where)["commit"]}
            | ({} if parent is None else {"parent": parent[0]}),
        }
    )
    for of in (pairs_path, proposals_path):
        if of(path).exists():
            write_bytes(of(out / RECORD), of(path).read_bytes())
    write_bytes(outcomes_path(out / RECORD), outcomes)
    made.save(out / RECORD)
    return made


def done(path: Path, out: Path) -> bool:
    """Whether `out` holds the new record of the net that the record at `path` scores."""
    try:
        old, new = load_record(path), load_record(out / RECORD)
        recount(out / RECORD, new) if isinstance(new, Record) else None
    except PrunebenchError:
        return False
    if not (isinstance(old, Record) and isinstance(new, Record) and new.beyond.best is not None):
        return False
    same = [(one.net, one.protocol, one.data, one.score) for one in (old, new)]
    rules = new.known_rules
    return same[0] == same[1] and rules is not None and new.beyond.best.suite == suite_of(rules).best.name


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pursue", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="a folder of records with their nets beside them")
    parser.add_argument("--out", type=Path, required=True, help="the folder for new records until all are there")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes work at once; 0 publishes what is done")
    asked = parser.parse_args(arguments)
    results = load_all(asked.records)
    old = {path: record for path, record in results.items() if isinstance(record, Record) and not record.beyond.best}
    folders = {path: asked.out / path.relative_to(asked.records).with_suffix("") for path in old}
    waiting = [path for path in old if asked.jobs and net_path(path).exists() and not done(path, folders[path])]
    waiting.sort(key=lambda path: (bool(old[path].job.options), path))  # methods before their variants and shuffles
    with ProcessPoolExecutor(max(asked.jobs, 1), mp_context=get_context("spawn")) as pool:
        work = {pool.submit(pursued, path, folders[path], asked.data): path for path in waiting}
        for number, future in enumerate(as_completed(work), 1):
            record = future.result()
            best = record.beyond.best
            assert best is not None
            print(f"{number}/{len(waiting)} {work[future].stem}: {record.score.robust} -> {best.robust}", flush=True)
    attest(asked.records, {path: folders[path] for path in old if done(path, folders[path])})
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
