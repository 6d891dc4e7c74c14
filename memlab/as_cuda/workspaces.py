"""cuBLAS workspaces: torch allocates one for each thread that multiplies, at its first product, and keeps it.

Source: parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp. On the CPU backward runs in the calling
thread; on CUDA it has one of its own, so the first product of a backward takes a second workspace. cuBLASLt, which does
linear layers with a bias, shares them; up to torch 2.11 it takes another one in each thread that calls it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlab.as_cuda import versions

aten = torch.ops.aten
PRODUCTS = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.addbmm.default,
        aten.mv.default,
        aten.addmv.default,
        aten.dot.default,
        aten.vdot.default,
        aten.linear.default,  # these two only in inference mode, where they are not taken apart
        aten.matmul.default,
    }
)
_LT_TYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_PAIR = re.compile(r":(\d+):(\d+)")


def workspace_bytes(capability: tuple[int, int], config: str | None = None) -> int:
    """Return the bytes of one workspace.

    Args:
        capability: of the device; from 9.0 on it is 32 MiB, before that 8.125 MiB.
        config: as in CUBLAS_WORKSPACE_CONFIG, ``:SIZE:COUNT`` with SIZE in KiB, repeated; None: the environment's.
    """
    config = os.environ.get("CUBLAS_WORKSPACE_CONFIG", "") if config is None else config
    pairs = _PAIR.findall(config)
    if not pairs:
        pairs = [("4096", "8")] if capability >= (9, 0) else [("4096", "2"), ("16", "8")]
    return sum(int(size) * 1024 * int(count) for size, count in pairs)


def lt_workspace_bytes() -> int:
    """Return the bytes of cuBLASLt's own workspace: 1 MiB, or CUBLASLT_WORKSPACE_SIZE (in KiB); 0 where it shares."""
    if not versions.until_2_11() or os.environ.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE") == "1":
        return 0
    kib = os.environ.get("CUBLASLT_WORKSPACE_SIZE", "")
    return 1024 * (int(kib) if kib.isdecimal() else 1024)


def goes_through_lt(operator: Any, args: Sequence[Any]) -> bool:
    """Tell whether torch 2.11 gives a product to cuBLASLt: one that adds a bias, a row of its own type, as measured."""
    if operator is aten.addmm.default:
        bias, product, factor = args[0], args[1], args[2]
        return (len(args) < 4 or args[3] == 1) and _is_row(bias, factor.shape[0], factor.shape[1], product)
    if operator is aten.linear.default:
        product, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
        flat = product.dim() == 2 or product.is_contiguous()
        return bias is not None and flat and _is_row(bias, weight.shape[1], weight.shape[0], product)
    return False


def _is_row(bias: Tensor, inner: int, columns: int, product: Tensor) -> bool:
    row = bias.shape in ((columns,), (1, columns)) and bias.is_contiguous()
    return row and inner > 1 and columns > 1 and product.numel() > 0 and product.dtype in _LT_TYPES


def in_backward() -> bool:
    """Tell whether autograd is running a backward in this thread: on CUDA that would be its device's thread."""
    return bool(torch._C._current_graph_task_id() != -1)
