"""The quick way to run an operator once more from within a dispatch mode: torch's own Python bindings.

``OpOverload.__call__`` has its arguments matched against a schema and put on the interpreter's stack; the generated
function behind ``torch.mm`` (python_torch_functions, python_variable_methods) parses them into C++ arguments and calls
the same operator. That takes 0.1x to 0.4x of a small step off what a watch costs: results/overhead.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

_aten = torch.ops.aten
_tensor: Any = torch._C.TensorBase
_torch: Any = torch._C._VariableFunctions

# Operators whose binding takes what their schema takes, in the same order, and can mean no other overload by it: the
# usual operators of linear layers, attention, norms and sums, forward and backward.
BINDINGS: dict[OpOverload, Callable[..., Any]] = {
    _aten.detach.default: _tensor.detach,
    _aten.view.default: _tensor.view,
    _aten.t.default: _tensor.t,
    _aten.transpose.int: _tensor.transpose,
    _aten.permute.default: _tensor.permute,
    _aten.select.int: _tensor.select,
    _aten.unsqueeze.default: _tensor.unsqueeze,
    _aten.squeeze.dim: _tensor.squeeze,
    _aten.expand.default: _tensor.expand,
    _aten.clone.default: _tensor.clone,
    _aten.mm.default: _torch.mm,
    _aten.bmm.default: _torch.bmm,
    _aten.addmm.default: _torch.addmm,
    _aten.add.Tensor: _torch.add,
    _aten.sub.Tensor: _torch.sub,
    _aten.mul.Tensor: _torch.mul,
    _aten.div.Tensor: _torch.div,
    _aten.sum.dim_IntList: _torch.sum,
    _aten.relu.default: _torch.relu,
    _aten._softmax.default: _torch._softmax,
    _aten.native_layer_norm.default: _torch.native_layer_norm,
}


def call_of(operator: Any) -> Callable[..., Any]:
    """Return what runs ``operator``, called with its arguments."""
    if type(operator) is not OpOverload:
        return operator  # type: ignore[no-any-return]
    # What OpOverload.__call__ calls: one Python frame less.
    return BINDINGS.get(operator, operator._op)
