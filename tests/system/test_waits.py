"""The mode in which torch refuses to wait for a card never outlives the test that asked for it."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.support.waits import no_waiting


@pytest.fixture
def modes(monkeypatch):
    """The modes set, on a machine without a card; as torch does, each is set first and warned about then."""
    seen = []

    def set_mode(mode):
        seen.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    return seen


@pytest.mark.parametrize("fault", [None, RuntimeError("called a synchronizing CUDA operation")])
def test_the_mode_is_taken_back_whatever_happens(fault, modes):
    def used():
        with no_waiting():
            assert modes == ["error"]
            if fault is not None:
                raise fault

    if fault is None:
        used()
    else:
        with pytest.raises(RuntimeError, match="synchronizing"):
            used()
    assert modes == ["error", "default"]


def test_set_before_the_try_it_would_stay_on(modes):
    """The twin: the warning is an error here, so the line that takes the mode back is never reached."""
    with pytest.raises(UserWarning, match="prototype"):
        torch.cuda.set_sync_debug_mode("error")
    assert modes == ["error"]
