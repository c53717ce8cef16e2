"""Traces what a pickle would build without building it, to refuse pickles that expand out of proportion.

torch reads only tensors and plain containers and runs no other code. But a dozen bytes per level suffice for a tuple
that holds the next tuple twice. As a dict key it is hashed leaf by leaf: forty levels take hours.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator

LEAVES = 10_000  # per nest of tuples; a tensor's have twenty
STEPS = 500_000  # for all pickles in a file; a tensor takes sixty
_STREAMS = 5  # consecutive pickles in torch's old format, before the values
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_MARK = 0  # in place of the leaves of an object


def refuse_explosive(data: bytes) -> None:
    """Raise ValueError when the pickles in `data`, a torch.save file, nest too deeply or take too many steps.

    Data that is not a pickle is left to torch, which refuses it.
    """
    left = STEPS
    for stream in _streams(data):
        for _ in range(_STREAMS):
            try:
                left -= _followed(stream, left)
            except (IndexError, KeyError):  # an empty stack, an unknown memo: torch stops there, too
                break


def _streams(data: bytes) -> Iterator[io.BytesIO]:
    if data[:2] != b"PK":
        yield io.BytesIO(data)
        return
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        for member in members.infolist():
            if member.filename.endswith(".pkl"):
                yield io.BytesIO(members.read(member))


def _followed(stream: io.BytesIO, most: int) -> int:
    """Trace one pickle, with leaf counts in place of objects, and return the number of steps."""
    stack: list[int] = []
    memo: dict[object, int] = {}
    steps = 0
    for steps, (code, argument, _) in enumerate(_steps(stream), 1):
        if steps > most:
            raise ValueError(f"its pickle takes more than {STEPS} steps")
        name = code.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        taken = []
        for kind in reversed(code.stack_before):
            if kind is pickletools.stackslice:
                while stack[-1] != _MARK:
                    taken.append(stack.pop())
            else:
                taken.append(stack.pop())
        leaves = 1 + sum(taken) if name in _TUPLES else 1
        if leaves > LEAVES:
            raise ValueError(f"its pickle nests more than {LEAVES} values in one tuple")
        if name == "DUP":
            leaves = taken[0]
        stack += [_MARK if kind is pickletools.markobject else leaves for kind in code.stack_after]
    return steps


def _steps(stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]:
    try:
        yield from pickletools.genops(stream)
    except (ValueError, UnicodeError, OverflowError):  # the rest is not a pickle
        return
