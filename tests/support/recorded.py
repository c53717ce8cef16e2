"""In place of a CUDA graph, on the CPU: a tape of torch's operations, played again on the same tensors.

As with a graph, recording changes nothing, numbers of Python are as they were when it was recorded, and random numbers
come from the generator as it is at each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded:
    """A tape of one piece of work; `device` is not asked for. `warm`: how often work ran beside it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.tape, self.warm = _Tape(), 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Count a warm-up."""
        self.warm += 1
        yield

    def record(self, work: Callable[[], Tensor], noise: torch.Generator) -> Tensor:
        """Record `work`; the tensors that it met, and the generator, are as before."""
        state = noise.get_state()
        with self.tape:
            result = work()
        noise.set_state(state)
        for storage, before in self.tape.met.values():
            storage.copy_(before)
        return result

    def replay(self) -> None:
        """Call every operation again, and put its results where they were."""
        for func, args, kwargs, results in self.tape.calls:
            with torch.no_grad():
                for held, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(held, Tensor) and held.data_ptr() != new.data_ptr():
                        held.detach().copy_(new)


class _Tape(TorchDispatchMode):
    """Operations in order. `met`: the memory of tensors from outside, with what it held."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []
        self.met: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` and write it down."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self._own:
                storage = tensor.untyped_storage()
                self.met.setdefault(place, (storage, storage.clone()))
        results = func(*args, **kwargs)
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self.met:
                self._own.add(place)
        self.calls.append((func, args, kwargs, results))
        return results
