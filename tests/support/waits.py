"""A CUDA card that may not be waited for: torch raises wherever the processor would wait for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Let torch raise RuntimeError where the processor waits for the card, and not any more afterwards.

    torch warns when the mode is set. Where warnings are errors, that warning would leave the mode on for every later
    test, so it is set where it is taken back whatever happens, and its warning is not heard.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")
