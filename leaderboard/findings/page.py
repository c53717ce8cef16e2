"""Questions and answers as Markdown: a page with every table, and the short list of the README."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.record import Record
from prunebench.leaderboard.board import Board, Ranking
from prunebench.leaderboard.findings.answers import Answer, Evidence, answer
from prunebench.leaderboard.findings.compared import named
from prunebench.leaderboard.findings.questions import QUESTIONS, Order, Overfitting, Pairs, Question, Slack
from prunebench.leaderboard.render.commands import commands
from prunebench.leaderboard.render.markdown import escaped, sentence
from prunebench.leaderboard.render.text import first_clause, short, short_list
from prunebench.leaderboard.site.charts.accuracy import against_sparsity
from prunebench.leaderboard.table import Results

HEADER = "<!-- Made by tools/findings.py; an edit is lost the next time. -->"
BEGIN, END = "<!-- findings: made by tools/findings.py -->", "<!-- end of findings -->"

_ABOUT = (
    "What the records say about questions that were fixed in advance. Differences are in points of robust accuracy "
    "(AutoAttack), the first row minus the second, over the seeds that both have. The 95 % interval is that of the "
    "t-test paired by seed. A verdict corrects for the number of comparisons (Holm, 5 %): as the board does where it "
    "makes the comparison, else over the question's comparisons at that sparsity. *Cannot tell* is an answer too: the "
    "last column says how likely a true difference of 3 points would have been found. See [statistics](statistics.md)."
)


@dataclass(frozen=True)
class Finding:
    """A question, and what each board that can answer it says."""

    question: Question
    answers: tuple[Answer, ...]


def findings(
    ranking: Ranking, results: Results, source: Path, questions: Iterable[Question] = QUESTIONS
) -> list[Finding]:
    """The `questions` answered by every board of `ranking`, whose records are `results`, below `source`.

    Raises PrunebenchError for nets beside the records other than those that they name.
    """
    evidence = []
    for board in ranking.boards:
        paths = [Path(path) for row in board.rows for path in row.records]
        known = {path: record for path in paths if isinstance(record := results[path], Record)}
        evidence.append(Evidence(board, known, source))
    return [
        Finding(question, tuple(found for of in evidence if (found := answer(question, of)) is not None))
        for question in questions
    ]


def page(found: Sequence[Finding], boards: Sequence[Board]) -> str:
    """All findings as Markdown."""
    contents = [f"- [{finding.question.title}](#{finding.question.key})" for finding in found]
    parts = [HEADER, "# Findings", _wrapped(_ABOUT), "\n".join(contents)]
    for finding in found:
        parts += _finding(finding, boards)
    return "\n\n".join(parts) + "\n"


def _finding(finding: Finding, boards: Sequence[Board]) -> list[str]:
    question = finding.question
    parts = [f'## <a id="{question.key}"></a>{question.title}']
    if question.claim:
        parts.append(f"Published: {question.claim.removesuffix('.')} ({question.source}).")
    for found in finding.answers:
        parts.append(_wrapped(f"**{escaped(found.board.protocol)}**: {sentence(found.verdict)}"))
        parts.append(_table(found))
        parts.append(_command(question, found))
    if missing := absent(question, boards):
        parts.append(f"No board has rows of {escaped(short_list(missing))} yet, so that part is open.")
    elif not finding.answers:
        parts.append(_open(question))
    return parts


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _open(question: Question) -> str:
    if isinstance(question.asked, Overfitting):
        return "No record holds a training curve yet; records since schema 7 do."
    if isinstance(question.asked, Slack):
        return "No record holds the best-known number yet; score with `--best`."
    return "No board has the rows for this question yet."


def absent(question: Question, boards: Sequence[Board]) -> list[str]:
    """The rows that a question names and no board has."""
    match question.asked:
        case Pairs(pairs=pairs):
            labels = [label for pair in pairs for label in pair]
        case Order(pairs=published):
            labels = [label for pair in published for _, label in pair]
        case _:
            return []
    there = {row.pruner for board in boards for row in board.rows}
    return [label for label in dict.fromkeys(labels) if not any(named(board, label) in there for board in boards)]


def _table(found: Answer) -> str:
    rule = ["---" if title in ("Row", "Minus", "And", "Verdict") else "---:" for title in found.titles]
    rows = [found.titles, rule, *([sentence(short(cell, 60)) for cell in line] for line in found.lines)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    count = len(found.lines)
    return f"<details><summary>{count} comparison{'s' * (count != 1)}</summary>\n\n{table}\n\n</details>"


def _command(question: Question, found: Answer) -> str:
    """The commands that make the records, and the one that answers the question from them."""
    made = commands(found.board, found.rows, best=isinstance(question.asked, Slack))
    return "\n".join(["```sh", *made, f"python -m tools.findings runs/records --only {question.key}", "```"])


def headlines(found: Iterable[Finding], board: Board | None = None) -> list[tuple[Question, str, str]]:
    """The first questions with a board's name and its verdict: of one `board`, else of the official ones if any."""
    said = []
    for finding in found:
        if not finding.question.first:
            continue
        official = [of for of in finding.answers if of.board.official]
        chosen = [of for of in finding.answers if of.board.protocol == board.protocol] if board else official
        said += [
            (finding.question, of.board.protocol, of.verdict) for of in chosen or ([] if board else finding.answers)
        ]
    return said


def short_version(found: Sequence[Finding], boards: Sequence[Board]) -> str:
    """The picture and the first findings of the leading board, for the README, between its markers."""
    lead = boards[0]
    seeds = max(len(row.seeds) for row in lead.rows)
    what = f"{escaped(lead.protocol)}, {lead.records} nets, up to {seeds} seeds per row"
    chart = against_sparsity(lead)
    drawn = [] if chart is None else [f"![{escaped(chart.title)}](leaderboard/board.svg)"]
    lines = [
        _wrapped(f"- **{question.title}** {in_short(verdict)} ([figures](docs/findings.md#{question.key}))", "  ")
        for question, _, verdict in headlines(found, lead)
    ]
    return "\n".join([BEGIN, *drawn, "", _wrapped(f"Generated from the records of {what}:"), "", *lines, END])


def in_short(verdict: str) -> str:
    """The first clause of a verdict, which holds without the others, as Markdown."""
    return sentence(first_clause(verdict))


def between_markers(text: str, new: str, name: str) -> str:
    """`text` with `new` in place of the part that begins and ends with the first and the last line of `new`.

    Raises PrunebenchError unless `text` has each of these two marker lines once, in this order.
    """
    begin, end = new.splitlines()[0], new.splitlines()[-1]
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise PrunebenchError(f"{name} does not have the lines {begin} and {end} once each, in this order; add them.")
    return text[: text.index(begin)] + new + text[text.index(end) + len(end) :]
