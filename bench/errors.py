"""What prunebench says when it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PrunebenchError(Exception):
    """A mistake the user can mend: one sentence with the value, the rule and the way out."""


class Refused(PrunebenchError):
    """The referee does not score this net; `check` names the rule that it broke."""

    def __init__(self, check: str, sentence: str) -> None:
        super().__init__(sentence)
        self.check = check


class BudgetExceeded(PrunebenchError):
    """A pruner asked for more sample passes than its protocol grants."""


def unknown(kind: str, name: str, choices: Iterable[str], way_out: str = "") -> PrunebenchError:
    """An error for a name that is not in a table, with the nearest name and all the choices."""
    names = sorted(choices)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    nearest = f"; did you mean {near[0]!r}?" if near else "."
    offered = f"Choose from: {', '.join(names)}." if names else "There are none to choose from."
    return PrunebenchError(f"Unknown {kind} {name!r}{nearest} {offered}{' ' + way_out if way_out else ''}")
