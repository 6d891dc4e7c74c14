"""autocast("cuda") on a machine without CUDA, with CUDA's list of operators that run in float32.

Source: AT_FORALL_FP32 and its kin in aten/src/ATen/autocast_mode.h.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.amp import autocast_mode

aten = torch.ops.aten
_KEY = torch._C.DispatchKey.AutocastCPU
_HALF = (torch.float16, torch.bfloat16)
# Operators that CUDA's autocast runs in float32 and the CPU's leaves as they are.
IN_FLOAT32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "group_norm", "cosine_similarity", "nll_loss", "nll_loss_nd", "nll_loss2d", "hinge_embedding_loss", "l1_loss",
    "soft_margin_loss", "dist", "renorm", "logsumexp", "rms_norm",
)  # fmt: skip
# Those that are told to give a float32 result: the cast is inside.
RESULT_IN_FLOAT32 = ("softmax.int", "log_softmax.int", "cumsum", "cumprod", "sum", "sum.dim_IntList")
_lock = threading.Lock()
_open = 0
_library: Any = None
_init = autocast_mode.autocast.__init__


def _in_float32(operator: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            return operator(*map(_wide, args), **{name: _wide(each) for name, each in kwargs.items()})

    return call


def _with_result_in_float32(operator: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            if args[0].dtype in _HALF and kwargs.get("dtype") is None and len(args) < _place(operator):
                kwargs["dtype"] = torch.float32
            return operator(*args, **kwargs)

    return call


def _place(operator: Any) -> int:
    names = [each.name for each in operator._schema.arguments]
    return names.index("dtype") + 1 if "dtype" in names else 0


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _HALF:
        return value.float()
    return [_wide(each) for each in value] if isinstance(value, list) and value else value


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Let autocast do on the CPU what it does on CUDA, and let "cuda" mean the CPU in it."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _open, _library
    with _lock:
        _open += 1
        if _open == 1:
            _library = torch.library.Library("aten", "IMPL")
            for name in IN_FLOAT32:
                _register(name, _in_float32)
            for name in RESULT_IN_FLOAT32:
                _register(name, _with_result_in_float32)
            autocast_mode.autocast.__init__ = _init_on_cpu  # type: ignore[method-assign]


def _register(name: str, make: Any) -> None:
    operator = _overload(name)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "AutocastCPU"):
        _library.impl(operator, make(operator), "AutocastCPU")


def _leave() -> None:
    global _open, _library
    with _lock:
        _open -= 1
        if _open == 0:
            autocast_mode.autocast.__init__ = _init  # type: ignore[method-assign]
            _library._destroy()
            _library = None


def _init_on_cpu(
    self: Any,
    device_type: str,
    dtype: torch.dtype | None = None,
    enabled: bool = True,
    cache_enabled: bool | None = None,
) -> None:
    if device_type == "cuda":
        device_type, dtype = "cpu", dtype or torch.float16
    _init(self, device_type, dtype, enabled, cache_enabled)
