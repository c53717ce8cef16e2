"""The suites, by the names used in protocols."""

from __future__ import annotations

from prunebench.bench.attacks.standard import STANDARD
from prunebench.bench.attacks.suite import Suite
from prunebench.bench.protocol import Protocol

SUITES: dict[str, Suite] = {STANDARD.name: STANDARD}


def suite_of(rules: Protocol) -> Suite:
    """The suite that `rules` select."""
    return SUITES[rules.attacks]
