"""A net compiled for training on a card: fused kernels replayed as CUDA graphs, one graph per use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunebench.bench.attacks.base import Model

_SAY = logging.getLogger("prunebench.compiled")
TRIES = 3  # a CUDA graph is warmed up, recorded, and only then replayed
AGREE = 0.01, 0.2  # the relative difference in norm allowed for gradients: in float32, and with bfloat16 layers


def captured(
    net: nn.Module, images: Tensor, autocast: torch.autocast | None = None, *, backend: str = "inductor"
) -> Model | None:
    """A faster equivalent of `net`, sharing its weights, for batches like `images`, float32 (n, c, h, w).

    It is first compared with the net itself on `images`, in training and under attack. Returns None and logs a
    sentence if it cannot be compiled or disagrees, and None for a net whose weights are computed from others (scores).
    The net, its batch-norm statistics and its gradients are unchanged.
    """
    if any(parametrize.is_parametrized(module) for module in net.modules()):
        return None
    graphs = backend == "inductor" and images.device.type == "cuda"
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if graphs else None
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    mode = net.training
    try:
        with warnings.catch_warnings(), _limits(), autocast or nullcontext():
            warnings.simplefilter("ignore")  # the compiler's own
            compiled: Model = torch.compile(net, dynamic=False, backend=backend, options=options)
            for use in (_trained, _attacked):
                expected = use(net, net, images)
                for _ in range(TRIES):
                    found = use(net, compiled, images)
                distance = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
                if not distance <= AGREE[autocast is not None]:
                    _SAY.warning(
                        "Training continues uncompiled: the compiled net's gradients are off by %.2g.", distance
                    )
                    return None
    except Exception as error:  # noqa: BLE001  # whatever a compiler, a driver or a card may raise
        reason = str(error).partition("\n")[0]
        _SAY.warning("Training continues uncompiled: %s (%s).", type(error).__name__, reason)
        return None
    finally:
        net.train(mode)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                tensor.copy_(before[name])
    return compiled


def _limits() -> AbstractContextManager[Any]:
    """Raise dynamo's limits: nets of one class share code, and dynamo silently gives up after a few compilations."""
    from torch._dynamo import config  # takes seconds to import

    return config.patch(recompile_limit=1024, accumulated_recompile_limit=1024, fail_on_recompile_limit_hit=True)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Disable the parameters' gradients, so that a compiled attack does not compute them as well."""
    free = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


def _trained(net: nn.Module, model: Model, images: Tensor) -> Tensor:
    """The gradient of the weights in training mode, flattened."""
    net.train()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return _row(torch.autograd.grad(_loss(model, images), parameters))


def _attacked(net: nn.Module, model: Model, images: Tensor) -> Tensor:
    """The gradient of the images in eval mode, flattened, after a first forward that has no gradient."""
    net.eval()
    with frozen(net):
        model(images)
        at = images.detach().clone().requires_grad_()
        return _row(torch.autograd.grad(_loss(model, at), [at]))


def _loss(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return model(images).float().square().sum()


def _row(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors]).clone()
