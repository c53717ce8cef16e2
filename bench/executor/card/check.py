"""Whether what runs on a card gives a net's own answers: looked at once for each shape of images, before it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunebench.bench.executor.surrogate import Replaced, Surrogate

IMAGES = 5
# Errors relative to float64: the largest of a logit, and the median image's of the gradient. Float32 stays below 1e-5,
# TF32 reaches 1e-3. A ReLU that hangs on the last bit turns the gradient of an image now and then, not of most.
LOGITS, GRADIENT = 1e-4, 1e-3


def disagreement(
    sparse: Callable[[Tensor], Tensor], net: nn.Module, shape: tuple[int, ...], device: torch.device, leak: float
) -> str | None:
    """How `sparse` differs from `net` on a few images of `shape` (c, h, w), None where logits and gradients agree.

    `sparse` may raise anything, and the error is the answer: a kernel may not even compile.
    """
    images = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with Replaced(Surrogate(leak)):
            logits, gradient = _both(sparse, images)
            exact, slope = _both(copy.deepcopy(net).double(), images.double())
    except Exception as error:  # noqa: BLE001  # compilers and drivers raise errors of their own
        return f"they cannot be run ({type(error).__name__}: {str(error)[:200]})"
    off = float((logits - exact).abs().max() / exact.abs().max().clamp(min=1e-30))
    turned = (gradient - slope).flatten(1).norm(dim=1) / slope.flatten(1).norm(dim=1).clamp(min=1e-30)
    if not off <= LOGITS:
        return f"their logits are off by {off:.2g}, relative to the largest"
    if not float(turned.median()) <= GRADIENT:
        return f"their gradients are off by {float(turned.median()):.2g} in length"
    return None


def _both(net: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of their weighted sum, in float64."""
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = net(images)
        weights = torch.linspace(-1, 1, logits[0].numel(), device=logits.device, dtype=logits.dtype)
        (gradient,) = torch.autograd.grad((logits.flatten(1) * weights).sum(), images)
    return logits.detach().double(), gradient.double()
