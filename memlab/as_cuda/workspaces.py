"""cuBLAS workspaces: up to torch 2.14 each thread that multiplies keeps one, since then each product has its own.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp. Up to 2.14 it is taken at a thread's first product. On the CPU backward
runs in the calling thread; on CUDA it has one of its own, so the first product of a backward takes a second workspace.
cuBLASLt, which does linear layers with a bias, shares them from torch 2.12 on; in 2.11 it has one of its own beside
each. From 2.15 on a product takes a workspace and gives it back, cuBLASLt its own and no other, but with
TORCH_CUBLAS_WORKSPACE_CACHE=1 it is as in 2.14. All as seen on an emulated device, call by call over torch's own
samples, and 2.11's on two real ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlab import versions
from memlab.as_cuda.norms import HALF

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
_SOLVERS = frozenset(("linalg_lu", "linalg_lu_factor_ex", "linalg_solve_triangular"))
_EVEN_OF_NOTHING = _SOLVERS | {"dot", "vdot"}
_WITH_BIAS = frozenset(("addmm", "_addmm_activation"))
_LT_TYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_PAIR = re.compile(r":(\d+):(\d+)")


def multiplies(operator: Any) -> bool:
    """Whether cuBLAS runs for this operator."""
    return _name(operator) in _PRODUCTS | _SOLVERS


def takes_workspace(operator: Any, args: Sequence[Any]) -> bool:
    """Whether an operator that multiplies asks for a workspace: for empty matrices cuBLAS mostly does not run."""
    return _name(operator) in _EVEN_OF_NOTHING or all(each.numel() for each in args if isinstance(each, Tensor))


def are_kept() -> bool:
    """Whether threads keep their workspaces: else each product gives its own back when it is done."""
    return not versions.from_2_15() or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE", "") == "1"


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
        and bias.is_contiguous()
        and (_is_row(bias, weight, beta) or _is_matrix(bias, out, beta))
        and min(weight.shape) > 1
        and out.is_contiguous()
    )


def _is_row(bias: Tensor, weight: Tensor, beta: float) -> bool:
    return beta == 1 and bias.dtype in _LT_TYPES and bias.squeeze().shape == weight.shape[1:]


def _is_matrix(bias: Tensor, out: Tensor, beta: float) -> bool:
    """Whether it is one that cuBLASLt adds, from torch 2.14 on."""
    fits = bias.dim() == 2 and bias.shape[0] > 1 and bias.shape == out.shape and bias is not out
    return fits and beta != 0 and bias.dtype in HALF and versions.from_2_14()


def call_bytes(capability: tuple[int, int], operator: Any, args: Sequence[Any], out: Any) -> int:
    """Return the bytes of the workspace that a product gives back, where none is kept."""
    lt = takes_lt_workspace(operator, args, out)
    return (lt_bytes if lt else workspace_bytes)(capability) if takes_workspace(operator, args) else 0


def lt_bytes(capability: tuple[int, int]) -> int:
    """Return the bytes of cuBLASLt's own workspace where it has one: 1 MiB, or CUBLASLT_WORKSPACE_SIZE in KiB."""
    told = os.environ.get("CUBLASLT_WORKSPACE_SIZE", "")
    nbytes = int(told if told.isdecimal() else "1024") * KIB
    return min(nbytes, workspace_bytes(capability)) if are_kept() else nbytes


def _is_unified() -> bool:
    if not are_kept():
        return False
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
