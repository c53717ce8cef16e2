"""The public log of a board: which rows were added, changed or removed, when and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_outside, sha256_of, write_bytes
from prunebench.leaderboard.board import Ranking, Row
from prunebench.leaderboard.render.markdown import escaped

LOG = "LOG.md"
LARGEST = 2**24  # bytes of a log
NONE = "none"
_HEAD = (
    "# Log\n\n"
    "Rows of the boards that were added, changed and removed, and why; `prunebench rank --write --reason` appends here "
    "and never rewrites.\n"
    "Robust accuracy is the mean over the seeds; the hash is over the counts of all seeds, robust and clean.\n\n"
    "| Date | Protocol | Pruner | Sparsity | Was | Is | Reason |\n"
    "|:--|:--|:--|--:|:--|:--|:--|\n"
)
_LINE = re.compile(r"\| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \| ([^|\n]+) \|")

Key = tuple[str, str, str]  # protocol, pruner, sparsity, as written in the log
State = Mapping[Key, str]


def state(ranking: Ranking) -> dict[Key, str]:
    """What the log states for each row: its robust accuracy, its seeds and a hash of its counts."""
    found: dict[Key, str] = {}
    for board in ranking.boards:
        for row in board.rows:
            key = (_cell(board.protocol), _cell(row.pruner), f"{row.sparsity:f}")
            found[key] = "; ".join(filter(None, (found.get(key), _told(row, board.n))))  # two names may look the same
    return found


def _told(row: Row, n: int) -> str:
    counts = [row.pruner, n, row.seeds, row.robust.counts, row.clean.counts]
    mean = 100 * sum(row.robust.counts) / (n * len(row.seeds))
    seeds = f"seed{'s' * (len(row.seeds) > 1)} {_spans(row.seeds)}"
    return f"{mean:.1f} % of {n}, {seeds}, {sha256_of(json.dumps(counts).encode())[:12]}"


def _spans(seeds: tuple[int, ...]) -> str:
    """Seeds in short form: "0-14, 20"."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _cell(text: str) -> str:
    return escaped(text) or NONE


def read(path: Path) -> dict[Key, str] | None:
    """The rows according to all lines of the log at `path`; None when there is no log.

    Raises PrunebenchError for a file that is not a log, or for a malformed line.
    """
    text = _text(path)
    if text is None:
        return None
    rows: dict[Key, str] = {}
    for number, line in enumerate(text.removeprefix(_HEAD).splitlines(), _HEAD.count("\n") + 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise PrunebenchError(f"Line {number} of {path} is not an entry of the log; restore the file.")
        _, protocol, pruner, sparsity, was, now, _ = match.groups()
        key = (protocol, pruner, sparsity)
        if rows.get(key, NONE) != was:
            raise PrunebenchError(
                f"Line {number} of {path} says that a row was {was!r}, but the lines above differ; restore the file."
            )
        rows[key] = now
        if now == NONE:
            del rows[key]
    return rows


def append(path: Path, ranking: Ranking, reason: str | None, day: str) -> bool:
    """Append a line for each row that differs from the log at `path`; returns whether any did.

    Without `reason` no log is started or changed. Raises PrunebenchError when a log must change and no reason is given.
    """
    if reason is not None and not _cell(reason.strip()).replace(NONE, ""):
        raise PrunebenchError("The reason is empty; state with --reason in a few words why the rows changed.")
    old, new = read(path), state(ranking)
    if old is None and reason is None:
        return False
    changed = differing(old or {}, new)
    if not changed:
        return False
    if reason is None:
        raise PrunebenchError(f"{told(changed)} since {path} was written; give the reason with --reason.")
    lines = [
        f"| {day} | {' | '.join(key)} | {was} | {now} | {_cell(reason)} |\n" for key, (was, now) in changed.items()
    ]
    write_bytes(path, ((_text(path) or _HEAD) + "".join(lines)).encode())
    return True


def differing(old: State, new: State) -> dict[Key, tuple[str, str]]:
    """The rows that differ, in order, with their old and new text; NONE where a row is missing."""
    return {
        key: (old.get(key, NONE), new.get(key, NONE))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def told(changed: Mapping[Key, tuple[str, str]]) -> str:
    """The number of changed rows, and the first of them."""
    protocol, pruner, sparsity = next(iter(changed))
    rows = "1 row" if len(changed) == 1 else f"{len(changed)} rows"
    return f"{rows} changed ({pruner} at {sparsity} of {protocol}{' and others' if len(changed) > 1 else ''})"


def _text(path: Path) -> str | None:
    if not path.exists() and not path.is_symlink():
        return None
    data = read_outside(path, "a log", LARGEST, way_out="restore the file")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.startswith(_HEAD):
        raise PrunebenchError(
            f"{path} was not written by prunebench rank and is not overwritten; move it away or choose another folder "
            "with --out."
        )
    return text
