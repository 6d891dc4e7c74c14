"""cuBLAS workspaces: torch allocates one for each thread that multiplies, at its first product, and keeps it.

Source: parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp. On the CPU backward runs in the calling
thread; on CUDA it has one of its own, so the first product of a backward takes a second workspace. cuBLASLt, which does
linear layers with a bias, shares them from torch 2.12 on; in 2.11 it has one of its own beside each. Both as seen on an
emulated device, call by call over torch's own samples, and 2.11's on two real ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlab import versions

KIB = 1024
# By name: in place and with out= they multiply, too.
_PRODUCTS = frozenset(
    {
        "mm",
        "addmm",
        "_addmm_activation",
        "_scaled_mm",
        "bmm",
        "baddbmm",
        "addbmm",
        "mv",
        "addmv",
        "dot",
        "vdot",
        "_trilinear",
    }
)
_SOLVERS = frozenset(("linalg_lu", "linalg_lu_factor_ex", "linalg_solve_triangular"))  # of empty matrices, too
_WITH_BIAS = frozenset(("addmm", "_addmm_activation"))
_LT_TYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_PAIR = re.compile(r":(\d+):(\d+)")


def multiplies(operator: Any) -> bool:
    """Whether cuBLAS runs for this operator."""
    return _name(operator) in _PRODUCTS | _SOLVERS


def takes_workspace(operator: Any, args: Sequence[Any]) -> bool:
    """Whether an operator that multiplies asks for a workspace: for nothing but empty matrices cuBLAS does not run."""
    return _name(operator) in _SOLVERS or all(each.numel() for each in args if isinstance(each, Tensor))


def takes_lt_workspace(operator: Any, args: Sequence[Any], out: Any) -> bool:
    """Whether cuBLASLt runs and has a workspace of its own; ``args`` in the order of the operator's schema.

    Source: isInputCompliesAddmmCudaLt in aten/src/ATen/native/cuda/Blas.cpp.
    """
    if _is_unified() or operator._schema.name.endswith("_"):
        return False
    if _name(operator) not in _WITH_BIAS:
        return _name(operator) == "_scaled_mm"
    bias, weight, beta = args[0], args[2], args[3] if len(args) > 3 else 1
    return bool(
        isinstance(bias, Tensor)
        and beta == 1
        and bias.is_contiguous()
        and bias.squeeze().shape == weight.shape[1:]
        and bias.dtype in _LT_TYPES
        and min(weight.shape) > 1
        and out.is_contiguous()
    )


def lt_bytes(capability: tuple[int, int]) -> int:
    """Return the bytes of cuBLASLt's own workspace where it has one: 1 MiB, or CUBLASLT_WORKSPACE_SIZE in KiB."""
    told = os.environ.get("CUBLASLT_WORKSPACE_SIZE", "")
    return min(int(told if told.isdecimal() else "1024") * KIB, workspace_bytes(capability))


def _is_unified() -> bool:
    told = os.environ.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "")
    return told == "1" if told in ("0", "1") else not versions.until_2_11()


def _name(operator: Any) -> str:
    return str(operator._schema.name.removeprefix("aten::").removesuffix("_"))


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
    return sum(int(size) * KIB * int(count) for size, count in pairs)


def in_backward() -> bool:
    """Tell whether autograd is running a backward in this thread: on CUDA that would be its device's thread."""
    return bool(torch._C._current_graph_task_id() != -1)
