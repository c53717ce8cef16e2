"""A whole training step as one CUDA graph: attack, loss, gradients, descent and average in a single launch.

A replay starts the kernels of the recorded step again, on the same addresses and with the same arguments. What differs
from step to step therefore lies in tensors: images, labels, the learning rate, the average's share. Random numbers come
from a generator that the graph knows, whose seed and offset are read at each replay (torch's notes on CUDA semantics,
"CUDA Graphs"). So a replayed step draws the same numbers and computes the same as the step itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol as Interface

import torch
from torch import Tensor

from prunebench.bench.lab.schemes import Scheme
from prunebench.bench.lab.trainer import Trainer

_SAY = logging.getLogger("prunebench.graphed")
WARM = 3  # steps before the recording: the first makes the momentum, and libraries choose their kernels
LARGEST = 2**21  # weights of nets whose steps are replayed: kernels of larger ones take longer than their launches


class Graph(Interface):
    """What a step is recorded in."""

    def beside(self) -> AbstractContextManager[None]:
        """Inside, work runs where the recording will, as its warm-up."""

    def record(self, work: Callable[[], Tensor], noise: torch.Generator) -> Tensor:
        """Record `work`, which draws from `noise` and runs only when it is replayed; returns what holds its result."""

    def replay(self) -> None:
        """Do the recorded work."""


class CardGraph:
    """A CUDA graph, warmed up and recorded on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph, self.stream = device, torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the graph's stream, after everything before it and before everything behind it."""
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            yield
        present.wait_stream(self.stream)

    def record(self, work: Callable[[], Tensor], noise: torch.Generator) -> Tensor:
        """Record `work`; if that fails, the generators and the current stream are as before."""
        present = torch.cuda.current_stream(self.device)
        self.graph.register_generator_state(noise)
        try:
            with torch.cuda.stream(present), torch.cuda.graph(self.graph, stream=self.stream):
                return work()
        except Exception:
            for generator in (noise, torch.cuda.default_generators[present.device.index]):
                generator.graphsafe_set_state(generator.clone_state())  # a state that no recording claims
            raise

    def replay(self) -> None:
        """Do the recorded work on the current stream."""
        self.graph.replay()


class Graphed:
    """`trainer.step`, recorded in `graph` after WARM steps and replayed from then on; `replays` counts.

    The steps before, batches of another shape and steps with another generator run as they are. So do all steps, after
    a logged sentence, if the recording fails.
    """

    def __init__(self, trainer: Trainer, graph: Graph) -> None:
        self.trainer, self.graph, self.replays = trainer, graph, 0
        self._ready = 0  # steps on the given batch and generator
        self._fails = False
        self._given: tuple[Tensor, Tensor] | None = None  # the images and labels that the graph reads
        self._noise: torch.Generator | None = None
        self._loss: Tensor | None = None
        device = next(trainer.model.parameters()).device
        trainer.rate, trainer.pull = torch.zeros((), device=device), torch.zeros((), device=device)

    def __call__(self, images: Tensor, labels: Tensor, progress: float, noise: torch.Generator) -> Tensor:
        """As `Trainer.step`."""
        if self._given is None:
            self._given, self._noise = (torch.empty_like(images), torch.empty_like(labels)), noise
        fits = images.shape == self._given[0].shape and noise is self._noise
        if self._fails or not fits:
            return self.trainer.step(images, labels, progress, noise)
        for held, new in zip(self._given, (images, labels), strict=True):
            held.copy_(new)
        self.trainer.turn(progress)
        if self._ready < WARM:
            self._ready += 1
            with self.graph.beside():
                return self.trainer.work(*self._given, noise)
        if self._loss is not None:
            self.trainer.steps += 1
        elif (loss := self._recorded(noise)) is not None:
            self._loss = loss
        else:
            return self.trainer.work(*self._given, noise)
        self.graph.replay()
        self.replays += 1
        return self._loss.clone()

    def _recorded(self, noise: torch.Generator) -> Tensor | None:
        """The tensor that holds a replay's loss; None, and a sentence, if the step cannot be recorded."""
        trainer, given, steps = self.trainer, self._given, self.trainer.steps
        assert given is not None
        try:
            return self.graph.record(lambda: trainer.work(*given, noise), noise)
        except Exception as error:  # noqa: BLE001  # whatever a driver or a library may raise
            reason = str(error).partition("\n")[0]
            _SAY.warning("Training continues without a graph of its steps: %s (%s).", type(error).__name__, reason)
            trainer.steps, self._fails = steps, True
            return None


def pays(trainer: Trainer, device: torch.device) -> bool:
    """Whether steps are replayed by default: on a card, of a small net that no scheme attends to.

    A scheme's moments are code that a replay would leave out.
    """
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    return device.type == "cuda" and weights <= LARGEST and type(trainer.scheme) is Scheme
