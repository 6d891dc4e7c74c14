"""Which attention kernel CUDA takes: the order and the conditions of native/transformers/cuda/sdp_utils.cpp.

They are 2.13's; from 2.14 on kernels take heads that queries share, and cuDNN other widths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlab import versions
from memlab.as_cuda.gpu import Gpu

FLASH, EFFICIENT, CUDNN, MATH = "flash", "efficient", "cudnn", "math"
_HALF = (torch.float16, torch.bfloat16)
_backends = torch.backends.cuda


def choose(
    gpu: Gpu, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, gqa: bool
) -> str:
    """Return the kernel for tensors of shape (batch, heads, length, width); user's switches are respected."""
    if gpu.capability in ((9, 0), (10, 0), (10, 3)):
        order = [CUDNN, FLASH, EFFICIENT]
    else:  # elsewhere cuDNN comes after the composed one, which takes everything unless the user has switched it off
        order = [FLASH, EFFICIENT, *([] if _backends.math_sdp_enabled() else [CUDNN])]
    takes = {FLASH: _flash, EFFICIENT: _efficient, CUDNN: _cudnn}
    if query.dim() == key.dim() == value.dim() == 4 and min(query.numel(), key.numel(), value.numel()) > 0:
        for kernel in order:
            if takes[kernel](gpu, query, key, value, mask, dropout, causal, gqa):
                return kernel
    return MATH


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _same_type(query: Tensor, key: Tensor, value: Tensor, types: tuple[torch.dtype, ...]) -> bool:
    return query.dtype == key.dtype == value.dtype and query.dtype in types


def _same_heads(query: Tensor, key: Tensor, value: Tensor, gqa: bool) -> bool:
    if key.shape[1] != value.shape[1] or not query.shape[0] == key.shape[0] == value.shape[0]:
        return False
    shares = gqa or (key.shape[1] == 1 and versions.from_2_14())
    return query.shape[1] % key.shape[1] == 0 if shares else query.shape[1] == key.shape[1]


def _last_is_dense(*tensors: Tensor) -> bool:
    return all(each.stride(-1) == 1 for each in tensors)


def _flash(
    gpu: Gpu, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, gqa: bool
) -> bool:
    width = query.shape[-1]
    narrow_chip = gpu.capability in ((8, 6), (8, 9), (12, 0), (12, 1))
    if narrow_chip and _wants_gradient(query, key, value) and (192 < width <= 224 or (width > 224 and dropout)):
        return False
    return (
        _backends.flash_sdp_enabled()
        and gpu.capability >= (8, 0)
        and mask is None
        and not (causal and query.shape[2] != key.shape[2])
        and _same_type(query, key, value, _HALF)
        and width == key.shape[-1] == value.shape[-1] <= 256
        and _same_heads(query, key, value, gqa)
        and _last_is_dense(query, key, value)
    )


def _efficient(
    gpu: Gpu, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, gqa: bool
) -> bool:
    types = (*_HALF, torch.float32) if gpu.capability >= (8, 0) else (torch.float16, torch.float32)
    align = 1
    if query.dtype in _HALF:
        align = 8
    elif gpu.capability >= (8, 0):
        align = 4
    return (
        _backends.mem_efficient_sdp_enabled()
        and _same_type(query, key, value, types)
        and query.shape[-1] == key.shape[-1]
        and query.shape[-1] % align == 0 == value.shape[-1] % align
        and _same_heads(query, key, value, gqa and versions.from_2_14())
        and _last_is_dense(query, key, value)
    )


def _cudnn(
    gpu: Gpu, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, gqa: bool
) -> bool:
    return (
        _backends.cudnn_sdp_enabled()
        and torch.backends.cudnn.enabled
        and gpu.capability >= (8, 0)
        and dropout == 0
        and not (mask is not None and mask.requires_grad)
        and _same_type(query, key, value, _HALF)
        and query.shape[-1] == key.shape[-1]
        and _cudnn_takes(gpu, query, value, training=_wants_gradient(query, key, value))
        and key.shape[2] > 1
        and _same_heads(query, key, value, gqa)
        and _last_is_dense(query, key, value)
    )


def _cudnn_takes(gpu: Gpu, query: Tensor, value: Tensor, *, training: bool) -> bool:
    """Whether heads are not too wide for the cuDNN that torch comes with."""
    width, values = query.shape[-1], value.shape[-1]
    if width % 8 or values % 8:
        return False
    if max(width, values) <= 128:
        return True
    if not versions.from_2_14():
        return gpu.capability[0] == 9 and max(width, values) <= 256
    if gpu.capability[0] not in (9, 10) or max(width, values) > 256:
        return False
    if gpu.capability[0] == 10 and query.shape[2] == 1 and not versions.from_2_15():
        return False
    return not training or (width, values) in ((192, 128), (256, 256))
