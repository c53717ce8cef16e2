"""A net as a training's attack sees it, for gradients of images alone: eval mode, batch norm folded into its layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from prunebench.bench.channels import Tracer

Layer = nn.Conv2d | nn.Linear


class Still(nn.Module):
    """The net's logits in eval mode, from copies of its weights in `dtype` that no gradient reaches.

    `fill`: convolutions of fewer channels, such as the first, get as many from channels of zeros, as tensor cores want
    multiples of 8. `refresh` reads the weights again, into tensors that stay where they are, as a CUDA graph needs.
    Raises ValueError for a net with a batch norm that follows no convolution of its own.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, fill: int = 1) -> None:
        super().__init__()
        graph = Tracer().trace(net)
        own: dict[str, nn.Module] = dict(net.named_modules())
        self._read: list[tuple[Layer, Layer, nn.BatchNorm2d | None]] = []  # copy, layer, the norm behind it
        for node in list(graph.nodes):
            layer = own.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, Layer):
                norm = _norm_behind(node, own)
                inputs = _filled(node, layer, fill)
                bias = norm is not None or layer.bias is not None
                own[str(node.target)] = held = _copy(layer, dtype, inputs, bias=bias)
                self._read.append((held, layer, norm))
        for node in graph.nodes:
            if node.op == "call_module" and isinstance(own[str(node.target)], nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"the batch norm {node.target} follows no convolution of its own")
        self.graph = fx.GraphModule(own, graph).eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the net's weights, biases and batch norms."""
        for held, layer, norm in self._read:
            weight, bias = layer.weight, layer.bias
            if norm is not None:
                assert norm.running_mean is not None and norm.running_var is not None
                statistics = norm.running_mean, norm.running_var, norm.eps
                weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, norm.weight, norm.bias)
            held.weight[:, : weight.shape[1]].copy_(weight)
            if held.bias is not None and bias is not None:
                held.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """`images`: (n, c, h, w)."""
        logits: Tensor = self.graph(images)
        return logits


def _norm_behind(node: fx.Node, own: dict[str, nn.Module]) -> nn.BatchNorm2d | None:
    """The batch norm that alone reads the layer at `node`, taken out of the graph; None if there is none."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is None or user.op != "call_module" or not isinstance(own[str(node.target)], nn.Conv2d):
        return None
    norm = own[str(user.target)]
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return None
    user.replace_all_uses_with(node)
    node.graph.erase_node(user)
    return norm


def _filled(node: fx.Node, layer: Layer, fill: int) -> int:
    """The channels or features that the layer at `node` reads once channels of zeros are added in the graph."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if layer.groups > 1 or layer.in_channels >= fill:
        return layer.in_channels
    with node.graph.inserting_before(node):
        node.args = (node.graph.call_function(F.pad, (node.args[0], (0, 0, 0, 0, 0, fill - layer.in_channels))),)
    return fill


def _copy(layer: Layer, dtype: torch.dtype, inputs: int, *, bias: bool) -> Layer:
    """A layer like `layer` with weights of its own for so many `inputs`, zero, in `dtype` and the same layout."""
    device = layer.weight.device
    held: Layer
    if isinstance(layer, nn.Linear):
        held = nn.Linear(inputs, layer.out_features, bias=bias, device=device, dtype=dtype)
    else:
        held = nn.Conv2d(
            inputs,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            bias=bias,
            padding_mode=layer.padding_mode,
            device=device,
            dtype=dtype,
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.zeros_(held.weight)
    return held.requires_grad_(False)
