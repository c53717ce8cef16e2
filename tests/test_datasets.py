"""A row of the table of data sets says all that others need to know of it."""

from __future__ import annotations

import pytest

from prunebench.bench.datasets import DATASETS, digits_file


@pytest.mark.parametrize("name", DATASETS)
def test_every_file_bears_a_mark_of_its_data_set(name):
    """By which the conformance suite sees that it was opened."""
    row = DATASETS[name]
    files = [f"root/{file}" for file in row.files] or [str(digits_file())]
    assert all(any(mark in file for mark in row.marks) for file in files)


@pytest.mark.parametrize("name", DATASETS)
def test_a_row_has_statistics_for_every_channel(name):
    info = DATASETS[name].info
    assert len(info.mean) == len(info.std) == info.shape[0]
