"""What torch's compiler and Triton make of the model for an H100, without one: code, bytes moved, registers.

``lower(function, *inputs)`` compiles for a device that is only described (``HOPPER``): Inductor writes its kernels for
forward and backward, and nothing is run. ``Lowered.moved`` counts bytes outside of matrix products and attention as the
kernels are written; ``resources`` has Triton build one for sm_90 and reads what ptxas took for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import let_autograd_run
from torch._subclasses.fake_tensor import FakeTensorMode

HOPPER = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=80 * 2**30,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
    is_integrated=0,
    is_multi_gpu_board=0,
)
KERNEL = re.compile(r"^(triton_\w+) = async_compile\.triton\('(\w+)', '''(.*?)'''", re.M | re.S)


@dataclass
class Lowered:
    """The code of a graph: Python that calls kernels, with the source of each."""

    code: str

    @property
    def kernels(self) -> dict[str, str]:
        """Name → source of Triton's kernels."""
        return {name: source for name, _, source in KERNEL.findall(self.code)}

    @property
    def calls(self) -> list[str]:
        """Triton's kernels in the order of their calls."""
        return re.findall(r"^\s+(triton_\w+)\.run\(", self.code, re.M)

    @property
    def moved(self) -> float:
        """Bytes that Triton's kernels read and write, each buffer once a kernel; attention's own left out."""
        sizes = {name: re.search(r"'kernel_num_gb': ([\d.e-]+)", source) for name, source in self.kernels.items()}
        generated = [name for name in self.calls if not name.startswith("triton_tem")]
        return sum(1e9 * float(size[1]) for name in generated if (size := sizes[name]) is not None)

    @property
    def aten(self) -> set[str]:
        """Operations that are called as they are: not a matrix product, and no kernel was written for them."""
        return set(re.findall(r"= torch\.ops\.([\w.]+?)(?:\.default)?\(", self.code))


class _WrittenError(Exception):
    """Raised in the place of running what was compiled."""


def flash(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """sdpa as a GPU chooses it: without a device it would take its slow path."""
    chosen = torch.ops.aten._scaled_dot_product_flash_attention
    return chosen(query, key, value, dropout_p, is_causal, scale=scale)[0]


@contextlib.contextmanager
def hopper() -> Iterator[FakeTensorMode]:
    """Inside of the mode that this returns tensors are on an H100 that is described and not there."""
    pytest.importorskip("triton")
    let_autograd_run()
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    try:
        yield FakeTensorMode(allow_non_fake_inputs=True)
    finally:
        patch.undo()


def lower(
    function: Callable[..., Any], *inputs: Any, dynamic: bool | None = None, options: dict[str, Any] | None = None
) -> list[Lowered]:
    """Compile ``function`` for these inputs, inside of ``hopper()``: the code of forward and, if one is due, backward.

    Raises:
        Exception: torch's, where the graph of the function would break.
    """
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor.graph import GraphLowering

    found: list[Lowered] = []
    write = GraphLowering.codegen

    def keep(graph: Any) -> Any:
        made = write(graph)
        found.append(Lowered(getattr(made[0], "value", str(made[0]))))
        return made

    def refuse(*_: Any) -> Any:
        raise _WrittenError

    def build(graph: Any) -> Any:
        graph.codegen()
        return types.SimpleNamespace(call=refuse, __file__=__file__, runner=None)

    # constants would be folded on the device
    settings = {"force_disable_caches": True, "compile_threads": 1, "profile_bandwidth": True}
    settings |= {"joint_graph_constant_folding": False}
    lazy = {"force_non_lazy_backward_lowering": True, "graphsafe_rng_functionalization": False}
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        _describe(patch)
        patch.setattr(GraphLowering, "codegen", keep)
        patch.setattr(GraphLowering, "compile_to_module", build)
        patched = torch._inductor.config.patch(settings), torch._functorch.config.patch(lazy)
        with patched[0], patched[1], contextlib.suppress(_WrittenError):
            torch.compile(function, dynamic=dynamic, fullgraph=True, options=options)(*inputs)
    return found


def _describe(patch: pytest.MonkeyPatch) -> None:
    """Answer what torch and Triton ask of the device."""
    import torch._inductor.fx_passes.fuse_attention as fuse
    import torch._inductor.fx_passes.misc_patterns as patterns
    import torch._inductor.fx_passes.pad_mm as pad
    import torch._subclasses.fake_tensor as fake
    import torch.utils._triton as asked
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver as active

    def answer(owner: Any, names: str, value: Any) -> None:
        wrap = staticmethod if isinstance(owner, type) else lambda function: function
        for name in names.split():
            patch.setattr(owner, name, wrap(lambda *_, **__: value), raising=False)

    stream = types.SimpleNamespace(cuda_stream=0, device=torch.device("cuda", 0), stream_id=0)
    for owner in (torch.cuda, CudaInterface, CudaInterface.Worker):
        answer(owner, "get_device_properties", HOPPER)
        answer(owner, "current_device exchange_device maybe_exchange_device _exchange_device _maybe_exchange_device", 0)
        answer(owner, "set_device synchronize _lazy_init set_rng_state", None)
        answer(owner, "is_available is_bf16_supported", True)
    answer(CudaInterface, "get_compute_capability", 90)
    answer(torch.cuda, "get_device_capability", (9, 0))
    answer(torch.cuda, "get_device_name", HOPPER.name)
    answer(torch.cuda, "device_count", 1)
    answer(torch.cuda, "current_stream", stream)
    answer(torch.cuda, "get_rng_state", torch.zeros(16, dtype=torch.uint8))
    answer(torch.cuda, "is_current_stream_capturing is_initialized _is_in_bad_fork", False)
    answer(torch.cuda.graphs, "is_current_stream_capturing", False)
    answer(torch._C, "_cuda_isCurrentStreamCapturing", False)
    answer(torch._C, "_cuda_getCurrentRawStream _cuda_exchangeDevice _cuda_maybeExchangeDevice", 0)
    answer(fake, "init_gpu_context", None)
    answer(asked, "has_triton has_triton_package", True)
    answer(fuse, "_sfdp_init", None)  # these run their patterns once, on the device
    answer(pad, "_pad_mm_init", None)
    answer(patterns, "_misc_patterns_init", None)

    known = {"multi_processor_count": 132, "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048}
    device = DeviceProperties(type="cuda", index=0, cc=90, major=9, warp_size=32, **known)
    patch.setattr(DeviceProperties, "create", classmethod(lambda cls, device_: device))

    driver = object.__new__(CudaDriver)
    limits = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}
    driver.utils = types.SimpleNamespace(get_device_properties=lambda index: limits)
    answer(driver, "get_current_target", GPUTarget("cuda", 90, 32))
    answer(driver, "get_current_device get_current_stream", 0)
    answer(driver, "set_current_device", None)
    answer(driver, "get_device_capability", (9, 0))
    patch.setattr(active, "_active", driver, raising=False)


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel takes on sm_90."""

    registers: int
    stack: int
    """Bytes of local memory, where spilled registers go."""
    spills: int
    """Instructions that store to it."""


def resources(name: str, source: str, folder: Path) -> Resources:
    """Build one Triton kernel for sm_90 with its first configuration, and read the cubin."""
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton

    path = folder / f"{name[:60]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # another name in torch 2.11; these launchers keep no cubin
    launchers = ("use_static_triton_launcher", "use_static_cuda_launcher")
    without = {name: False for name in launchers if hasattr(torch._inductor.config, name)}
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(without):
        _describe(patch)
        patch.setattr(heuristics.CachingAutotuner, "precompile", lambda self, *_, **__: None)
        spec.loader.exec_module(module)
        tuner = next(value for value in vars(module).values() if isinstance(value, heuristics.CachingAutotuner))
        built = tuner._precompile_config(tuner.configs[0]).kernel
    cubin = path.with_suffix(".cubin")
    cubin.write_bytes(built.asm["cubin"])
    dump = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"

    def ask(what: str) -> str:
        return subprocess.run([dump, what, cubin], capture_output=True, text=True, check=True).stdout

    used = re.search(r"REG:(\d+) STACK:(\d+)", ask("--dump-resource-usage"))
    assert used is not None
    return Resources(int(used[1]), int(used[2]), len(re.findall(r"\bSTL\b", ask("--dump-sass"))))
