"""Errors for the user, and helpers that keep their text short and printable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST = 2000  # characters of an error


def printable(text: str) -> str:
    """`text` on one line, safe to print: characters that could control a terminal are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def cut(text: str, longest: int) -> str:
    """`text`, with three dots in place of everything after `longest` characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def some(things: Sequence[object], most: int = 10) -> str:
    """The first few of `things`, and the number of the rest."""
    shown = ", ".join(map(str, things[:most]))
    return f"{shown} and {len(things) - most} more" if len(things) > most else shown


def reason(error: BaseException) -> str:
    """Why a library failed: the first line of its message, or else the name of its error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class PrunebenchError(Exception):
    """A mistake that the user can fix: one sentence with the value, the rule and the remedy.

    Its text is printable and of bounded length, even where it quotes untrusted input.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        half = LONGEST // 2
        return text if len(text) <= LONGEST else f"{text[: half - 3]} ... {text[-half + 2 :]}"


class Refused(PrunebenchError):
    """The referee refuses to score this net; `check` names the rule that it broke."""

    def __init__(self, check: str, sentence: str) -> None:
        super().__init__(sentence)
        self.check = check


class BudgetExceeded(PrunebenchError):
    """A pruner asked for more sample passes than its protocol grants."""


class NoRanking(PrunebenchError, ValueError):
    """Scores that cannot be ranked, because they hold NaN."""


def unknown(kind: str, name: str, choices: Iterable[str], way_out: str = "") -> PrunebenchError:
    """An error for a name that is not in a table, with the nearest names and all the choices.

    Nearest are those that begin with `name`, three at most, in the order of `choices`; otherwise the most similar one.
    """
    names, asked = list(choices), name.lower()
    spelled = {choice.lower(): choice for choice in names}
    begun = [lower for lower in spelled if lower.startswith(asked)] if asked and asked not in spelled else []
    near = [repr(spelled[lower]) for lower in begun[:3] or get_close_matches(asked, spelled, n=1, cutoff=0.5)]
    nearest = f"; did you mean {' or '.join(near)}?" if near else "."
    offered = f"Choose from: {', '.join(sorted(names))}." if names else "There are none to choose from."
    return PrunebenchError(f"Unknown {kind} {name!r}{nearest} {offered}{' ' + way_out if way_out else ''}")
