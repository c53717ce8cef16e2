"""Take the records of a run onto a board, with the files beside them and what the run's ledger says of them.

    python -m tools.publish runs leaderboard

A job that the board has already keeps its record there. Only its net is added, to the folder `parents`, if records of
the run name it as the dense net whose adversarials were tried on theirs. Then run `prunebench rank --write`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunebench.bench.beside import net_path, publish
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.record import Record, load_all
from prunebench.leaderboard import provenance

PARENTS = "parents"


def published(run: Path, board: Path) -> list[Path]:
    """Copy the records below `run` that `board` lacks, and return their new paths.

    Raises PrunebenchError for a file that is no record.
    """
    results = {path: record for path, record in load_all(run / "records").items() if isinstance(record, Record)}
    parents, fresh = {record.notes.get("parent") for record in results.values()}, []
    for path, record in results.items():
        place = board / path.relative_to(run)
        if not place.exists():
            publish(path, net_path(path), place)
            fresh.append(place)
        elif record.net.sha256 in parents and not _holds(net_path(place), record.net.sha256):
            write_bytes(_aside(place, record), net_path(path).read_bytes())
    provenance.note(board, load_all(board / "records"), provenance.read_ledger(run).entries)
    return fresh


def _holds(net: Path, sha256: str) -> bool:
    return net.exists() and sha256_of(net.read_bytes()) == sha256


def _aside(place: Path, record: Record) -> Path:
    """Where a net goes whose job has another record at `place`."""
    return place.parent / PARENTS / f"{record.job.name}-{record.net.sha256[:12]}.safetensors"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run (--out)")
    parser.add_argument("board", type=Path, help="a folder with records and a ledger")
    asked = parser.parse_args(arguments)
    fresh = published(asked.run, asked.board)
    print(f"{len(fresh)} records published")
    return 0


if __name__ == "__main__":
    sys.exit(main())
