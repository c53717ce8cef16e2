"""Which card a step of a grid runs on: the one with the fewest steps among those whose memory has room for it."""

from __future__ import annotations

import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from prunebench.bench import machine
from prunebench.bench.data import Store
from prunebench.bench.datasets import Info
from prunebench.bench.models import build
from prunebench.bench.protocol import Protocol

FIXED = 2**30  # bytes of a process on a card beside its tensors: the context and cuDNN's workspaces
COPIES = 4  # of the weights: gradient, momentum and average besides; and of a layer's output, with what led to it
PAUSE = 1.0  # seconds between two looks for room


@dataclass(frozen=True)
class Card:
    """A card that this process sees as `cuda:index`. `name`: the same for every process. `free`, `total`: bytes."""

    index: int
    name: str
    free: int
    total: int


def visible() -> list[Card]:
    """The cards that this process sees. What earlier steps left in this process's cache is given back first.

    The question opens a context on each card. NVML would not, but it numbers cards in another order than CUDA, and
    knows no slices of a card.
    """
    torch.cuda.empty_cache()  # a step in a pruner's own process could not use it
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(Card(index, str(facts.uuid), free, total))
    return found


def chosen(cards: Sequence[Card], running: Sequence[int], need: int) -> int | None:
    """The place in `cards` of the one for a step that needs so many bytes; None if it has to wait.

    `running`: how many steps each card has. What is left for a card's next step is what is free now, and no more than
    its steps will leave when each takes what it needs. Of the cards with room, the one with the fewest steps is taken,
    then the one with the most room. A step for which even an empty card has no room takes the roomiest empty card.
    """
    room = [min(card.free, card.total - need * steps) for card, steps in zip(cards, running, strict=True)]
    fitting = [place for place, left in enumerate(room) if left >= need]
    fitting = fitting or [place for place, steps in enumerate(running) if not steps]
    return min(fitting, key=lambda place: (running[place], -room[place]), default=None)


@contextmanager
def seated(
    device: str, need: Callable[[], int], *, cards: Callable[[], list[Card]] = visible, desk: Path | None = None
) -> Iterator[str]:
    """The device on which to run a step, `device` itself unless it leaves open which card; waits until there is room.

    Steps of all processes of this user on this machine count, each for as long as its process lives. `need`: the bytes
    that the step takes. `desk`: the folder in which the steps are counted.
    """
    if device not in ("auto", "cuda") or machine.device_named(device).type != "cuda":
        yield device
        return
    desk = desk or Path(tempfile.gettempdir()) / f"prunebench-cards-{os.getuid()}"
    desk.mkdir(mode=0o700, exist_ok=True)
    wanted = need()
    while (seat := _seat(desk, cards(), wanted)) is None:
        time.sleep(PAUSE)
    index, lock = seat
    try:
        yield f"cuda:{index}"
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _seat(desk: Path, cards: list[Card], need: int) -> tuple[int, FileLock] | None:
    """The number of a card with room, and the lock that counts this step there; None if there is none."""
    with FileLock(desk / "choosing"):  # one process at a time
        place = chosen(cards, [_steps(desk, card) for card in cards], need)
        if place is None:
            return None
        lock = FileLock(desk / f"{cards[place].name}.{uuid.uuid4().hex}")
        lock.acquire()
        return cards[place].index, lock


def _steps(desk: Path, card: Card) -> int:
    """How many steps hold a lock on the card; those of processes that died are cleared away."""
    count = 0
    for path in desk.glob(f"{card.name}.*"):
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            count += 1
            continue
        lock.release()
        with suppress(OSError):
            path.unlink()
    return count


def need(rules: Protocol, store: Store) -> int:
    """The bytes of a card that a step by these rules is expected to take at most: attacks take less than training."""
    return memory(rules.model, store.info(rules.data), rules.training.batch)


@cache
def memory(arch: str, info: Info, batch: int) -> int:
    """The bytes of a card that a training of `arch` on batches of that size is expected to take at most."""
    with torch.device("meta"):
        net = build(arch, info=info)
        values = [0]

        def count(_: nn.Module, inputs: object, output: torch.Tensor) -> None:
            values[0] += math.prod(output.shape[1:])

        for module in net.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        with torch.no_grad():
            net.eval()(torch.empty(1, *info.shape))
    weights = sum(parameter.numel() for parameter in net.parameters())
    return FIXED + COPIES * 4 * (weights + batch * values[0])
