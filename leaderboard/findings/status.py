"""Which protocols have results, and how many: the README's table."""

from __future__ import annotations

from collections.abc import Sequence

from prunebench.bench.protocol import PROTOCOLS, Protocol, load
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.render.markdown import escaped

BEGIN, END = "<!-- boards: made by tools/findings.py -->", "<!-- end of boards -->"
_NONE = "no results yet"


def status(boards: Sequence[Board]) -> str:
    """A Markdown table between its markers: every built-in protocol, then other boards, each with what it has."""
    built_in = [
        (load(name), next((b for b in boards if b.protocol == name and b.official), None)) for name in PROTOCOLS
    ]
    foreign = [board for board in boards if board not in [found for _, found in built_in]]
    lines = ["| protocol | data | net | threat | results |", "|---|---|---|---|---|"]
    lines += [_line(f"`{rules.name}`", rules.data, rules, board) for rules, board in built_in]
    lines += [_line(f"{escaped(of.protocol)}, not official", of.data, of.rules, of) for of in foreign]
    return "\n".join([BEGIN, *lines, END])


def _line(name: str, data: str, rules: Protocol | None, board: Board | None) -> str:
    net, threat = ("", "") if rules is None else (rules.model, f"{rules.threat.norm} {rules.threat.eps}")
    return f"| {name} | {escaped(data)} | {escaped(net)} | {escaped(threat)} | {_results(board)} |"


def _results(board: Board | None) -> str:
    if board is None:
        return _NONE
    anchor = f"{board.protocol}-version-{board.version}".lower()
    nets = f"{board.records} net{'s' * (board.records > 1)}, {board.seeds_shown}"
    return f"[{nets}](leaderboard/README.md#{escaped(anchor)})"
