"""What prunebench says when it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST = 2000  # letters of an error


def printable(text: str) -> str:
    """`text` on one line, whatever file it came from: what could steer a terminal is written as its escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def cut(text: str, longest: int) -> str:
    """`text`, with three dots in place of what comes after `longest` letters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def some(things: Sequence[object], most: int = 10) -> str:
    """The first few of `things`, and how many more there are."""
    shown = ", ".join(map(str, things[:most]))
    return f"{shown} and {len(things) - most} more" if len(things) > most else shown


def reason(error: BaseException) -> str:
    """Why a library gave up: the first line of what it says, or else the name of its error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class PrunebenchError(Exception):
    """A mistake the user can mend: one sentence with the value, the rule and the way out.

    As text it is printable and of bounded length, though it may quote what others wrote.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        half = LONGEST // 2
        return text if len(text) <= LONGEST else f"{text[: half - 3]} ... {text[-half + 2 :]}"


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
