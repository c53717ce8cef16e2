"""The source files that a module depends on, found by its imports, so that a change in any of them changes a hash."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from prunebench.bench.files import sha256_of

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def closure(modules: Iterable[str], root: Path) -> list[Path]:
    """The files below the package `root` that its `modules` import, directly or through others, in order.

    `modules`: dotted names such as "prunebench.bench.seeds". Imports inside functions count; imports only for types do
    not. A package's C++ sources are included with it. Raises OSError and SyntaxError for files that cannot be read.
    """
    found: set[Path] = set()
    waiting = [path for name in modules for path in _files(name, root)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [other for name in _imports(path, root) for other in _files(name, root)]
            if path.name == "__init__.py":
                found |= {*path.parent.glob("*.cpp"), *path.parent.glob("*.h")}
    return sorted(found)


def code(modules: Iterable[str], root: Path) -> str:
    """The sha256 over names and contents of the closure of `modules`."""
    files = [(path.relative_to(root).as_posix().encode(), path.read_bytes()) for path in closure(modules, root)]
    return sha256_of(b"\0".join(part for pair in files for part in pair))


def _files(name: str, root: Path) -> list[Path]:
    """The file of a dotted name and those of its parent packages; empty for a name outside `root`.

    The last part of a name may be an attribute of a module.
    """
    parts = name.split(".")
    if parts[0] != root.name:
        return []
    found, place = [root / "__init__.py"], root
    for part in parts[1:]:
        if (module := place / f"{part}.py").exists():
            return [*found, module]
        place /= part
        if not (place / "__init__.py").exists():
            return found
        found.append(place / "__init__.py")
    return found


def _imports(path: Path, root: Path) -> Iterator[str]:
    """The dotted names that the file at `path` imports, relative ones resolved."""
    package = (root.name, *path.relative_to(root).parent.parts)
    for node in _statements(path):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        else:
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{name.name}" for name in node.names)


def _statements(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a file, including those inside functions, classes and branches."""
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        for block in _BLOCKS:  # skip expressions: they hold no statements and make up most of a file
            waiting += getattr(node, block, ())
