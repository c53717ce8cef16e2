"""The channels of a net: which layers make and read each of them, and the smaller net without those that none reads."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.models import Normalise

_EACH = (
    *(Normalise, nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)  # layers that keep channels apart
_SUMS = (operator.add, operator.iadd, torch.add)
_EACH_CALLED = (F.relu, torch.relu, torch.flatten, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, "relu", "flatten")


class Tracer(fx.Tracer):
    """Traces into modules made of layers, but not into layers."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether `module` is one node of the graph."""
        return isinstance(module, Normalise) or super().is_leaf_module(module, name)


@dataclass
class Group:
    """Channels that a net can lose only together, because layers add them up or pass them on.

    `size`: the number of channels. `makers`: the layers whose outputs they are. `readers`: the layers whose inputs they
    are; a linear layer behind a flattening reads a block of inputs per channel. `norms`: the batch norms between. A
    hidden group is neither the net's image nor its logits. All are names of modules.
    """

    size: int
    hidden: bool = True
    makers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)


def hidden_groups(net: nn.Module) -> list[Group]:
    """The groups of channels between the layers of `net`, in the order of the layers.

    Where two values are added, as in a residual net, their channels are one group. Raises PrunebenchError for a net
    with layers whose channels cannot be followed.
    """
    try:
        graph = Tracer().trace(net)
    except Exception as error:  # a foreign net's forward may raise anything when traced
        raise _lost(f"its forward pass ({type(error).__name__}: {error})") from error
    of: dict[fx.Node, Group] = {}
    made: dict[str, Group] = {}  # by layer; a layer that is called twice makes one group

    def merge(one: Group, other: Group) -> Group:
        if one is other:
            return one
        for name in ("makers", "readers", "norms"):
            getattr(one, name).extend(getattr(other, name))
        one.hidden &= other.hidden
        of.update({node: one for node, group in of.items() if group is other})
        made.update({name: one for name, group in made.items() if group is other})
        return one

    for node in graph.nodes:
        inputs = [of[source] for source in node.all_input_nodes]
        if node.op == "placeholder":
            of[node] = Group(0, hidden=False)
        elif node.op == "output":
            inputs[0].hidden = False
        elif node.op == "call_module" and len(inputs) == 1:
            of[node] = _through(net.get_submodule(str(node.target)), str(node.target), inputs[0], made)
        elif node.target in _SUMS and len(inputs) == 2 and not node.kwargs:
            of[node] = merge(*inputs)
        elif node.target in _EACH_CALLED and len(inputs) == 1:
            of[node] = inputs[0]
        else:
            raise _lost(f"the operation {getattr(node.target, '__name__', node.target)}")
    found = {id(group): group for group in made.values() if group.hidden}
    return list(found.values())


def _through(module: nn.Module, name: str, source: Group, made: dict[str, Group]) -> Group:
    """The group behind the layer `module` that reads `source`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise _lost(f"the grouped convolution {name}")
        if name not in source.readers:
            source.readers.append(name)
        return made.setdefault(name, Group(len(module.weight), makers=[name]))
    if isinstance(module, nn.BatchNorm2d):
        source.norms.append(name)
    elif not isinstance(module, _EACH):
        raise _lost(f"the layer {name} ({type(module).__name__})")
    return source


def _lost(what: str) -> PrunebenchError:
    return PrunebenchError(
        f"The channels of the net cannot be followed through {what}; use a net of convolutions, linear layers, batch "
        "norms, pooling, ReLU and sums, or the pattern unstructured."
    )


def read(net: nn.Module, group: Group) -> Tensor:
    """Which channels of `group` a nonzero weight reads, bool (size,)."""
    kept = torch.zeros(group.size, dtype=torch.bool)
    for name in group.readers:
        layer: Any = net.get_submodule(name)
        kept |= layer.weight.detach().cpu().transpose(0, 1).reshape(group.size, -1).ne(0).any(1)
    return kept


def shrunk(net: nn.Module) -> nn.Module:
    """A copy of `net` without the channels that no nonzero weight reads: the same function, in smaller dense layers.

    A removed channel takes along its filters, its entries in batch norms and biases, and the inputs of the next layers.
    Each group keeps one channel at least. Sums run in another order, so logits agree up to rounding. Raises
    PrunebenchError as `hidden_groups` does.
    """
    small, groups = copy.deepcopy(net), hidden_groups(net)
    removed = True
    while removed:  # without a channel, others may be unread
        removed = False
        for group in groups:
            kept = read(small, group)
            kept[0] |= not kept.any()
            if not kept.all():
                _remove(small, group, kept)
                removed = True
    return small


def _remove(net: nn.Module, group: Group, kept: Tensor) -> None:
    """Take the channels of `group` that are not `kept`, bool (size,), out of the layers of `net`."""
    for name in group.makers:
        layer: Any = net.get_submodule(name)
        _cut(layer, ("weight", "bias"), kept)
        setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", int(kept.sum()))
    for name in group.norms:
        norm: Any = net.get_submodule(name)
        _cut(norm, ("weight", "bias", "running_mean", "running_var"), kept)
        norm.num_features = int(kept.sum())
    for name in group.readers:
        layer = net.get_submodule(name)
        columns = kept.repeat_interleave(layer.weight.shape[1] // group.size)
        layer.weight = nn.Parameter(layer.weight.detach()[:, columns].clone(), layer.weight.requires_grad)
        setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", layer.weight.shape[1])
    group.size = int(kept.sum())


def _cut(module: nn.Module, names: tuple[str, ...], kept: Tensor) -> None:
    for name in names:
        tensor = getattr(module, name)
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(tensor.detach()[kept].clone(), tensor.requires_grad))
        elif tensor is not None:
            setattr(module, name, tensor[kept].clone())
