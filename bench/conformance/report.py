"""What the conformance suite checks, and its report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from prunebench.bench.errors import cut, printable

# What each check requires, and how to fix a pruner that fails it.
CHECKS = {
    "options": "Write a frozen dataclass; annotate every field bool, int, float or str, with a default of that type.",
    "runs": "Make it finish without an error on the tiny task; the error is shown above.",
    "loads": "Return the whole state dict of lab.model(): its keys, shapes and types, every value finite.",
    "sparsity": "Keep at most lab.keep nonzero weights, and some: choose them with bench.mask and train with masks=.",
    "budget": "Train through lab.fit, and pay for other work with lab.loop(passes=...) or lab.meter.charge.",
    "deterministic": "Draw only from lab.generator(name): no clock, no order of a set, no system randomness.",
    "random-state": "Leave the global generators of torch, numpy and random alone: use lab.generator(name).",
    "test-split": "Learn only from lab.train and lab.validation; only the referee opens the test images.",
    "files": "Return weights and nothing else: write no file, start no process; lab.loop saves progress.",
    "shuffle": "Permute with bench.mask.shuffled after the masks are fixed, so that every layer keeps its count.",
}


@dataclass(frozen=True)
class Check:
    """One rule: `holds` is None if it could not be checked, `found` says what was seen, `mend` how to fix it."""

    name: str
    holds: bool | None
    found: str

    @property
    def mend(self) -> str:
        """How to fix a failure."""
        return CHECKS[self.name]


@dataclass(frozen=True)
class Report:
    """The findings of the suite on one pruner; printed with one line per check, and a second line per failure."""

    pruner: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def broken(self) -> list[str]:
        """The names of the checks that fail."""
        return [check.name for check in self.checks if check.holds is False]

    def __str__(self) -> str:
        words = {True: "holds", False: "FAILS", None: "not asked"}
        lines = []
        for check in self.checks:
            lines.append(f"{check.name:14} {words[check.holds]:10} {_line(check.found)}")
            if check.holds is False:
                lines.append(f"{'':25} {check.mend}")
        kept = sum(check.holds is True for check in self.checks)
        return "\n".join([*lines, f"{_line(self.pruner)}: {kept} of {len(self.checks)} checks hold."])

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON value."""
        checks = [dataclasses.asdict(check) | {"mend": None if check.holds else check.mend} for check in self.checks]
        return {"pruner": self.pruner, "holds": self.holds, "checks": checks}


def _line(text: str) -> str:
    """`text`, which may come from third-party code, as one printable line of bounded length."""
    return cut(printable(text), 400)
