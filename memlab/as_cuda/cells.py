"""LSTM and GRU cells: on CUDA one kernel does the gates and keeps them (native/cuda/RNN.cu), not a graph."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def lstm_cell(
    gates: Tensor, more: Tensor, cell: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Stand in for aten._thnn_fused_lstm_cell: hidden state, cell state, and the gates as they are kept."""
    total = gates + more
    if bias is not None and other is not None:
        total = total + bias + other
    enter, forget, new, out = total.chunk(4, 1)
    enter, forget, new, out = enter.sigmoid(), forget.sigmoid(), new.tanh(), out.sigmoid()
    after = forget * cell + enter * new
    return out * after.tanh(), after, torch.cat((enter, forget, new, out), 1)


def lstm_cell_backward(
    grad: Tensor | None, grad_cell: Tensor | None, cell: Tensor, after: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stand in for aten._thnn_fused_lstm_cell_backward_impl."""
    enter, forget, new, out = gates.chunk(4, 1)
    grad = torch.zeros_like(after) if grad is None else grad
    shown = after.tanh()
    by_after = grad * out * (1 - shown * shown)
    by_after = by_after if grad_cell is None else by_after + grad_cell
    by_gates = (
        by_after * new * enter * (1 - enter),
        by_after * cell * forget * (1 - forget),
        by_after * enter * (1 - new * new),
        grad * shown * out * (1 - out),
    )
    found = torch.cat(by_gates, 1)
    return found, by_after * forget, found.sum(0) if has_bias else None


def gru_cell(
    gates: Tensor, more: Tensor, hidden: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Stand in for aten._thnn_fused_gru_cell: hidden state, and what is kept, five times its size."""
    gates = gates if bias is None else gates + bias
    more = more if other is None else more + other
    (reset, update, new), (by_reset, by_update, kept) = gates.chunk(3, 1), more.chunk(3, 1)
    reset, update = (reset + by_reset).sigmoid(), (update + by_update).sigmoid()
    new = (new + reset * kept).tanh()
    return new + update * (hidden - new), torch.cat((reset, update, new, hidden, kept), 1)


def gru_cell_backward(grad: Tensor, kept: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Stand in for aten._thnn_fused_gru_cell_backward."""
    reset, update, new, hidden, by_new = kept.chunk(5, 1)
    to_update = grad * (hidden - new) * (1 - update) * update
    to_new = grad * (1 - update) * (1 - new * new)
    to_reset = to_new * by_new * (1 - reset) * reset
    gates = torch.cat((to_reset, to_update, to_new), 1)
    more = torch.cat((to_reset, to_update, to_new * reset), 1)
    return gates, more, grad * update, *((gates.sum(0), more.sum(0)) if has_bias else (None, None))


STAND_INS = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}
