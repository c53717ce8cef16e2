"""Keep the console sessions of a page true: run their commands, and write or compare what they print.

    python -m tools.transcript CONTRIBUTING.md --check   # fails if the page says something else
    python -m tools.transcript CONTRIBUTING.md --write   # puts today's output into the page

All blocks marked `console` are one session: a shell that begins in an empty folder, in the terminal of
`tools.terminal`. A line `...` stands for lines that the page leaves out, or for none. A comment `<!-- session: ... -->`
holds commands that run unseen; they must succeed.

Text has to match. Numbers have to match too, except for what depends on the machine: times, hashes, p-values and lists
of images are ignored; a clause that ends with such a list may be missing if its count could be 0. Counts of robust or
clean images may differ by `SPREAD` standard deviations of two draws of as many images: a rule of thumb, for in truth
the nets differ and not the images. Rates with an interval agree if their intervals overlap.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from prunebench.bench.files import write_bytes
from tools.terminal import COLUMNS, printed

OMITTED = "..."
IMAGES = 200  # attacked by the session, where a count does not say of how many
SPREAD = 3.3  # standard deviations, by a rule of thumb
_MARK = "@@ end of command"
_BLOCK = re.compile(r"^(?P<mark>```console|<!-- session:)\n(?P<text>.*?)^(?:```|-->)$", re.DOTALL | re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# A clause that is printed only if its count is not 0.
_CLAUSE = re.compile(
    r"\b(?P<count>\d+)\s+(?P<what>were\s+claimed\s[a-z\s]+|get\s+another\s[a-z\s]+)"
    r":\s+\d+(?:,\s+\d+)*(?:\s+and\s+\d+\s+more)?[;.]?"
)

# What differs between machines, and how it is compared. The last kind is everything else, which has to match.
_KINDS = re.compile(
    r"""
    (?P<time>   (?:\d+\ h\ )?\d+\ min(?:\ \d+\ s)?\b | \b\d+\ s\b )
  | (?P<hash>   \b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,64}\b )
  | (?P<p>      \bp\s=\s\d[\d.e-]* )
  | (?P<images> \b(?:Images|not:|here:|label:)\s+\d+(?:,\s+\d+)*(?:\s+and\s+\d+\s+more)? )
  | (?P<rate>   \b[\d.]+\ \[[\d.]+,\ [\d.]+\](?:\ +⚠)?(?:\ +[\d.]+)? )
  | (?P<count>  \b\d+\s+of\s+\d+(?=\s+(?:robust|are|images|[\d.]+\ \[))
              | \b\d+(?=\s+(?:clean|were|claimed|the\s+other|get|images\s+get)\b) )
  | (?P<text>   \w+ | [^\w\s] )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Step:
    """A command of a page and what the page says it prints: lines `start` to `end`, counted from 0."""

    command: str
    start: int
    end: int
    hidden: bool = False


def steps(page: str) -> list[Step]:
    """The commands of the session of `page`, in order."""
    found = []
    for block in _BLOCK.finditer(page):
        first, lines = page.count("\n", 0, block.start()) + 1, block["text"].splitlines()
        if block["mark"] != "```console":
            found.append(Step("\n".join(lines), first, first + len(lines), hidden=True))
            continue
        at = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        for number, following in zip(at, [*at[1:], len(lines)], strict=True):
            found.append(Step(lines[number].removeprefix("$ "), first + number + 1, first + following))
    return found


def session(commands: list[Step], folder: Path) -> list[list[str]]:
    """What each command prints, run one after the other by one shell in `folder`; long lines are wrapped.

    Raises SystemExit if a hidden command fails or the session ends early.
    """
    script = "\n".join(f"{step.command}\nprintf '\\n{_MARK} %s\\n' $?" for step in commands)
    said = _COLOUR.sub("", printed(shlex.join(["bash", "-c", script]), folder))
    *parts, rest = re.split(rf"^{_MARK} (\d+)$\n?", said, flags=re.MULTILINE)
    texts, codes = parts[::2], parts[1::2]
    if len(texts) != len(commands):
        raise SystemExit(f"the session ended before {commands[len(texts)].command!r}:\n{rest}")
    for step, text, code in zip(commands, texts, codes, strict=True):
        if step.hidden and code != "0":
            raise SystemExit(f"a hidden command ended with {code}:\n{step.command}\n{text}")
    return [[part for line in text.splitlines() for part in _wrapped(line.rstrip())] for text in texts]


def _wrapped(line: str) -> list[str]:
    if len(line) <= COLUMNS:
        return [line]
    return textwrap.wrap(line, COLUMNS, break_long_words=False, break_on_hyphens=False)


def shortened(new: list[str], old: list[str]) -> list[str]:
    """Of the lines `new` those that the page shows, where `old` is what it shows now.

    Before the first `...` and after the last one it keeps as many lines as now. What stands between two begins with
    the line that has the same text as now; if there is none, all that follows is shown.
    """
    parts: list[list[str]] = [[]]
    for line in old:
        if line == OMITTED:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        return new
    (head, *middle), tail = parts[:-1], parts[-1]
    kept, at = new[: len(head)], len(head)
    for part in middle:
        like = (i for i in range(at, len(new)) if next(_differences(part[0], new[i]), None) is None)
        begin = next(like, None)
        if begin is None:
            return [*kept, *new[at:]]
        kept += [*([OMITTED] if begin > at else []), *new[begin : begin + len(part)]]
        at = begin + len(part)
    begin = max(at, len(new) - len(tail))
    return [*kept, *([OMITTED] if begin > at else []), *new[begin:]]


def _differences(written: str, came: str) -> Iterator[int]:
    """Where in `written` something stands that `came` does not agree with: offsets, those of clauses first."""
    (ours, at), (theirs, _) = _clauses(written), _clauses(came)
    for what in ours.keys() | theirs.keys():
        if not _alike(ours.get(what, 0), theirs.get(what, 0), IMAGES):
            yield at.get(what, len(written))
    for one, other in zip_longest(_KINDS.finditer(_blanked(written)), _KINDS.finditer(_blanked(came))):
        if one is None or other is None or one.lastgroup != other.lastgroup or not _agree(one, other):
            yield one.start() if one else len(written)


def _clauses(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """The count and the offset of every clause that may be missing, by its words."""
    found = {" ".join(clause["what"].split()): clause for clause in _CLAUSE.finditer(text)}
    return {what: int(each["count"]) for what, each in found.items()}, {what: m.start() for what, m in found.items()}


def _blanked(text: str) -> str:
    """`text` without those clauses, and what is left where it was."""
    return _CLAUSE.sub(lambda clause: re.sub(r"\S", " ", clause.group()), text)


def _fits(old: list[str], new: list[str]) -> bool:
    """Whether `new` agrees with `old`, with any lines or none where `old` says `...`."""
    if OMITTED not in old:
        return next(_differences("\n".join(old), "\n".join(new)), None) is None
    at = old.index(OMITTED)
    heads = (end for end in range(len(new) + 1) if _fits(old[:at], new[:end]))
    return any(_fits(old[at + 1 :], new[begin:]) for end in heads for begin in range(end, len(new) + 1))


def _agree(one: re.Match[str], other: re.Match[str]) -> bool:
    kind, (a, b) = one.lastgroup, ([float(x) for x in re.findall(r"\d+(?:\.\d+)?", m.group())] for m in (one, other))
    if kind in {"time", "hash", "p", "images"}:
        return True
    if kind == "rate":  # rate, low, high and, in a board, clean
        clean = [IMAGES * values[3] / 100 for values in (a, b) if values[3:]]
        return a[1] <= b[2] and b[1] <= a[2] and len(clean) != 1 and (not clean or _alike(clean[0], clean[1], IMAGES))
    if kind == "count":
        return a[1:] == b[1:] and _alike(a[0], b[0], a[1] if len(a) > 1 else IMAGES)
    return one.group() == other.group()


def _alike(k: float, j: float, n: float) -> bool:
    """Whether two counts of `n` images differ by no more than two draws would."""
    return abs(k - j) <= SPREAD * math.sqrt((k * (n - k) + j * (n - j)) / n)


def rewritten(page: str, outputs: list[list[str]]) -> str:
    """`page` with what its commands print, shortened as it is now."""
    lines = page.splitlines()
    for step, new in reversed(list(zip(steps(page), outputs, strict=True))):
        if not step.hidden:
            lines[step.start : step.end] = shortened(new, lines[step.start : step.end])
    return "\n".join(lines) + "\n"


def faults(page: str, outputs: list[list[str]]) -> list[str]:
    """The commands of `page` that print something else than it says: line, what is written, and what came."""
    lines, found = page.splitlines(), []
    for step, new in zip(steps(page), outputs, strict=True):
        if step.hidden:
            continue
        old = lines[step.start : step.end]
        if not _fits(old, new):
            written, came = "\n".join(old), "\n".join(shortened(new, old))
            first = next(_differences(written, came), 0)
            at = step.start + 1 + written[:first].count("\n")
            found.append(f"line {at}, {step.command!r}\n--- written\n{written}\n--- came\n{came}\n")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the session of a page, and compare or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--write", action="store_true")
    asked = parser.parse_args(arguments)
    page = asked.page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        outputs = session(steps(page), Path(folder))
    if asked.write:
        write_bytes(asked.page, rewritten(page, outputs).encode())
    elif wrong := faults(page, outputs):
        sys.exit(f"{asked.page} is not what its commands print (--write corrects it):\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
