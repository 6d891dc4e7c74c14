"""cuBLAS workspaces: torch allocates one for each thread that multiplies, at its first product, and keeps it.

Source: parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp. On the CPU backward runs in the calling
thread; on CUDA it has one of its own, so the first product of a backward takes a second workspace. cuBLASLt, which does
linear layers with a bias, shares them (torch 2.13).
"""

from __future__ import annotations

import os
import re

import torch

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


def in_backward() -> bool:
    """Tell whether autograd is running a backward in this thread: on CUDA that would be its device's thread."""
    return bool(torch._C._current_graph_task_id() != -1)
