"""Wrapper subclasses (``torch.Tensor._make_wrapper_subclass``), such as DTensor: their inner tensors have the memory.

A wrapper's own storage has a size and no memory. What a subclass tells torch.compile with ``__tensor_flatten__`` says
where its inner tensors are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.parameter import Parameter

PLAIN = (Tensor, Parameter)  # the very types: no subclass has a say
_DEEPEST = 8  # wrappers in wrappers


def hides(tensor: Tensor) -> bool:
    """Whether it is a wrapper that does not say where its data is."""
    kind = type(tensor)
    if kind in PLAIN or kind is FakeTensor or kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return False
    try:
        storage = tensor.untyped_storage()
        return storage.nbytes() > 0 and not storage.data_ptr()
    except (NotImplementedError, RuntimeError):  # a wrapper's storage has no pointer to give
        return True


def inner(tensor: Any, depth: int = _DEEPEST) -> list[Tensor]:
    """Return the tensors in which a wrapper keeps its data; none of what is no wrapper, or does not say."""
    if type(tensor) in PLAIN or not hasattr(type(tensor), "__tensor_flatten__"):
        return []
    try:
        names, _ = tensor.__tensor_flatten__()
        parts = [getattr(tensor, name) for name in names]
    except Exception:  # the subclass's own code; what it would raise here is not the program's error
        return []
    found: list[Tensor] = []
    for each in parts:
        within = inner(each, depth - 1) if depth else []
        found += within or [each] * isinstance(each, Tensor)
    return found
