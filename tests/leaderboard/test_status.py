"""The README's table of boards: every built-in protocol, with what it has, and never another's results."""

from __future__ import annotations

from prunebench.bench.protocol import PROTOCOLS
from prunebench.leaderboard.findings.status import BEGIN, END, status
from tests.leaderboard.test_findings import boards
from tests.support.records import make


def lines(*records):
    begin, _, _, *found, end = status(boards(*records).boards).splitlines()
    assert (begin, end) == (BEGIN, END)
    return {line.split(" | ")[0].strip("| `"): line for line in found}


def test_every_protocol_is_listed_and_counts_its_own_nets():
    found = lines([make("imp", 0.9, seed) for seed in range(3)], [make("magnitude", 0.9, 0)])
    assert list(found) == list(PROTOCOLS)
    assert "| Linf 0.2 | [4 nets, 1 to 3 seeds](leaderboard/README.md#digits-linf-version-1) |" in found["digits-linf"]
    assert all(line.endswith("| no results yet |") for name, line in found.items() if name != "digits-linf")


def test_a_foreign_board_stands_below_and_gives_no_official_results():
    """The twin: the same name under other rules is another board."""
    found = lines([make("imp", 0.9, 0, official=False)])
    assert found["digits-linf"].endswith("| no results yet |")
    assert "[1 net, 1 seed]" in found["digits-linf, not official"]


def test_a_name_is_nothing_but_text():
    other = {"name": "a|b<script>", "version": 1, "sha256": "e" * 64}
    (line,) = [line for name, line in lines([make("imp", 0.9, 0, protocol=other)]).items() if "not official" in line]
    assert "<script>" not in line and line.count("|") - line.count("\\|") == 6
