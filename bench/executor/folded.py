"""A segment of a net that runs dense on torch, with folded norms, channels last, ReLU and sums in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from prunebench.bench.executor.layers import Conv, Segment

_LAST = torch.channels_last


class Folded:
    """A callable from the values of `inputs` to those of `outputs`, each a tuple of (n, ...) float32 on the CPU."""

    def __init__(self, segment: Segment) -> None:
        self.inputs: list[fx.Node] = list(segment.inputs)
        self.outputs: list[fx.Node] = list(segment.outputs)
        self._segment = segment
        self._read: dict[int, tuple[Tensor, Tensor]] = {}  # weights and biases by layer
        self.refresh()

    def refresh(self) -> bool:
        """Read the weights again; always True, since no weight is left out."""
        for number, layer in enumerate(self._segment.layers):
            if isinstance(layer, Conv):
                weight, bias = layer.weights.dense()
                weight = _flat(weight).clone() if self._whole(layer) else weight.clone(memory_format=_LAST)
                self._read[number] = weight, bias
        return True

    def _whole(self, layer: Conv) -> bool:
        """Whether the layer's one output pixel reads the whole image, as in a linear layer."""
        rows_cols = self._segment.shapes[layer.source][1:]
        return layer.groups == 1 and layer.padding == (0, 0) and layer.weights.shape[2:] == rows_cols

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs, by torch's own operators."""
        segment, known = self._segment, dict[int, Tensor]()
        for number, value in zip(segment.inputs.values(), values, strict=True):
            value = value.view(len(value), *segment.shapes[number])
            if (affine := segment.normalise.get(number)) is not None:
                mean, std = (torch.from_numpy(x).view(-1, 1, 1) for x in affine)
                value = (value - mean) / std
            known[number] = value.contiguous(memory_format=_LAST)
        for number, layer in enumerate(segment.layers):
            source = known[layer.source]
            if not isinstance(layer, Conv):
                known[layer.result] = F.max_pool2d(source, layer.window, layer.stride)
                continue
            weight, bias = self._read[number]
            if self._whole(layer):
                made = F.linear(_flat(source), weight, bias).view(len(source), -1, 1, 1)
            else:
                made = F.conv2d(source, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            made = made if layer.add is None else made.add_(known[layer.add])
            known[layer.result] = made.relu_() if layer.relu else made
        return tuple(
            known[number].reshape(len(values[0]), *node.meta["probed"].shape[1:])
            for node, number in segment.outputs.items()
        )


def _flat(values: Tensor) -> Tensor:
    """(n, c, h, w) as (n, h * w * c), the memory order with channels last."""
    return values.permute(0, 2, 3, 1).flatten(1)
