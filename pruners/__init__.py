"""Pruners, one method per file, and their registry: which exist, and how to name one with its options."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from prunebench.bench import spec as named
from prunebench.bench.errors import PrunebenchError, some, unknown
from prunebench.bench.faults import fault
from prunebench.bench.files import sha256_of
from prunebench.bench.lab.lab import Pruner

if not __name__.startswith("prunebench."):
    raise ImportError("This is prunebench.pruners: install the checkout (make setup) and import prunebench.")


class _Registry(Mapping[str, type]):
    """Name -> class for every entry point of the group; a class is imported only when it is requested."""

    @cached_property
    def _points(self) -> Mapping[str, EntryPoint]:
        return named.registered()

    def __getitem__(self, name: str) -> type:
        point = self._points[name]
        try:
            return point.load()
        except (ImportError, AttributeError, SyntaxError) as error:
            raise PrunebenchError(
                f"Cannot import the pruner {name!r} ({error}); install its package again, or remove it."
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._points))

    def __len__(self) -> int:
        return len(self._points)


PRUNERS: Mapping[str, type] = _Registry()


@dataclass(frozen=True)
class ResolvedPruner:
    """A pruner ready to be called: its `name`, its non-default `options`, and the sha256 of its `source`."""

    name: str
    options: dict[str, bool | int | float | str]
    pruner: Pruner
    source: str

    @property
    def prunes(self) -> bool:
        """Whether it prunes at all; a pruner that does not is run only at sparsity 0."""
        return getattr(type(self.pruner), "prunes", True)


def resolve(spec: str) -> ResolvedPruner:
    """Resolve `spec` to the pruner that it names.

    `spec` is `NAME`, `package.module:Class` or `path/file.py:Class`, each optionally followed by `:option=value,...`.
    Raises PrunebenchError for an unknown name or option, and for a value of the wrong type.
    """
    asked = named.read(spec)
    head = asked.head
    cls = _class(head)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for key, text in asked.options:
        if key not in fields:
            raise unknown(f"option of {head}", key, fields)
        if key in given:
            raise PrunebenchError(f"Option {key} of {head} is given twice; give it once.")
        given[key] = _value(head, fields[key], text, cls)
    try:
        pruner = cls(**given)
    except (TypeError, ValueError) as error:  # TypeError: an option without a default
        raise PrunebenchError(f"Pruner {spec!r} refuses its options: {str(error).rstrip('.')}.") from None
    changed = {key: value for key, value in given.items() if value != fields[key].default}
    return ResolvedPruner(asked.label, changed, pruner, named.source_of(spec))


def _class(head: str) -> type:
    if ":" not in head:
        if head.endswith(".py"):
            raise PrunebenchError(
                f"The pruner {head!r} is a file, but a pruner is a class in it; write {head}:Class"
                f"{_examples(Path(head))}."
            )
        if head not in PRUNERS:
            way_out = f"Or name a class: package.module:Class or path/to/file.py:Class{_examples(_file_of(head))}."
            raise unknown("pruner", head, PRUNERS, way_out)
        cls = PRUNERS[head]
    else:
        path, _, name = head.rpartition(":")
        spelled = path.endswith(".py") or all(part.isidentifier() for part in path.split("."))
        if not spelled or not name.isidentifier() or name in _options(path):
            raise PrunebenchError(
                f"Cannot read the pruner {head!r}; write NAME:option=value,..., package.module:Class or "
                f"path/to/file.py:Class{_examples(_file_of(path))}."
            )
        module = _module(path)
        classes = [key for key, value in vars(module).items() if dataclasses.is_dataclass(value)]
        if name not in classes and isinstance(getattr(module, name, None), type):
            raise PrunebenchError(
                f"{head!r} is a class, but a pruner is a frozen dataclass; put @dataclass(frozen=True) above it."
            )
        if name not in classes:
            raise unknown(f"class in {path}", name, classes, "A pruner is a frozen dataclass.")
        cls = getattr(module, name)
    if not (dataclasses.is_dataclass(cls) and "__call__" in dir(cls)):
        raise PrunebenchError(f"{head!r} is not a pruner: write a frozen dataclass with __call__(self, job, lab).")
    return cls


def _options(name: str) -> list[str]:
    """The options of the pruner `name`; none for any other word."""
    return [field.name for field in dataclasses.fields(PRUNERS[name])] if name in PRUNERS else []


def _file_of(name: str) -> Path:
    """The file that `name` may mean: NAME.py, or NAME/NAME.py as `prunebench new` makes it."""
    return nested if (nested := Path(name, f"{Path(name).name}.py")).is_file() else Path(f"{name}.py")


def _examples(file: Path) -> str:
    """The classes of a file, read without running it: ", such as mine.py:Mine"; empty if there are none."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    names = [f"{file}:{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)]
    return f", such as {some(names, 3)}" if names else ""


def _module(path: str) -> ModuleType:
    try:
        if not path.endswith(".py"):
            return importlib.import_module(path)
        file = Path(path)
        if not file.is_file():
            raise PrunebenchError(f"There is no file {path}; name a pruner as path/to/file.py:Class.")
        name = f"prunebench_file_{sha256_of(str(file.resolve()).encode())[:16]}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # both exist for every *.py file
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up by name
        spec.loader.exec_module(module)
        return module
    except PrunebenchError:
        raise
    except Exception as error:  # its code runs here, and may fail in any way
        why = fault(error, [f"{path}:"])
        meant = "" if path.endswith(".py") else _examples(_file_of(path))
        way_out = f"; name its file{meant}" if meant else ""
        raise PrunebenchError(f"Cannot import the pruner's module {path!r}: {why}{way_out}.") from error


def _value(head: str, field: dataclasses.Field[Any], text: str, cls: type) -> Any:
    kind = typing.get_type_hints(cls)[field.name]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not abs(value) < float("inf"):
            raise ValueError
        return value
    except (KeyError, ValueError, TypeError):
        wanted = getattr(kind, "__name__", kind)
        raise PrunebenchError(
            f"Option {field.name}={text!r} of {head} is not of type {wanted}; its default is {field.default!r}, "
            f"written {field.name}={str(field.default).lower()}."
        ) from None


def summary(name: str) -> str:
    """A pruner's first line and its options with their defaults, or why it cannot be imported."""
    try:
        cls = PRUNERS[name]
    except PrunebenchError as error:
        return str(error)
    options = ", ".join(f"{f.name}={str(f.default).lower()}" for f in dataclasses.fields(cls))
    line = (cls.__doc__ or "").strip().splitlines()[0]
    return f"{line} Options: {options}." if options else line
