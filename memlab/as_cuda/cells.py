"""LSTM cells: on CUDA one kernel does the gates and keeps them (native/cuda/RNN.cu); on the CPU it is a graph."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def lstm_cell(
    gates: Tensor, more: Tensor, cell: Tensor, bias: Tensor | None, other: Tensor | None
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


STAND_INS = {
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}
