"""A job: what a pruner is asked to do."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from prunebench.bench.files import sha256_of
from prunebench.bench.protocol import as_sparsity
from prunebench.bench.schema import Natural, Strict


class Job(Strict):
    """What a pruner is asked to do: its name, its non-default options, a sparsity, a seed."""

    pruner: str
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    seed: Natural

    @property
    def label(self) -> str:
        """The pruner as it is written on the command line: `NAME` or `NAME:option=value,...`."""
        options = ",".join(f"{key}={_spelled(value)}" for key, value in sorted(self.options.items()))
        return f"{self.pruner}:{options}" if options else self.pruner

    @property
    def name(self) -> str:
        """The job as a file name, made of letters, digits, `.`, `=`, `_` and `-` only."""
        plain = self.label.replace(":", "-").replace(",", "-")
        safe = re.sub(r"[^A-Za-z0-9.=_-]+", "-", plain).strip("-.")
        if safe != plain or len(safe) > 150:  # labels must not share a name, and file systems limit its length
            safe = f"{safe[:150]}-{sha256_of(self.label.encode(errors='backslashreplace'))[:8]}"
        return f"{safe}-s{as_sparsity(self.sparsity)}-seed{self.seed}"


def _spelled(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
