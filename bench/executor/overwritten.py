"""Finds layers that overwrite what others still read: fused into kernels, they would not."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


def overwritten(graph: fx.GraphModule) -> fx.Node | None:
    """A node that a layer overwrites although another node reads it."""
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = str(getattr(node.target, "__name__", node.target))
        over = getattr(module, "inplace", False) or node.target is operator.iadd or name.endswith("_")
        if node.target is F.relu:
            over = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1])
        if over and any(len(source.users) > 1 for source in _names(graph, node.args[0])):
            return node
    return None


def _names(graph: fx.GraphModule, node: Any) -> list[fx.Node]:
    """A node and the nodes that it is an alias of."""
    found = []
    while isinstance(node, fx.Node):
        found.append(node)
        alias = node.op == "call_module" and isinstance(
            graph.get_submodule(str(node.target)), nn.Identity | nn.Flatten | nn.Dropout | nn.Dropout2d
        )
        if not alias and node.target not in (torch.flatten, "flatten", "view", "reshape"):
            break
        node = node.args[0]
    return found
