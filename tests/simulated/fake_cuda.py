"""CUDA without a GPU: torch's fake tensors say ``cuda``, have shapes and no memory, and count what would happen.

``with fake_cuda() as mode, mode:`` runs a model forward and backward as it would run on a GPU, without any number. What
waits for the device, and how many bytes are alive, can be counted then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import traceback
import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import kosmos.attention
import kosmos.image_processing_kosmos
import kosmos.loss
import kosmos.positions

BLOCK = 512  # bytes that the caching allocator rounds up to


@cache
def let_autograd_run() -> None:
    """Make torch believe that no device has a context: its backward engine would ask a driver that is not there.

    The function that it asks is known to libc10_cuda; its first instructions are written over, in this process.
    """
    library = Path(torch.__file__).parent / "lib" / "libc10_cuda.so"
    if not library.is_file() or platform.machine() != "x86_64" or torch.cuda.is_available():
        pytest.skip("needs torch's CUDA build on x86-64, and no GPU")
    setter = ctypes.CDLL(str(library))._ZN3c104cuda9_internal20setHasPrimaryContextEPFbaE
    entry = ctypes.cast(setter, ctypes.c_void_p).value or 0
    code = ctypes.string_at(entry, 64)
    if (at := code.find(b"\x48\x89\x3d")) < 0:  # mov [rip + offset], rdi: where the function is kept
        pytest.skip("this build of torch keeps its question elsewhere")
    slot = entry + at + 7 + struct.unpack("<i", code[at + 3 : at + 7])[0]
    function = ctypes.c_void_p.from_address(slot).value or 0
    libc, page = ctypes.CDLL(None, use_errno=True), function & ~4095
    if libc.mprotect(ctypes.c_void_p(page), 8192, 7):
        pytest.skip(f"code cannot be changed here: {os.strerror(ctypes.get_errno())}")
    ctypes.memmove(function, b"\x31\xc0\xc3", 3)  # return false
    libc.mprotect(ctypes.c_void_p(page), 8192, 5)


class Attention(torch.autograd.Function):
    """What a flash or flex kernel saves and returns, without its numbers."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _softmax_outputs(logits: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What the one compiled pass over the logits leaves, without what its single operations would."""
    return logits.new_empty(len(logits)), logits.new_empty(len(logits), 1), logits.new_empty(logits.shape, dtype=dtype)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Inside of the mode that this returns tensors may be on ``cuda``.

    What would be compiled runs as it is written, except for the pass over the logits. sdpa, which finds no device and
    would take its slow path, and flex attention run as ``Attention``.
    """
    let_autograd_run()

    def written(function: Any, dynamic: bool | None = None) -> Any:
        kernels = {"flex_attention": flash, "_softmax_gradient": _softmax_outputs}
        return kernels.get(function.__name__, function)

    def flash(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return Attention.apply(query, key, value)

    patch, by_channel = pytest.MonkeyPatch(), kosmos.image_processing_kosmos.by_channel
    for module in (kosmos.attention, kosmos.loss, kosmos.positions):
        patch.setattr(module, "compiled", written)
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    by_channel.cache_clear()
    try:
        yield FakeTensorMode(allow_non_fake_inputs=True)
    finally:
        by_channel.cache_clear()
        patch.undo()


class Syncs(TorchDispatchMode):
    """Lists where the host would wait for the device; ``answers`` are what the host reads then."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = func._schema.name, [one for one in tree_flatten((args, kwargs))[0] if torch.is_tensor(one)]
        on_device = any(one.device.type == "cuda" for one in tensors)
        if on_device and name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self._note(name)
            if name == "aten::_local_scalar_dense":
                return 5.0 if args[0].dtype.is_floating_point else 5
        out = func(*args, **(kwargs or {}))
        copied = name in ("aten::_to_copy", "aten::copy_") and isinstance(out, torch.Tensor)
        waits = not (kwargs or {}).get("non_blocking") and not (len(args) > 2 and args[2] is True)
        if copied and waits and {one.device.type for one in [*tensors, out]} == {"cpu", "cuda"}:
            self._note(name)
        return out

    def _note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/kosmos" in frame.filename]
        self.found.append(f"{name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else name)


class Memory(TorchDispatchMode):
    """Follows the bytes of storages that are alive on the device, and their peak."""

    def __init__(self, *held: torch.Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of ``tensor`` until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device.type != "cuda" or (key in self._known and self._known[key]() is storage):
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def freed(reference: Any) -> None:
            self.live -= size
            if self._known.get(key) is reference:
                del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return out


def on_cuda(value: Any) -> Any:
    """A tensor of the same shape on the fake device, or a ``RowLayout`` of them."""
    if hasattr(value, "map"):
        return value.map(on_cuda)
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def build(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model of ``config`` on the fake device, in training."""
    from kosmos import KosmosForConditionalGeneration

    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            model = KosmosForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train()


def rows(config: Any, count: int, length: int, images: int, documents: int = 1) -> dict[str, Any]:
    """A batch on the CPU: ``count`` rows of ``documents`` documents, each row with ``images`` pictures."""
    ids = torch.full((count, length), 7)
    slots, token, size = config.num_image_tokens, config.image_token_id, config.vision_config.image_size
    for index in range(images):
        ids[:, 2 + index * (slots + 4) :][:, :slots] = token
    labels = ids.roll(-1, 1)
    place = torch.arange(length).repeat(count, 1)
    return {
        "input_ids": ids,
        "shift_labels": labels.masked_fill(labels == token, -100),
        "document_ids": place * documents // length,
        "position_ids": place,
        "loss_weight": torch.ones(count, length),
        **({"pixel_values": torch.empty(count * images, 3, size, size)} if images else {}),
    }
