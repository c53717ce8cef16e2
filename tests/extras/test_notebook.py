"""A notebook is executed in an empty folder; what fails or tells about the machine is not kept."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tools.notebook import main, private, said


@pytest.fixture
def book(tmp_path):
    """Writes a notebook of one cell."""

    def write(source):
        cell = {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        path = tmp_path / "book.ipynb"
        path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return path

    return write


def test_the_outputs_of_a_run_are_kept(book):
    path = book("import os, shutil\nprint(os.listdir(), shutil.which('prunebench') is not None)")
    before = path.read_bytes()
    main([str(path)])
    assert path.read_bytes() == before
    main([str(path), "--write"])
    (cell,) = json.loads(path.read_text())["cells"]
    assert (cell["execution_count"], cell["outputs"][0]["text"]) == (1, ["[] True\n"])
    assert cell["metadata"] == {} and json.loads(path.read_text())["metadata"]["language_info"] == {"name": "python"}


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("1 / 0", CellExecutionError, "ZeroDivisionError"),
        ("%%bash\nfalse", CellExecutionError, "CalledProcessError"),
        ("import os\nprint(os.getcwd())", SystemExit, "the outputs name folders of this machine: "),
    ],
)
def test_a_run_that_fails_or_names_the_machine_is_not_kept(book, source, error, said):
    path = book(source)
    before = path.read_bytes()
    with pytest.raises(error, match=said):
        main([str(path), "--write"])
    assert path.read_bytes() == before


@pytest.mark.parametrize(("kind", "named"), [("image/png", False), ("text/plain", True), ("text/html", True)])
def test_pictures_are_not_searched_for_folders(kind, named, tmp_path):
    """Base64 may hold the letters of any short path by chance."""
    output = nbformat.v4.new_output("display_data", {kind: f"iVBOR{tmp_path}w0KGgo="})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    assert (str(tmp_path) in private(said(book), tmp_path)) is named
