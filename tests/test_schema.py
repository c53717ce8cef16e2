"""Exact numbers are exact."""

from __future__ import annotations

from fractions import Fraction

import pytest

from prunebench.bench.schema import exact


def test_exact_is_exact():
    assert exact("8/255") == Fraction(8, 255)
    assert exact("0.3") == Fraction(3, 10)
    assert exact("0.031") != exact("8/255")


@pytest.mark.parametrize("text", ["8/0", "-1", "-8/255", "", "8/", "1e-3", "nan", "inf", " 1", "1\n", "0x1", "1/2/3"])
def test_exact_refuses(text):
    with pytest.raises(ValueError, match=r"is not a number|divides by zero"):
        exact(text)
