"""Claims as test items: `pytest claims/ --claim-level quick` fails when a published number no longer holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Every pytest run loads this module where prunebench is installed, so it imports the rest of prunebench only once a
# claim is found.
NAME, SUFFIX = "CLAIM.toml", ".claim.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for claims."""
    group = parser.getgroup("prunebench", "claims of robust accuracy (CLAIM.toml, *.claim.toml)")
    group.addoption(
        "--claim-level",
        choices=("replay", "quick", "full"),
        default="replay",
        help="replay the stored images (default), attack a tenth of the images (at least 200), or attack all",
    )
    group.addoption(
        "--claim-data",
        metavar="DIR",
        default=None,
        help="the folder of the data sets; $PRUNEBENCH_DATA or ./data by default",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the file if it is a claim."""
    if file_path.name == NAME or file_path.name.endswith(SUFFIX):
        return ClaimFile.from_parent(parent, path=file_path)
    return None


class ClaimFile(pytest.File):
    """A file with a claim."""

    def collect(self) -> Iterator[pytest.Item]:
        """The single item: the claim at the requested level."""
        yield ClaimItem.from_parent(self, name=self.config.getoption("--claim-level"))


class Fallen(Exception):
    """A claim that does not hold."""


class ClaimItem(pytest.Item):
    """A claim: passes when it holds or is reproduced."""

    def runtest(self) -> None:
        """Verify the claim. Raises Fallen, with one sentence, when it does not hold."""
        from prunebench.bench.claims.verify import verify
        from prunebench.bench.data import Store
        from prunebench.bench.errors import PrunebenchError

        data = self.config.getoption("--claim-data") or os.environ.get("PRUNEBENCH_DATA", "data")
        try:
            found = verify(self.path, self.config.getoption("--claim-level"), store=Store(Path(data)))
        except PrunebenchError as error:
            raise Fallen(f"refused: {error}") from None
        if not found.good:
            raise Fallen(found.line)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The sentence alone, or pytest's own report of a bug in prunebench."""
        if isinstance(excinfo.value, Fallen):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """The location and name of the item in reports."""
        return self.path, None, f"claim {self.path.name}, {self.name}"
