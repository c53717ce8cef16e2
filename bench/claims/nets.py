"""The nets of records, found beside them or by their sha256."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from prunebench.bench.beside import net_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import digest_outside
from prunebench.bench.record import LARGEST_NET, Record


class Nets:
    """Finds the nets of records: beside them, or anywhere below `folders` by their sha256."""

    def __init__(self, *folders: Path) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise PrunebenchError(
                    f"There is no folder {folder}; name one with --nets that holds nets (*.safetensors)."
                )
        self._rest = (file for folder in folders for file in _files(folder))
        self._known: dict[str, Path] = {}

    def of(self, path: Path, record: Record) -> Path:
        """The net of the record at `path`. Raises PrunebenchError, which names the net, when it is not found."""
        beside = net_path(path)
        return beside if beside.exists() else self._named(record.net.sha256, path, f"its net, {beside.name}")

    def parent_of(self, path: Path, record: Record) -> Path | None:
        """The dense net whose adversarials entered the best-known number of the record at `path`, if there is one.

        Raises PrunebenchError, which names the net, when it is not found.
        """
        sha256 = record.notes.get("parent")
        if record.beyond.best is None or sha256 is None:
            return None
        return self._named(str(sha256), path, "the dense net whose adversarials it was attacked with,")

    def _named(self, sha256: str, path: Path, what: str) -> Path:
        while sha256 not in self._known:
            if (file := next(self._rest, None)) is None:
                raise PrunebenchError(
                    f"{path} cannot be measured again: {what} with the sha256 {sha256[:12]}..., is missing; put it "
                    "beside the record, or name a folder of nets with --nets."
                )
            self._known.setdefault(digest_outside(file, "a net", LARGEST_NET), file)
        return self._known[sha256]


def _files(folder: Path) -> Iterator[Path]:
    """The regular files below `folder` that may be nets; links are not followed."""
    for path in sorted(folder.rglob("*.safetensors")):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_NET:
            yield path
