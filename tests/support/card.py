"""A card that is not there: tensors that say they are on `cuda:0`, with the numbers of the processor.

An operation on tensors of two devices raises, as on a card; so do a generator of the wrong device and a conversion to
numpy. What happens at once here may happen later on a card, and nothing here has a card's rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

CARD = torch.device("cuda", 0)
HOST = torch.device("cpu")
# What a card takes from the processor: a copy's source, and the indices of an advanced indexing.
_MIXED = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "set_"}


class CardTensor(Tensor):
    """A tensor on the card."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CardTensor{tuple(self.shape)}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_flatten((args, kwargs or {}))[0] if isinstance(each, Tensor)]
        name = func.overloadpacket.__name__
        on_card = name not in _MIXED or isinstance(given[0], CardTensor)
        # What a backward pass or torch.func.jvp makes anew is plain here, and on the right device there.
        derived = torch._C._current_graph_task_id() >= 0 or eager_transforms.JVP_NESTING
        if not derived and name != "copy_":
            if name in _MIXED and not on_card:
                raise RuntimeError(f"{name}: found indices on {CARD} of a tensor on cpu")
            if name not in _MIXED and any(each.dim() and not isinstance(each, CardTensor) for each in given):
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cpu and {CARD}")
        with torch._C._DisableTorchDispatch():
            found = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, _on_card, found) if on_card else found


def _on_card(tensor: Tensor) -> Tensor:
    """The same numbers, on the card."""
    if isinstance(tensor, CardTensor):
        return tensor
    return Tensor._make_subclass(CardTensor, tensor, tensor.requires_grad)


class _Move(torch.autograd.Function):
    """A copy on the other device, or on the same."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_card: bool) -> Tensor:  # type: ignore[override]
        ctx.from_card = isinstance(tensor, CardTensor)
        with torch._C._DisableTorchDispatch():
            plain = torch.empty_like(tensor, device="cpu").as_subclass(Tensor)
            plain.copy_(tensor)
        return _on_card(plain) if to_card else plain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return moved(gradient, to_card=ctx.from_card), None


def moved(tensor: Tensor, *, to_card: bool) -> Tensor:
    """`tensor` itself if it is there already, else a copy."""
    if isinstance(tensor, CardTensor) == to_card:
        return tensor
    found: Tensor = _Move.apply(tensor, to_card)
    return found


class _Calls(TorchFunctionMode):
    """Sees to it that whoever asks for the card gets it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__") and isinstance(args[0], CardTensor):
            raise TypeError(f"can't convert {CARD} device type tensor to numpy.")
        if name == "cpu":
            return moved(args[0], to_card=False)
        if name == "tolist":
            return moved(args[0], to_card=False).tolist()
        if name == "to":
            args, kwargs, to_card = _destination(args, kwargs)
            return moved(func(*args, **kwargs), to_card=isinstance(args[0], CardTensor) if to_card is None else to_card)
        generator = kwargs.get("generator")
        asked = kwargs.pop("device", None)
        device = None if asked is None else torch.device(asked)
        if generator is not None:
            where = device or next((each.device for each in args if isinstance(each, Tensor)), HOST)
            if where.type != generator.device.type:
                raise RuntimeError(f"{name}: expected a {where} generator, but found {generator.device}")
        if device is None:
            return func(*args, **kwargs)
        return moved(func(*args, **kwargs, device=HOST), to_card=device.type == CARD.type)


def _destination(args: Any, kwargs: Any) -> tuple[Any, Any, bool | None]:
    """The arguments of `Tensor.to` without a device, and whether the card was asked for; None if nothing was."""
    device, dtype, flags = kwargs.pop("device", None), kwargs.pop("dtype", None), []
    for value in args[1:]:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            device = value
    names = zip(("non_blocking", "copy"), flags, strict=False)
    kwargs |= {"dtype": dtype or args[0].dtype} | dict(names)
    return args[:1], kwargs, None if device is None else torch.device(device).type == CARD.type


class Generator(torch.Generator):
    """A generator of random numbers, on the card or not."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._where = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._where


class Autocast(contextlib.nullcontext[None]):
    """Mixed precision that leaves every number as it is."""

    def __init__(self, device: str, dtype: torch.dtype, *, enabled: bool = True) -> None:
        super().__init__()
        self.fast_dtype = dtype


@contextlib.contextmanager
def card() -> Iterator[torch.device]:
    """A machine with one card, until the end."""
    there = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "a card that is not there",
        "get_device_capability": lambda *_: (9, 0),
        "synchronize": lambda *_: None,
        "mem_get_info": lambda *_: (2**36, 2**36),
        "empty_cache": lambda: None,
        "current_stream": lambda *_: SimpleNamespace(cuda_stream=0),
        "device": lambda *_: contextlib.nullcontext(),
    }
    with contextlib.ExitStack() as stack:
        for name, value in there.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "autocast", Autocast))
        # A parameter's data would be replaced, and its class, which says where it is, would stay.
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        calls, backward = stack.enter_context(_Calls()), torch.autograd._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            """torch leaves the mode for a backward pass, in which functions of our own ask for memory on the card."""
            with calls:
                return backward(*args, **kwargs)

        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", run_backward))
        yield CARD
