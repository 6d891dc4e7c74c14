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
_METHODS, _FUNCTIONS = torch._C.TensorBase, torch._C._VariableFunctions

# Operators whose binding takes what their schema takes, in the same order, and can mean no other overload by it: the
# usual operators of linear layers, attention, norms and sums, forward and backward.
_METHOD_OF = {
    _aten.detach.default: "detach",
    _aten.view.default: "view",
    _aten.t.default: "t",
    _aten.transpose.int: "transpose",
    _aten.permute.default: "permute",
    _aten.select.int: "select",
    _aten.unsqueeze.default: "unsqueeze",
    _aten.squeeze.dim: "squeeze",
    _aten.expand.default: "expand",
    _aten.clone.default: "clone",
}
_FUNCTION_OF = {
    _aten.mm.default: "mm",
    _aten.bmm.default: "bmm",
    _aten.addmm.default: "addmm",
    _aten.add.Tensor: "add",
    _aten.sub.Tensor: "sub",
    _aten.mul.Tensor: "mul",
    _aten.div.Tensor: "div",
    _aten.sum.dim_IntList: "sum",
    _aten.relu.default: "relu",
    _aten._softmax.default: "_softmax",
    _aten.native_layer_norm.default: "native_layer_norm",
}
BINDINGS: dict[OpOverload, Callable[..., Any]] = {
    operator: getattr(where, name)
    for where, names in ((_METHODS, _METHOD_OF), (_FUNCTIONS, _FUNCTION_OF))
    for operator, name in names.items()
}


def call_of(operator: Any) -> Callable[..., Any]:
    """Return what runs ``operator``, called with its arguments."""
    if type(operator) is not OpOverload:
        return operator  # type: ignore[no-any-return]
    # What OpOverload.__call__ calls: one Python frame less.
    return BINDINGS.get(operator, operator._op)
