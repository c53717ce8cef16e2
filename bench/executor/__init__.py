"""Runs a sparse net at the cost of its remaining weights, in exact float32.

`fast(net)` gives the same logits and input gradients as `net`, faster; with a `leak`, the same logits, and gradients
that leak through units which are off. Weights are read at the first images of each shape, and again by `refresh`, which
is cheap as long as the same weights are zero.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunebench.bench.channels import Tracer
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import card
from prunebench.bench.executor.compiled import Compiled, kernels
from prunebench.bench.executor.folded import Folded
from prunebench.bench.executor.layers import Segment
from prunebench.bench.executor.native import compiler, explain, identity, lacking, lowering
from prunebench.bench.executor.overwritten import overwritten
from prunebench.bench.executor.packing import GROUP
from prunebench.bench.executor.piece import SparsePiece
from prunebench.bench.executor.reader import PROBE, Probe, Reader, shape_of
from prunebench.bench.executor.surrogate import Replaced, Surrogate
from prunebench.bench.executor.weights import Pattern
from prunebench.bench.mask import Masks

__all__ = ["Fast", "compiler", "explain", "fast", "identity", "lacking"]

_SAY = logging.getLogger("prunebench.executor")

# DENSE_ABOVE: the share of a net's multiplications above which torch is assumed to be faster (AMD Zen 5, one thread:
# both take equally long at 0.7 for ResNet-18 and VGG-16). SMALL: the multiplications per image up to which it never is,
# since torch is slow on the narrow layers of small nets (dense, with gradient: 3.5 times as long for digits-cnn with
# 0.1 million, equally long for mnist-cnn with 10 million).
DENSE_ABOVE, SMALL = 0.65, 8e6
# The same share on a card, where all other nets run unchanged. No card has measured it: docs/card-executor.md.
CARD_DENSE_ABOVE = 0.35

Piece = SparsePiece | Folded | fx.Node  # on the kernels, on torch with folded norms, or an unchanged node


class Fast:
    """A net that runs sparse where that is faster; `said` holds what the kernels do not support, and why."""

    def __init__(self, net: nn.Module, *, always: bool = False, masks: Masks | None = None, leak: float = 0.0) -> None:
        _refuse_training(net.modules())
        self.net, self.leak, self._always, self._pattern = net, leak, always, Pattern(masks)
        self.said: list[str] = []
        self.pieces: dict[tuple[int, ...], list[Piece] | None] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of `images`, float32 (n, c, h, w) on the net's device.

        Other dtypes, other devices and empty batches go to the net itself.

        Raises PrunebenchError for a net in training mode and for images that the net does not accept.
        """
        _refuse_training([self.net])
        unusual = images.dtype != torch.float32 or images.device != self._device or images.shape[:1] == (0,)
        pieces = None if unusual else self._pieces_for(images.shape[1:])
        with Replaced(Surrogate(self.leak)) if self.leak else nullcontext():
            return self.net(images) if pieces is None else self._run(pieces, images)

    def leaking(self, leak: float) -> Fast:
        """The same net with this leak; see `fast`."""
        other = Fast(self.net, always=self._always, leak=leak)
        other._pattern = self._pattern
        return other

    def differs(self, shape: Sequence[int]) -> bool:
        """Whether images of this shape (c, h, w) run on kernels or folded norms rather than on the net itself."""
        return self._pieces_for(shape) is not None

    def bits(self, shape: Sequence[int]) -> str:
        """What besides torch decides the bits for images of this shape (c, h, w): kernels, folding, or "plain"."""
        pieces = self._pieces_for(shape)
        if pieces is None:
            return "plain"
        if any(isinstance(piece, SparsePiece) for piece in pieces):
            return card.identity() if self._on_card else identity()
        return f"folded, {lowering()}"

    def lanes(self, shape: Sequence[int]) -> int:
        """How many images of this shape (c, h, w) take as long as one; the bits of none depend on the others."""
        pieces = self._pieces_for(shape)
        return GROUP if pieces and all(isinstance(piece, Compiled) for piece in pieces) else 1

    def refresh(self) -> None:
        """Read the net's weights, biases and norms again; no call may be running meanwhile.

        If a weight outside the pattern is no longer zero, everything is split anew at the next images.
        """
        with self._lock:
            all_pieces = [piece for pieces in self.pieces.values() for piece in pieces or ()]
            if not all(piece.refresh() for piece in all_pieces if not isinstance(piece, fx.Node)):
                self.pieces.clear()

    def _say(self, sentence: str, level: int = logging.WARNING) -> None:
        if sentence not in self.said:
            self.said.append(sentence)
            _log_once(sentence, level)

    @cached_property
    def _device(self) -> torch.device:
        """Where the net's first tensor lies, the CPU for a net without any."""
        return next((each.device for each in (*self.net.parameters(), *self.net.buffers())), torch.device("cpu"))

    @property
    def _on_card(self) -> bool:
        return self._device.type != "cpu"

    @cached_property
    def _graph(self) -> fx.GraphModule | None:
        """The net as a graph, None if it runs unchanged; it is read, and kernels are built, at the first images."""
        if any(tensor.device != self._device for tensor in (*self.net.parameters(), *self.net.buffers())):
            self._say("The net runs dense: its tensors lie on several devices.", logging.INFO)
            return None
        if (why := card.lacking(self._device) if self._on_card else lacking()) is not None:
            self._say(f"The net runs dense: {why}")
            return None
        try:
            graph = Tracer().trace(self.net)
        except Exception as error:  # noqa: BLE001  # a foreign net's forward may raise anything when traced
            self._say(f"The net runs dense: its layers cannot be read ({type(error).__name__}: {error}).")
            return None
        module = fx.GraphModule(self.net, graph)
        if (node := overwritten(module)) is not None:
            self._say(f"The net runs dense: {node} is overwritten while other operations still read it.")
            return None
        return module

    @cached_property
    def _ends(self) -> tuple[fx.Node, fx.Node]:
        """The graph's nodes for images and logits."""
        assert self._graph is not None
        nodes = {node.op: node for node in self._graph.graph.nodes}
        return nodes["placeholder"], nodes["output"].args[0]

    def _pieces_for(self, shape: Sequence[int]) -> list[Piece] | None:
        shape = tuple(shape)
        with self._lock:
            if shape not in self.pieces:
                self.pieces[shape] = self._split(shape)
            return self.pieces[shape]

    def _split(self, shape: tuple[int, ...]) -> list[Piece] | None:
        """The pieces to run for images of this shape, None for the unchanged net."""
        if self._graph is None:
            return None
        probe = torch.zeros(PROBE, *shape, device=self._device)
        with torch.no_grad():
            _try(self.net, probe)
            Probe(self._graph).run(probe)
        sparse = self._always or self._pays(*multiplications(self._graph, self._pattern))
        if self._on_card and not sparse:
            return None
        reader, pieces = Reader(self._graph, self._pattern), list[Piece]()

        def cut() -> None:
            nodes, segment = reader.nodes(), reader.cut()
            if segment.layers:
                pieces.append(self._piece(segment) if sparse else Folded(segment))
            else:
                pieces.extend(nodes)

        for node in self._graph.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if reader.read(node):
                continue
            cut()
            if sparse and node.op != "get_attr":
                self._say(f"A part of the net runs dense: {_described(self._graph, node)}.")
            pieces.append(node)
        cut()
        if all(isinstance(piece, fx.Node) for piece in pieces):
            return None
        if self._on_card and (why := self._disagreement(pieces, shape)) is not None:
            self._say(f"The net runs dense: its sparse kernels were tried on the card, and {why}.")
            return None
        return pieces

    def _pays(self, left: int, whole: int) -> bool:
        """Whether `left` of `whole` multiplications per image take less time on the kernels than all do on torch."""
        if self._on_card:
            return left <= CARD_DENSE_ABOVE * whole
        return left <= DENSE_ABOVE * whole or whole <= SMALL

    def _piece(self, segment: Segment) -> SparsePiece:
        if not self._on_card:
            return Compiled(segment, kernels(), self.leak)
        from prunebench.bench.executor.card.run import OnCard  # imports Triton, which only a card needs

        return OnCard(segment, self.leak, device=self._device)

    def _disagreement(self, pieces: list[Piece], shape: tuple[int, ...]) -> str | None:
        from prunebench.bench.executor.card.check import disagreement

        return disagreement(lambda images: self._run(pieces, images), self.net, shape, self._device, self.leak)

    def _run(self, pieces: list[Piece], images: Tensor) -> Tensor:
        assert self._graph is not None
        first, last = self._ends
        interpreter = None
        env: dict[fx.Node, Any] = {first: images}
        for piece in pieces:
            if not isinstance(piece, fx.Node):
                found = piece(*(env[node] for node in piece.inputs))
                env |= zip(piece.outputs, found, strict=True)
            else:
                interpreter = interpreter or fx.Interpreter(self._graph, garbage_collect_values=False)
                interpreter.env = env
                env[piece] = interpreter.run_node(piece)
        return env[last]


def fast(net: nn.Module, *, always: bool = False, masks: Masks | None = None, leak: float = 0.0) -> Fast:
    """A callable with the outputs and input gradients of `net` (in eval mode, float32), faster if sparse.

    The net lies on the CPU or on a CUDA card. Images: float32 (n, c, h, w), on the same device. `always`: use the
    kernels for all layers they support, even where dense is faster. `masks`: by parameter, which weights may become
    nonzero (for unnamed parameters, all); without masks, those that are nonzero now. They alone decide what runs
    sparse. `leak`, in [0, 1]: the share of the gradient that passes a ReLU where it is off and, in max pooling, values
    that are not the maximum; logits are unaffected. Raises PrunebenchError for a net in training mode.
    """
    return Fast(net, always=always, masks=masks, leak=leak)


def multiplications(graph: fx.GraphModule, pattern: Pattern) -> tuple[int, int]:
    """Multiplications per image with the weights that `pattern` keeps, and with all; `graph` has been probed."""
    left = whole = 0
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Linear) and (shape := shape_of(node)) is not None:
            pixels = math.prod(shape[1:]) if isinstance(module, nn.Conv2d) else 1
            left += pixels * int(pattern.of(f"{node.target}.weight", module.weight).sum())
            whole += pixels * module.weight.numel()
    return left, whole


@cache
def _log_once(sentence: str, level: int) -> None:
    """Log a sentence once per process: a training makes a fast net per stage."""
    _SAY.log(level, "%s", sentence)


def _refuse_training(modules: Iterable[nn.Module]) -> None:
    if any(module.training for module in modules):
        raise PrunebenchError("fast() takes a net in eval mode, and this one is in training mode; call net.eval().")


def _try(net: nn.Module, images: Tensor) -> None:
    """Raise PrunebenchError for images that the net does not accept."""
    shape = tuple(images.shape[1:])
    if len(shape) not in (1, 3):
        raise PrunebenchError(
            f"fast() takes images (n, c, h, w) or (n, features), but each image given has the shape {shape}."
        )
    try:
        net(images)
    except Exception as error:
        raise PrunebenchError(f"The net does not take images of the shape {shape}: {error}") from error


def _described(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{type(graph.get_submodule(str(node.target))).__name__} ({node.target})"
    return str(getattr(node.target, "__name__", node.target))
