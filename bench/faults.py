"""Errors in a pruner's own code, in one sentence that names the file and the line."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.spec import place_of, read, registered


def fault(error: BaseException, specs: Iterable[str]) -> str:
    """What happened, and where in the files of the pruners `specs`: "mine.py, line 7: KeyError: 'a'".

    The line is the innermost one in such a file, even where the error was raised in a library below it. Without one,
    the sentence names no place.
    """
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    for spec in specs:
        with suppress(PrunebenchError):
            file = place_of(read(spec).head, registered())[0].resolve()
            steps = traceback.extract_tb(error.__traceback__)
            at = [step.lineno for step in steps if Path(step.filename).resolve() == file]
            if at:
                return f"{file.name}, line {at[-1]}: {what}"
    return what
