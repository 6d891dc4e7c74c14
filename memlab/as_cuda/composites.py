"""Operators that torch takes apart differently on CUDA: they get CUDA's way, for the threads that ask for it.

Each is registered in torch's dispatcher above autograd, so it also acts on calls from C++ (multi-head attention), in
backward (checkpoint) and on fake tensors; the registration is taken back when the last user closes. Sources:
native/Dropout.cpp, native/transformers/attention.cpp, native/Normalization.cpp, native/layer_norm.cpp.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from memlab.as_cuda import norms
from memlab.as_cuda.choice import CUDNN, EFFICIENT, FLASH, choose
from memlab.as_cuda.gpu import Gpu

aten = torch.ops.aten
_COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd
_lock = threading.Lock()
_open = 0
_library: Any = None


Ask = Callable[[], Gpu | None]


def _none() -> None:
    return None


def _unheard(operator: Any) -> None:
    return None


class _Thread(threading.local):
    ask: Ask = staticmethod(_none)
    note: Callable[[Any], None] = staticmethod(_unheard)

    @property
    def gpu(self) -> Gpu | None:
        return self.ask()


_thread = _Thread()


def _composed(operator: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Take an operator apart as torch itself does on the CPU."""
    out: Tensor = operator._op_dk(_COMPOSED, *args, **kwargs)
    return out


def dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if _thread.gpu is not None and train and 0 < p < 1 and x.numel() > 0:
        out: Tensor = aten.native_dropout.default(x, p, train)[0]
        return out
    return _composed(aten.dropout.default, x, p, train)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    gpu, given = _thread.gpu, (query, key, value, attn_mask, dropout_p, is_causal)
    if gpu is None:
        original = aten.scaled_dot_product_attention.default
        return _composed(original, *given, scale=scale, enable_gqa=enable_gqa)
    kernel = choose(gpu, *given, enable_gqa)
    mask = _additive(attn_mask, query)
    out: Tensor
    if kernel == FLASH:
        width, factor = query.shape[-1], scale or 1 / sqrt(query.shape[-1])
        padded = [_pad(each, 8) for each in (query, key, value)]
        out = aten._scaled_dot_product_flash_attention.default(*padded, dropout_p, is_causal, scale=factor)[0]
        return out[..., :width] if out.shape[-1] != width else out
    wants = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    if kernel == CUDNN:
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        mask = mask if mask is None else mask.expand(shape)
        rest = (mask, wants, dropout_p, is_causal)
        out = aten._scaled_dot_product_cudnn_attention.default(query, key, value, *rest, scale=scale)[0]
    elif kernel == EFFICIENT:
        rest = (_aligned(mask, query, key), wants, dropout_p, is_causal)
        out = aten._scaled_dot_product_efficient_attention.default(query, key, value, *rest, scale=scale)[0]
    else:
        out = aten._scaled_dot_product_attention_math.default(
            query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    return out


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.scalar_tensor(0.0, dtype=query.dtype)
    return torch.where(mask, zero, torch.scalar_tensor(-torch.inf, dtype=query.dtype))


def _pad(tensor: Tensor, multiple: int) -> Tensor:
    missing = -tensor.shape[-1] % multiple
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _aligned(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The efficient kernel reads masks whose rows begin at multiples of 8 elements (preprocess_mask, attention.cpp)."""
    if mask is None:
        return None
    mask = _pad(mask, 8)[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    state = (running_mean, running_var, training)
    if _thread.gpu is not None and norms.takes_cudnn(x, weight, bias, *state, eps):
        x = x.contiguous() if not x.is_contiguous(memory_format=torch.channels_last) else x
        out: Tensor = aten.cudnn_batch_norm.default(x, weight, bias, *state, momentum, eps)[0]
        return out
    return _composed(aten.batch_norm.default, x, weight, bias, *state, momentum, eps, cudnn_enabled)


def rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if _thread.gpu is not None and x.is_floating_point() and (weight is None or weight.dtype == x.dtype):
        out: Tensor = aten._fused_rms_norm.default(x, shape, weight, eps)[0]
        return out
    return _composed(aten.rms_norm.default, x, shape, weight, eps)


def lstm_cell(
    x: Tensor,
    state: list[Tensor],
    weight: Tensor,
    weight_hidden: Tensor,
    bias: Tensor | None = None,
    bias_hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if _thread.gpu is None:
        given = (x, state, weight, weight_hidden, bias, bias_hidden)
        found: tuple[Tensor, Tensor] = aten.lstm_cell.default._op_dk(_COMPOSED, *given)
        return found
    gates, more = torch.matmul(x, weight.t()), torch.matmul(state[0], weight_hidden.t())
    hidden, cell, _ = aten._thnn_fused_lstm_cell.default(gates, more, state[1], bias, bias_hidden)
    return hidden, cell


def gru_cell(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    weight_hidden: Tensor,
    bias: Tensor | None = None,
    bias_hidden: Tensor | None = None,
) -> Tensor:
    if _thread.gpu is None:
        return _composed(aten.gru_cell.default, x, state, weight, weight_hidden, bias, bias_hidden)
    gates, more = torch.matmul(x, weight.t()), torch.matmul(state, weight_hidden.t())
    hidden: Tensor = aten._thnn_fused_gru_cell.default(gates, more, state, bias, bias_hidden)[0]
    return hidden


def _recurrent(operator: Any) -> Callable[..., Any]:
    """Take a layer apart, which cuDNN would run whole: who asked is told that it ran."""

    def layer(*args: Any, **kwargs: Any) -> Any:
        if _thread.gpu is not None and torch.backends.cudnn.enabled:
            _thread.note(operator)
        return operator._op_dk(_COMPOSED, *args, **kwargs)

    return layer


RECURRENT = [
    getattr(getattr(aten, name), overload)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for overload in ("input", "data")
]
COMPOSITES: dict[Any, Callable[..., Any]] = {
    **{operator: _recurrent(operator) for operator in RECURRENT},
    aten.gru_cell.default: gru_cell,
    aten.lstm_cell.default: lstm_cell,
    aten.dropout.default: dropout,
    aten.scaled_dot_product_attention.default: attention,
    aten.batch_norm.default: batch_norm,
    aten.rms_norm.default: rms_norm,
}


def enter(gpu: Gpu, note: Callable[[Any], None] = _unheard) -> tuple[Ask, Callable[[Any], None]]:
    """Let this thread's CPU operators be taken apart as on ``gpu``; return what was set before.

    ``note`` is told of those which CUDA would not take apart.
    """
    global _open, _library
    with _lock:
        _open += 1
        if _open == 1:
            _library = torch.library.Library("aten", "IMPL")
            for operator, implementation in COMPOSITES.items():
                _library.impl(operator, implementation, "AutogradCPU")
            # With a kernel of its own it keeps its formula of autograd; without, it is taken apart.
            _library.impl(aten._fused_rms_norm.default, norms.rms_norm, "CPU")
    before = _thread.ask, _thread.note
    _thread.ask, _thread.note = (lambda: gpu), note
    return before


def leave(before: tuple[Ask, Callable[[Any], None]]) -> None:
    """Take it back."""
    global _open, _library
    _thread.ask, _thread.note = before
    with _lock:
        _open -= 1
        if _open == 0:
            _library._destroy()
            _library = None


@contextmanager
def in_thread(gpu: Gpu, is_open: Callable[[], bool], note: Callable[[Any], None] = _unheard) -> Iterator[None]:
    """Let a further thread's operators be taken apart as on ``gpu`` while ``is_open()``."""
    _thread.ask, _thread.note = (lambda: gpu if is_open() else None), note
    try:
        yield
    finally:
        _thread.ask, _thread.note = _none, _unheard
