"""Reads layers that the kernels support from a net's traced graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunebench.bench.executor.layers import Conv, MaxPool, Segment, Shape
from prunebench.bench.executor.packing import Pair
from prunebench.bench.executor.weights import Fixed, Pattern, Weights
from prunebench.bench.models import Normalise

PROBE = 2  # images that show the shapes of the values


class Probe(fx.Interpreter):
    """Runs a graph and records the shape and dtype of each node's tensor.

    torch's own `ShapeProp` also records strides and storage, which takes two seconds to import an algebra system.
    """

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; if it is a tensor, its shape and dtype are recorded."""
        value = super().run_node(n)
        n.meta["probed"] = value.to("meta") if isinstance(value, Tensor) else None
        return value


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of one image's value at `node`, None unless it is one float32 tensor with one row per image.

    A `Probe` must have run `PROBE` images through the graph.
    """
    value: Tensor | None = node.meta.get("probed")
    return None if value is None or value.dtype != torch.float32 or value.shape[:1] != (PROBE,) else value.shape[1:]


class Reader:
    """Reads nodes into a segment, one by one, as long as it supports them."""

    def __init__(self, graph: fx.GraphModule, pattern: Pattern) -> None:
        self.graph, self.pattern = graph, pattern
        self.segment = Segment()
        self.values: dict[fx.Node, int] = {}  # of this segment

    def nodes(self) -> list[fx.Node]:
        """The nodes read since the last cut, in order."""
        return [node for node in self.values if node not in self.segment.inputs]

    def cut(self) -> Segment:
        """Return the segment read so far and begin the next."""
        done, inside = self.segment, self.values
        for node, value in inside.items():
            if node not in done.inputs and any(user not in inside for user in node.users):
                done.outputs[node] = value
        self.segment, self.values = Segment(), {}
        return done

    def read(self, node: fx.Node) -> bool:
        """Whether the kernels support the layer `node`, which is then added to the segment."""
        shape = shape_of(node)
        sources = [shape_of(source) for source in node.all_input_nodes]
        if shape is None or None in sources or not all(len(s) in (1, 3) for s in (shape, *sources) if s is not None):
            return False
        if node.op == "call_module":
            return self._module(node, self.graph.get_submodule(str(node.target)))
        function = str(node.target) if node.op == "call_method" else node.target
        first, second = (*node.args, None, None)[:2]
        if function in (operator.add, operator.iadd, torch.add, "add", "add_"):
            alike = len(set(sources)) == 1 and not node.kwargs
            return alike and self._sum(node, first, second)
        if function in (F.relu, torch.relu, "relu", "relu_") and len(sources) == 1:
            return self._relu(node, first)
        if function in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs:
            return self._same(node, first)
        return False

    def _module(self, node: fx.Node, module: Any) -> bool:
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            return False
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        source = node.args[0]
        kind, before, after = type(module), _three(shape_of(source)), _three(shape_of(node))
        if kind is Normalise:
            return self._normalise(node, source, module)
        if kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
            return self._same(node, source)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return self._same(node, source)
        if kind is nn.ReLU:
            return self._relu(node, source)
        if kind is nn.BatchNorm2d and module.running_mean is not None:
            return self._norm(node, source, module)
        if kind is nn.Linear and len(shape_of(source) or ()) == 1:
            shape = module.out_features, *self.segment.shapes[self._value(source)]
            return self._conv(node, source, self._weights(node, module, shape), stride=shape[2:])
        if kind is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return self._conv(
                node,
                source,
                self._weights(node, module, tuple(module.weight.shape)),
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
            )
        if kind in (nn.MaxPool2d, nn.AvgPool2d):
            window = _pair(module.kernel_size)
            stride = _pair(module.stride)
            plain = _pair(module.padding) == (0, 0) and not module.ceil_mode and window[0] * window[1] < 128
            if kind is nn.MaxPool2d:
                plain &= _pair(module.dilation) == (1, 1) and not module.return_indices
                return plain and self._max(node, source, window, stride)
            return plain and module.divisor_override is None and self._average(node, source, window, stride)
        if kind is nn.AdaptiveAvgPool2d and not (before[1] % after[1] or before[2] % after[2]):
            window = before[1] // after[1], before[2] // after[2]
            return self._average(node, source, window, window)
        return False

    def _value(self, node: fx.Node) -> int:
        """The number of a node's value; a value from outside the segment becomes an input."""
        if node not in self.values:
            self.values[node] = self._new(_three(shape_of(node)))
            self.segment.inputs[node] = self.values[node]
        return self.values[node]

    def _new(self, shape: Shape) -> int:
        number = len(self.segment.shapes)
        self.segment.shapes[number] = shape
        return number

    def _uses(self, value: int) -> int:
        """The number of nodes that read a value, under any alias."""
        names = [node for node, known in self.values.items() if known == value]
        return sum(user not in names for node in names for user in node.users)

    def _last(self, node: object) -> Conv | None:
        """The convolution behind a value that only one node reads, so that the next layer may be fused into it."""
        if not isinstance(node, fx.Node) or node not in self.values or self._uses(self.values[node]) != 1:
            return None
        value = self.values[node]
        return next((x for x in self.segment.layers if isinstance(x, Conv) and x.result == value), None)

    def _same(self, node: fx.Node, source: object) -> bool:
        if not isinstance(source, fx.Node):
            return False
        self.values[node] = self._value(source)
        return True

    def _normalise(self, node: fx.Node, source: fx.Node, module: nn.Module) -> bool:
        if source in self.values or len(source.users) != 1:
            return False
        value = self._value(source)
        shape = self.segment.shapes[value]
        mean, std = (np.broadcast_to(x.flatten().cpu().numpy(), shape[:1]).astype(np.float32) for x in module.buffers())
        self.segment.normalise[value] = mean, std
        self.values[node] = value
        return True

    def _weights(self, node: fx.Node, module: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Weights:
        kept = self.pattern.of(f"{node.target}.weight", module.weight.detach()).flatten().nonzero().squeeze(1)
        outputs, inputs, rows, cols = shape
        return Weights(module, (outputs, inputs, rows, cols), kept)

    def _conv(
        self,
        node: fx.Node,
        source: fx.Node,
        weights: Weights,
        *,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> bool:
        layer = Conv(
            self._value(source),
            self._new(_three(shape_of(node))),
            weights,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
        )
        self.segment.layers.append(layer)
        self.values[node] = layer.result
        return True

    def _each(self, node: fx.Node, source: fx.Node, window: Pair = (1, 1), stride: Pair = (1, 1)) -> Conv:
        """A convolution that averages each `window` within its channel."""
        shape = (_three(shape_of(source))[0], 1, *window)
        weight = torch.full(shape, 1 / (window[0] * window[1]))
        self._conv(
            node, source, Weights(Fixed(weight), shape, torch.arange(weight.numel())), stride=stride, groups=shape[0]
        )
        layer = self.segment.layers[-1]
        assert isinstance(layer, Conv)
        return layer

    def _norm(self, node: fx.Node, source: fx.Node, module: nn.BatchNorm2d) -> bool:
        layer = self._last(source)
        if layer is None or layer.relu or layer.add is not None:
            layer = self._each(node, source)
        layer.weights.norms.append(module)
        self.values[node] = layer.result
        return True

    def _relu(self, node: fx.Node, source: object) -> bool:
        if not isinstance(source, fx.Node):
            return False
        layer = self._last(source) or self._each(node, source)
        layer.relu = True
        self.values[node] = layer.result
        return True

    def _sum(self, node: fx.Node, first: object, second: object) -> bool:
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
            return False
        values = self._value(first), self._value(second)
        if self.segment.shapes[values[0]] != self.segment.shapes[values[1]]:
            return False
        made = {layer.result: number for number, layer in enumerate(self.segment.layers)}
        later, earlier = (first, second) if made.get(values[0], -1) >= made.get(values[1], -1) else (second, first)
        layer = self._last(later)
        if layer is None or layer.relu or layer.add is not None or values[0] == values[1]:
            layer = self._each(node, later)
        layer.add = self._value(earlier)
        self.values[node] = layer.result
        return True

    def _average(self, node: fx.Node, source: fx.Node, window: Pair, stride: Pair) -> bool:
        self._each(node, source, window, stride)
        return True

    def _max(self, node: fx.Node, source: fx.Node, window: Pair, stride: Pair) -> bool:
        layer = MaxPool(self._value(source), self._new(_three(shape_of(node))), window, stride)
        self.segment.layers.append(layer)
        self.values[node] = layer.result
        return True


def _three(shape: tuple[int, ...] | None) -> Shape:
    """(channels, rows, cols) of a value; a vector has one pixel."""
    if shape is None or len(shape) not in (1, 3):
        raise ValueError(f"no image and no vector: {shape}")
    return shape if len(shape) == 3 else (shape[0], 1, 1)


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
