"""Execute a notebook in an empty folder; CI does so, and a cell that fails is an error.

    python -m tools.notebook docs/first-pruner.ipynb            # does every cell work?
    python -m tools.notebook docs/first-pruner.ipynb --write    # and keep the outputs

Needs the environment of `make docs`. What tells about the machine or the moment is not kept: times of execution, and
the version of Python. Fails, and writes nothing, if an output names a folder of this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from prunebench.bench.files import write_bytes


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook in the file `path` with the outputs of today, executed in `folder`.

    Raises nbclient's CellExecutionError for a cell that fails.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    book = nbformat.read(path, as_version=4)
    how = dict(timeout=None, kernel_name="python3", record_timing=False, coalesce_streams=True)
    NotebookClient(book, resources={"metadata": {"path": str(folder)}}, **how).execute()
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return book


def said(book: nbformat.NotebookNode) -> str:
    """All outputs of `book` that are text; pictures in base64 are not."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([*(output.text for output in outputs if "text" in output), *shown])


def private(text: str, folder: Path) -> list[str]:
    """The folders of this machine that `text` names."""
    places = {str(folder), str(Path.home()), str(Path(sys.executable).parents[1]), tempfile.gettempdir()} - {"/"}
    return sorted(place for place in places if place in text)


def main(arguments: list[str] | None = None) -> None:
    """Execute a notebook and, if asked, keep its outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        book = executed(asked.notebook, Path(name))
        named = private(said(book), Path(name))
    if named:
        sys.exit(f"the outputs name folders of this machine: {', '.join(named)}")
    if asked.write:
        write_bytes(asked.notebook, f"{nbformat.writes(book).rstrip()}\n".encode())


if __name__ == "__main__":
    main()
