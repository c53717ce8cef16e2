"""The kernels for a card without a card: Triton's interpreter runs them on the CPU, line by line in numpy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from prunebench.bench.executor import Fast, card
from prunebench.bench.executor.card.tiles import Tiles

# The interpreter takes as long for a tile of 65,536 sums as for one of 16: tests of nets take few programs.
WIDE = {"lines": 512, "parts": 2048, "lanes": 32}


@contextmanager
def interpreted(**sizes: Any) -> Iterator[None]:
    """Nets on the CPU take the way of nets on a card, their kernels interpreted; `sizes`: fields of `Tiles`.

    With `sizes`, integers that overflow are found.
    """
    import triton.runtime.interpreter as interpreter

    from prunebench.bench.executor.card import kernels, run

    patched = interpreter._patch_lang_tensor

    def counting(tensor: Any, scope: Any) -> None:
        """Triton 3.6 cannot count to a number that was loaded: numpy 2.4 refuses int() of an array of one number."""
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def called(function: Any, *given: Any) -> Any:
        """A kernel's helper; Triton prepares its own modules again at every such call, for a hundredth of a second."""
        return function.rewrite()(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(interpreter, "_patch_lang_tensor", counting)
        patch.setattr(interpreter.InterpretedFunction, "__call__", called)
        options = interpreter.interpreter_builder.options
        checked = replace(options, sanitize_overflow=bool(sizes))  # of integers, which takes half the time
        patch.setattr(interpreter.interpreter_builder, "options", checked)
        patch.setattr(Fast, "_on_card", True)
        patch.setattr(card, "lacking", lambda device: None)
        patch.setattr(run, "TILES", Tiles(**(sizes or WIDE)))
        importlib.reload(kernels)  # its decorators look at the variable
        try:
            yield
        finally:
            patch.delenv("TRITON_INTERPRET")
            importlib.reload(kernels)
