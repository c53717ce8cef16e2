"""A net compiled for training on a card: fused kernels replayed as CUDA graphs, made once per process and shape."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunebench.bench.attacks.base import Model
from prunebench.bench.lab.still import Still

_SAY = logging.getLogger("prunebench.compiled")
TRIES = 3  # a CUDA graph is warmed up, recorded, and only then replayed
THREADS = 4  # of inductor, at most: by default it starts one per core, up to 32, for each of the jobs side by side


@dataclass
class Captured:
    """A net with compiled functions of its weights, which stay where they are.

    `net`: holds the weights. `trained`: the logits of `net` in training mode. `attack`: those of `still`, the net as
    its attack sees it. `user`: returns whoever trains it at the time, as a weak reference does.
    """

    net: nn.Module
    trained: Model
    still: Still
    attack: Model
    user: Callable[[], object] = field(default=lambda: None)

    def attacked(self) -> Model:
        """The logits under attack, in eval mode, of the present weights."""
        self.still.refresh()
        return self.attack


_MADE: dict[object, Captured] = {}  # by everything that the compiled code depends on


def captured(
    net: nn.Module,
    images: Tensor,
    autocast: torch.autocast | None = None,
    *,
    clean: bool = False,
    user: object = None,
    graphs: bool = True,
    fill: int = 1,
    backend: str = "inductor",
) -> Captured | None:
    """A faster equivalent of `net` for batches like `images`, float32 (n, c, h, w), with weights equal to its own.

    What was compiled before in this process is used again: its net takes over the weights, and is not `net`. While
    its last `user` lives, another is compiled. New code is first compared with the net itself on `images`, in training
    and under attack. Returns None and logs a sentence if the net cannot be compiled or disagrees, and None for a net
    whose weights are computed from others (scores). `clean`: attacks also ask for logits without a gradient. `graphs`:
    on a card, replay each function as a CUDA graph; not inside a graph of the whole step. `fill`: as for `Still`. The
    weights of `net`, its batch-norm statistics and its gradients are unchanged.
    """
    if any(parametrize.is_parametrized(module) for module in net.modules()):
        return None
    where = images.shape, images.stride(), images.device
    key = (_structure(net), *where, _dtype(autocast), clean, graphs, fill, backend)
    made = _MADE.get(key)
    if made is None or made.user() is not None:
        if (made := _compiled(net, images, autocast, clean=clean, graphs=graphs, fill=fill, backend=backend)) is None:
            return None
        _MADE[key] = made
    elif made.net is not net:
        made.net.load_state_dict(net.state_dict())
        made.net.zero_grad(set_to_none=True)
        made.net.train(net.training)
    if user is not None:
        made.user = weakref.ref(user)
    return made


def _compiled(
    net: nn.Module,
    images: Tensor,
    autocast: torch.autocast | None,
    *,
    clean: bool,
    graphs: bool,
    fill: int,
    backend: str,
) -> Captured | None:
    graphs = graphs and backend == "inductor" and images.device.type == "cuda"
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if graphs else None
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    mode = net.training
    try:
        with warnings.catch_warnings(), _limits():
            warnings.simplefilter("ignore")  # the compiler's own
            still = Still(net, _dtype(autocast), fill)
            trained, attack = (
                torch.compile(each, dynamic=False, backend=backend, options=options) for each in (net, still)
            )
            made = Captured(net, trained, still, attack)
            for use in (_trained, _attacked, *([_looked_at] if clean else [])):
                if (off := _off(use, made, images, autocast)) is not None:
                    _SAY.warning("Training continues uncompiled: the compiled net's gradients are off by %.2g.", off)
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
    return made


@contextmanager
def tuned() -> Iterator[None]:
    """Let cuDNN time its engines for every shape it meets: the few shapes of a training come again and again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


Use = Callable[[nn.Module, Model, Tensor], Tensor]  # of a net, through a function of its logits, on images


def _off(use: Use, made: Captured, images: Tensor, autocast: torch.autocast | None) -> float | None:
    """How far the compiled functions are from the net, if too far; both are compared with the net in float32.

    With bfloat16 layers the net itself is up to a fifth away from float32, and as far from fused kernels.
    """
    exact = use(made.net, made.net, images)
    with autocast or nullcontext():
        eager = use(made.net, made.net, images)
        quick = made.trained if use is _trained else made.attack
        for _ in range(TRIES):
            made.still.refresh()
            found = use(made.net, quick, images)
    return None if agree(found, eager, exact) else distance(found, exact)


def distance(found: Tensor, exact: Tensor) -> float:
    """The relative difference in norm."""
    return float((found - exact).norm() / exact.norm().clamp_min(1e-30))


def agree(found: Tensor, eager: Tensor, exact: Tensor) -> bool:
    """Whether what compiled code `found` is about as near to the `exact` gradients as torch's own, `eager`."""
    return distance(found, exact) <= 1.5 * distance(eager, exact) + 0.02


def _structure(net: nn.Module) -> tuple[object, ...]:
    """Everything about a net that compiled code depends on, except for its weights."""
    kinds = tuple(type(module).__qualname__ for module in net.modules())
    wanted = tuple(parameter.requires_grad for parameter in net.parameters())
    tensors = tuple((name, t.shape, t.stride(), t.dtype) for name, t in net.state_dict().items())
    return repr(net), kinds, wanted, tensors


def _dtype(autocast: torch.autocast | None) -> torch.dtype:
    return torch.float32 if autocast is None else autocast.fast_dtype


def _limits() -> AbstractContextManager[Any]:
    """Raise dynamo's limits: nets of one class share code, and dynamo silently gives up after a few compilations.

    It also limits inductor's threads, unless the environment names their number. Inductor reads the environment when it
    is imported, which torchvision may have done before.
    """
    threads = os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(THREADS, os.cpu_count() or 1)))
    from torch._dynamo import config  # takes seconds to import
    from torch._inductor import config as inductor

    inductor.compile_threads = int(threads)

    return config.patch(recompile_limit=1024, accumulated_recompile_limit=1024, fail_on_recompile_limit_hit=True)


def _trained(net: nn.Module, model: Model, images: Tensor) -> Tensor:
    """The gradient of the weights in training mode, flattened."""
    net.train()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return _row(torch.autograd.grad(_loss(model, images), parameters))


def _attacked(net: nn.Module, model: Model, images: Tensor) -> Tensor:
    """The gradient of the images in eval mode, flattened."""
    net.eval()
    at = images.detach().clone().requires_grad_()
    return _row(torch.autograd.grad(_loss(model, at), [at]))


def _looked_at(net: nn.Module, model: Model, images: Tensor) -> Tensor:
    """The logits in eval mode, flattened."""
    net.eval()
    return _row((model(images),))


def _loss(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return model(images).float().square().sum()


def _row(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors]).clone()
