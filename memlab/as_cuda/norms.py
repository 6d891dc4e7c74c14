"""Normalisations that CUDA does with other kernels, or with statistics of another type, than the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)


def layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Any, ...]:
    """Stand in for aten.native_layer_norm: on CUDA mean and rstd of half types are float32."""
    out, mean, rstd = aten.native_layer_norm.default(x, shape, weight, bias, eps)
    return out, mean.float(), rstd.float()


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: list[bool],
) -> tuple[Any, ...]:
    """Stand in for aten.native_layer_norm_backward: it gets the statistics that `layer_norm` has given out."""
    type_ = x.dtype if weight is None else weight.dtype
    mean, rstd = mean.to(type_), rstd.to(type_)
    found: tuple[Any, ...] = aten.native_layer_norm_backward.default(grad, x, shape, mean, rstd, weight, bias, wanted)
    return found


def rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    """Stand in for aten._fused_rms_norm, which saves its input, its weight and rstd in float32."""
    dims = tuple(range(-len(shape), 0))
    wide = x.float() if x.dtype in HALF else x
    rstd = (wide.square().mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    out = wide * rstd if weight is None else wide * rstd * weight
    return out.to(x.dtype), rstd


def rms_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], rstd: Tensor, weight: Tensor | None, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Stand in for aten._fused_rms_norm_backward."""
    dims = tuple(range(-len(shape), 0))
    wide, up = x.to(rstd.dtype), grad.to(rstd.dtype)
    normal = wide * rstd
    scaled = up if weight is None else up * weight.to(rstd.dtype)
    by_x = rstd * (scaled - normal * (scaled * normal).mean(dims, keepdim=True))
    by_weight = (up * normal).sum_to_size(weight.shape).to(weight.dtype) if weight is not None and wanted[1] else None
    return by_x.to(x.dtype) if wanted[0] else None, by_weight


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, ...]:
    """Stand in for aten.cudnn_batch_norm. Only cuDNN knows the reserve's size; here it is 0 bytes."""
    found = aten.native_batch_norm.default(x, weight, bias, running_mean, running_var, training, momentum, epsilon)
    out, mean, rstd = found
    if not training:
        mean, rstd = x.new_empty(0), x.new_empty(0)
    return out, mean, rstd, torch.empty(0, dtype=torch.uint8)


def batch_norm_backward(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    epsilon: float,
    reserve: Tensor,
) -> tuple[Tensor, ...]:
    """Stand in for aten.cudnn_batch_norm_backward."""
    wanted = [True, True, True]
    found: tuple[Tensor, ...] = aten.native_batch_norm_backward.default(
        grad, x, weight, running_mean, running_var, mean, rstd, True, epsilon, wanted
    )
    return found


def native_batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Stand in for aten.native_batch_norm: on CUDA the statistics of half types are float32."""
    out, mean, rstd = aten.native_batch_norm.default(x, *rest)
    return out, mean.float(), rstd.float()


def native_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Stand in for aten.native_batch_norm_backward: it gets the statistics that `native_batch_norm` has given out."""
    type_ = x.dtype if weight is None else weight.dtype
    mean, rstd = (each if each is None else each.to(type_) for each in (mean, rstd))
    given = (grad, x, weight, running_mean, running_var, mean, rstd, *rest)
    found: tuple[Tensor, ...] = aten.native_batch_norm_backward.default(*given)
    return found


def takes_cudnn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
) -> bool:
    """Tell whether torch gives a batch norm on CUDA to cuDNN (_select_batch_norm_backend, Normalization.cpp)."""
    most = 880801 if training else 65535
    return (
        torch.backends.cudnn.enabled
        and x.dtype != torch.bfloat16
        and weight is not None
        and bias is not None
        and (x.dtype != torch.float16 or weight.dtype == torch.float32)
        and (running_mean is None) == (running_var is None)
        and (running_mean is not None or training)
        and x.dim() >= 3
        and x.shape[0] <= most
        and eps >= 1e-5
    )


STAND_INS: dict[Any, Any] = {
    aten.cudnn_batch_norm.default: batch_norm,
    aten.cudnn_batch_norm_backward.default: batch_norm_backward,
}
if hasattr(aten, "_fused_rms_norm_backward"):  # an older torch is refused on entering, in a sentence
    STAND_INS[aten._fused_rms_norm.default] = rms_norm
    STAND_INS[aten._fused_rms_norm_backward.default] = rms_norm_backward
HALF_STAND_INS = {
    aten.native_batch_norm.default: native_batch_norm,
    aten.native_batch_norm_backward.default: native_batch_norm_backward,
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
}
"""Only where an argument is of a half type."""
