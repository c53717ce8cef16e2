"""What the records say about questions fixed in advance: a page, and the README's first findings and boards.

`python -m tools.findings leaderboard/records --write docs/findings.md --readme README.md` answers every question of
`leaderboard/findings/questions.py` from the records and the nets beside them. Without `--write` it prints the page,
with `--only KEY` one finding of it, and with `--check` it fails unless the files are up to date.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.files import write_bytes
from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.findings.page import between_markers, findings, page, short_version
from prunebench.leaderboard.findings.questions import QUESTIONS
from prunebench.leaderboard.findings.status import status
from prunebench.leaderboard.table import Results, rank, read


def known(records: Path) -> tuple[Results, Ranking]:
    """The records below `records`, and their boards. Raises PrunebenchError as `read` and `rank` do."""
    results = read(records)
    return results, rank(results)


def one(records: Path, key: str | None) -> str:
    """The page of all findings, or of the question `key` alone. Raises PrunebenchError for an unknown question."""
    keys = {question.key: question for question in QUESTIONS}
    if key is not None and key not in keys:
        raise unknown("question", key, keys)
    results, ranking = known(records)
    asked = QUESTIONS if key is None else (keys[key],)
    return page(findings(ranking, results, records, asked), ranking.boards)


def stale(records: Path, write: Path | None, readme: Path | None) -> dict[Path, str]:
    """The files that differ from what the records say today, with their new content.

    `write`: the page. `readme`: the file with the first findings and the table of boards.
    """
    results, ranking = known(records)
    found = findings(ranking, results, records)
    wanted = {} if write is None else {write: page(found, ranking.boards)}
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        for part in (short_version(found, ranking.boards), status(ranking.boards)):
            text = between_markers(text, part, str(readme))
        wanted[readme] = text
    return {path: new for path, new in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != new}


def main(arguments: list[str] | None = None) -> None:
    """Print, write or check the findings of a folder of records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--write", type=Path, default=None, help="the page")
    parser.add_argument("--readme", type=Path, default=None, help="a file with the markers of both parts")
    parser.add_argument("--only", default=None, metavar="KEY", help="print one finding")
    parser.add_argument("--check", action="store_true", help="fail unless the files are up to date, and write nothing")
    asked = parser.parse_args(arguments)
    if asked.only is not None or (asked.write is None and asked.readme is None):
        print(one(asked.records, asked.only), end="")
        return
    old = stale(asked.records, asked.write, asked.readme)
    if old and asked.check:
        command = f"python -m tools.findings {asked.records}"
        command += f" --write {asked.write}" if asked.write else ""
        command += f" --readme {asked.readme}" if asked.readme else ""
        raise PrunebenchError(f"{', '.join(map(str, old))} is out of date; run {command}.")
    for path, text in old.items():
        write_bytes(path, text.encode())


if __name__ == "__main__":
    main()
