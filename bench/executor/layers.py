"""The layers of a net as the operators see them: norms folded, ReLU and sums fused."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import fx

from prunebench.bench.executor.packing import Pair
from prunebench.bench.executor.weights import Weights

Shape = tuple[int, int, int]


@dataclass
class Conv:
    """A convolution, then an optional sum, then an optional ReLU.

    Linear layers, norms, averages and copies are convolutions too.
    """

    source: int
    result: int
    weights: Weights
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    add: int | None = None
    relu: bool = False


@dataclass
class MaxPool:
    """The maximum of each window."""

    source: int
    result: int
    window: Pair
    stride: Pair


@dataclass
class Segment:
    """Layers between numbered values; `shapes`: (channels, rows, cols) of each value.

    `inputs`, `outputs`: nodes of the graph, with their values. `normalise`: mean and spread with which an input is
    normalised when it is read.
    """

    inputs: dict[fx.Node, int] = field(default_factory=dict)
    outputs: dict[fx.Node, int] = field(default_factory=dict)
    layers: list[Conv | MaxPool] = field(default_factory=list)
    shapes: dict[int, Shape] = field(default_factory=dict)
    normalise: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
