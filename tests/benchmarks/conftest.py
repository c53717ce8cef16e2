"""After the benchmarks: the ratios, ours to the peer's, in one table."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the benchmarks noted as `extra_info["ratio"]`."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "ratio" in b.extra_info]
    if not rows:
        return
    terminalreporter.section("ours against the peer, alternating in one run")
    for row in rows:
        info = row.extra_info
        line = f"{row.name}: ours {info['ours_s']:.2f} s, peer {info['peer_s']:.2f} s (medians of {info['rounds']}), "
        terminalreporter.write_line(f"{line}ratio {info['ratio']:.3f} (target at most {info['target']})")
