"""What inductor makes of a function for a Hopper card (sm_90), on a machine without one: sources, then machine code.

The facts of the card are given to torch and Triton in place of a driver's; no kernel is ever started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

FACTS = SimpleNamespace(
    name="Hopper",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=2**16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
)
SIZES = {"XBLOCK": 64, "YBLOCK": 32, "R0_BLOCK": 64, "R1_BLOCK": 64}  # of a kernel's tiles; on a card they are tuned


class HopperDriver:
    """What inductor and Triton ask of a driver while they generate code."""

    def get_current_target(self) -> Any:
        """The card that code is made for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The card's number."""
        return 0

    def get_device_capability(self, *_: object) -> tuple[int, int]:
        """Its compute capability."""
        return 9, 0

    def get_active_torch_device(self) -> torch.device:
        """The card."""
        return torch.device("cuda", 0)


@contextlib.contextmanager
def hopper() -> Iterator[None]:
    """Inside, torch and Triton take this machine for one with a Hopper card."""
    from triton.runtime import driver

    names = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda._lazy_init": lambda: None,
        "torch._subclasses.fake_tensor.init_gpu_context": lambda device: None,
        "torch._inductor.runtime.triton_helpers.set_driver_to_gpu": lambda: None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch("torch.cuda._get_device_properties", return_value=FACTS, create=True))
        stack.enter_context(mock.patch.object(driver, "_active", HopperDriver()))
        yield


def lowered(function: Callable[..., Any], *inputs: Tensor) -> str:
    """The code that inductor generates for `function` of tensors like `inputs`, as if they were on the card."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def like(device: str) -> list[Tensor]:
        return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs]

    with FakeTensorMode():  # torch's autograd would ask a card for its streams, so gradients are traced before
        traced = make_fx(function, decomposition_table=select_decomp_table())(*like("cpu"))
    _move(traced)
    with hopper(), FakeTensorMode() as mode, torch.no_grad():
        graph = GraphLowering(make_fx(traced)(*like("cuda:0")), example_inputs=like("cuda:0"))
        with V.set_graph_handler(graph), V.set_fake_mode(mode), DebugContext():
            graph.run(*like("cuda:0"))
            return str(graph.codegen()[0].value)


def _move(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    traced.recompile()


def kernels(code: str) -> dict[str, str]:
    """The sources of the Triton kernels in generated code, by name."""
    return dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, flags=re.DOTALL))


def assembled(name: str, source: str, folder: Path) -> Any:
    """The kernel, compiled by Triton and assembled for sm_90; its `asm` holds the stages."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    (folder / f"{name}.py").write_text(source)
    with hopper():
        kernel = getattr(_module(folder / f"{name}.py"), name)
        meta = kernel.triton_meta
        words = list(meta["signature"])
        constants = {(words.index(word),): size for word, size in SIZES.items() if word in words}
        constants |= {(words.index(word),): value for word, value in meta["constants"].items()}
        asked = ASTSource(kernel.fn, dict(meta["signature"]), constants, meta["configs"][0])
        return triton.compile(asked, target=GPUTarget("cuda", 90, 32))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
