"""A pruner's name and source file, read from text and files only, so that no pruner is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of

GROUP = "prunebench.pruners"


@dataclass(frozen=True)
class Spec:
    """A pruner as the user wrote it: `head` names a class, `options` are the options after it, as text."""

    head: str
    options: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """The name in records; a file is named by its stem, so that records contain no paths of anyone's machine."""
        path, _, cls = self.head.rpartition(":")
        return f"{Path(path).stem}.{cls}" if path.endswith(".py") else self.head.replace(":", ".")


def read(spec: str) -> Spec:
    """The parts of `spec`: `NAME`, `package.module:Class` or `path/file.py:Class`, optionally `:option=value,...`.

    Raises PrunebenchError when head and options cannot be told apart.
    """
    head, options = spec, ""
    if "=" in spec:
        start = spec.rfind(":", 0, spec.index("="))  # a value may hold colons, too, as in pattern=2:4
        head, options = spec[: max(start, 0)], spec[start + 1 :]
        if not head or re.search("=[^,]*:[^,]*=", options):
            raise PrunebenchError(f"Cannot read the pruner {spec!r}; write NAME:option=value,option=value.")
    pairs = (item.partition("=") for item in filter(None, options.split(",")))
    return Spec(head, tuple((key, value) for key, _, value in pairs))


def registered() -> Mapping[str, EntryPoint]:
    """The entry point of every installed pruner, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def source_of(spec: str) -> str:
    """The sha256 of a pruner's source file, and of those of the pruners that its options name.

    An edited pruner is a different pruner, and so is a pruner that runs an edited one (IWI's ticket). Defaults are
    read from the class in the file. Raises PrunebenchError when a file cannot be found or read.
    """
    asked, points = read(spec), registered()
    file, cls = place_of(asked.head, points)
    values = _text_defaults(_bytes(file), cls) | dict(asked.options)
    named = [place_of(value, points)[0] for value in values.values() if value in points]
    files = [_bytes(each) for each in (file, *named)]
    return sha256_of(files[0] if len(files) == 1 else b"\0".join(files))


def place_of(head: str, points: Mapping[str, EntryPoint]) -> tuple[Path, str]:
    """The source file and class that `head` names. Raises PrunebenchError when there is no such file."""
    text = points[head].value if head in points else head
    path, _, cls = text.rpartition(":")
    file = Path(path) if path.endswith(".py") else _file_of(path)
    if file is None or not file.is_file():
        raise PrunebenchError(f"The pruner {head!r} has no source file; check its path or install it again.")
    return file, cls


def _file_of(module: str) -> Path | None:
    """The file of the module `a.b.c`, found package by package as an import would, but without importing."""
    where, origin, parts = None, None, module.split(".")
    for number in range(len(parts)):
        name = ".".join(parts[: number + 1])
        found = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, where)) is not None), None)
        if found is None:
            return None
        where, origin = found.submodule_search_locations, found.origin
    return Path(origin) if origin else None


def _text_defaults(source: bytes, cls: str) -> dict[str, str]:
    """The fields of the class `cls` in `source` whose default is a literal text."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}  # importing it fails too, and that error says why
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    return {
        line.target.id: line.value.value
        for body in bodies
        for line in body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    }


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PrunebenchError(f"Cannot read the pruner's source {file} ({error.strerror}); check the path.") from None
