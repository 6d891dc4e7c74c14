"""Fused attention as CUDA's kernels save and return it, computed with plain products where the tensors are real.

The outputs have the shapes, types and layouts of the CUDA kernels, so autograd's own formulas for these operators save
what they save on CUDA. Values are those of exact attention; dropout's random stream is our own.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

aten = torch.ops.aten
EFFICIENT_ROWS = 32  # the efficient kernel pads the log-sum-exp to a multiple of this


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """Stand in for aten._scaled_dot_product_efficient_attention."""
    batch, heads, length, _ = query.shape
    out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    rows = -(-length // EFFICIENT_ROWS) * EFFICIENT_ROWS if compute_log_sumexp else 0
    log_sumexp = query.new_empty(batch, heads, rows, dtype=torch.float32)
    seed, offset = _random_state(dropout, shape=())
    _fill(out, query, key, value, bias, dropout, causal, scale, seed)
    return out, log_sumexp, seed, offset


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Stand in for aten._scaled_dot_product_flash_attention."""
    batch, heads, length, _ = query.shape
    out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
    log_sumexp = query.new_empty(batch, heads, length, dtype=torch.float32)
    state, unused = _random_state(dropout, shape=(2,), dtype=torch.uint64)
    _fill(out, query, key, value, None, dropout, causal, scale, state)
    return out, log_sumexp, None, None, length, key.shape[2], state, unused, query.new_empty(0)


def cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Stand in for aten._scaled_dot_product_cudnn_attention."""
    batch, heads, length, _ = query.shape
    same = query.shape == (batch, heads, length, value.shape[-1])
    out = torch.empty_like(query) if same else query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    log_sumexp = query.new_empty((batch, heads, length, 1) if compute_log_sumexp else (0,), dtype=torch.float32)
    seed, offset = _random_state(dropout, shape=())
    _fill(out, query, key, value, bias, dropout, causal, scale, seed)
    return out, log_sumexp, None, None, length, key.shape[2], seed, offset, query.new_empty(0)


def efficient_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sumexp: Tensor,
    seed: Tensor,
    offset: Tensor,
    dropout: float,
    wanted: list[bool],
    causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    """Stand in for aten._scaled_dot_product_efficient_attention_backward."""
    grads = [each.new_empty(each.transpose(1, 2).shape).transpose(1, 2) for each in (query, key, value)]
    for_bias = torch.empty_like(bias) if bias is not None and wanted[3] else None
    _fill_grads(grads, for_bias, grad, query, key, value, bias, dropout, causal, scale, seed)
    return (*grads, for_bias)


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sumexp: Tensor,
    lengths_q: Any,
    lengths_k: Any,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    seed: Tensor,
    offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """Stand in for aten._scaled_dot_product_flash_attention_backward."""
    grads = [torch.empty_like(each) for each in (query, key, value)]
    _fill_grads(grads, None, grad, query, key, value, None, dropout, causal, scale, seed)
    return tuple(grads)


def cudnn_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sumexp: Tensor,
    seed: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    lengths_q: Any,
    lengths_k: Any,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """Stand in for aten._scaled_dot_product_cudnn_attention_backward."""
    grads = [torch.empty_like(each) for each in (query, key, value)]
    _fill_grads(grads, None, grad, query, key, value, bias, dropout, causal, scale, seed)
    return tuple(grads)


STAND_INS = {
    aten._scaled_dot_product_efficient_attention.default: efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_flash_attention.default: flash,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_cudnn_attention.default: cudnn,
    aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
}


def _random_state(dropout: float, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """The seed with which backward draws the same mask again, in the place where CUDA keeps its own."""
    state = torch.zeros(shape, dtype=dtype)
    if dropout > 0 and not isinstance(state, FakeTensor):
        state.fill_(int(torch.randint(1 << 31, ())))
    return state, torch.zeros((), dtype=dtype)


def _probabilities(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    seed: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Softmax of the scores in float32, and dropout's mask with its factor."""
    scores = query.float() @ key.float().transpose(-2, -1) * (scale or 1 / sqrt(query.shape[-1]))
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).tril().logical_not(), -torch.inf)
    if bias is not None:
        scores = scores + bias.float()
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row with nothing to attend to is zero
    if dropout == 0:
        return weights, None
    stream = torch.Generator().manual_seed(int(seed.flatten()[0].to(torch.int64)))
    keep = torch.rand(weights.shape, generator=stream) >= dropout
    return weights, keep.float() / (1 - dropout)


def _grouped(query: Tensor, tensor: Tensor) -> Tensor:
    """Repeat the heads that queries share."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1)


def _fill(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    seed: Tensor,
) -> None:
    if isinstance(query, FakeTensor):
        return
    weights, keep = _probabilities(query, _grouped(query, key), bias, dropout, causal, scale, seed)
    out.copy_((weights if keep is None else weights * keep) @ _grouped(query, value).float())


def _fill_grads(
    grads: list[Tensor],
    for_bias: Tensor | None,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    seed: Tensor,
) -> None:
    if isinstance(query, FakeTensor):
        return
    weights, keep = _probabilities(query, _grouped(query, key), bias, dropout, causal, scale, seed)
    by_value = (weights if keep is None else weights * keep).transpose(-2, -1) @ grad.float()
    by_weight = grad.float() @ _grouped(query, value).float().transpose(-2, -1)
    if keep is not None:
        by_weight = by_weight * keep
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True))
    if for_bias is not None:
        for_bias.copy_(by_score.sum_to_size(for_bias.shape))
    factor = scale or 1 / sqrt(query.shape[-1])
    by_query, by_key = by_score @ _grouped(query, key).float(), by_score.transpose(-2, -1) @ query.float()
    for into, found in zip(grads, (by_query * factor, by_key * factor, by_value), strict=True):
        into.copy_(found.unflatten(1, (into.shape[1], -1)).sum(2))
