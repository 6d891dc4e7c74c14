"""What is seen of a custom autograd.Function: the frame of its ``apply``, and attributes that it sets on its ``ctx``.

The frame says for which Function a tensor is saved. Up to torch 2.13 ``apply`` is Python code and its frame is there to
read. From 2.14 on it is C++; so while a ledger is open a Python function stands in its place, which does nothing but
call it. Attributes of a ``ctx`` are set as without memlab, and whoever asked hears of those that hold tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor

_function: Any = torch.autograd.Function
_torchs: Any = vars(_function)["apply"]
_IN_PYTHON = isinstance(_torchs, classmethod)
_context: Any = torch.autograd.function.BackwardCFunction
_TORCHS_OWN = frozenset(dir(torch._C._FunctionBase))  # what save_for_backward and its like set
_DEEPEST = 3  # containers in containers


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    return _torchs.__get__(None, cls)(*args, **kwargs)


_apply.__name__ = _apply.__qualname__ = "apply"  # by its name torch.compile knows it
APPLY: CodeType = _torchs.__func__.__code__ if _IN_PYTHON else _apply.__code__


def show(keeps: Callable[[str, str], None]) -> None:
    """Let ``apply`` have a frame, in all threads; ``keeps`` hears which Function keeps tensors in which attribute."""
    if not _IN_PYTHON:
        _function.apply = classmethod(_apply)

    def set_attribute(ctx: Any, name: str, value: Any) -> None:
        object.__setattr__(ctx, name, value)
        if name not in _TORCHS_OWN and _holds_tensor(value):
            keeps(type(ctx)._forward_cls.__name__, name)

    _context.__setattr__ = set_attribute


def leave() -> None:
    """Put torch's own back."""
    if not _IN_PYTHON:
        _function.apply = _torchs
    del _context.__setattr__


def tensors_on(ctx: Any) -> bool:
    """Whether a node is a custom Function's that keeps tensors as attributes, outside of what it saves."""
    return issubclass(type(ctx), _context) and any(map(_holds_tensor, vars(ctx).values()))


def _holds_tensor(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a value is a tensor, or has some in tuples, lists and dicts; by types alone, which runs no code of it."""
    kind = type(value)
    if issubclass(kind, Tensor):
        return True
    if kind is dict:
        return depth > 0 and any(_holds_tensor(each, depth - 1) for each in value.values())
    return kind in (tuple, list) and depth > 0 and any(_holds_tensor(each, depth - 1) for each in value)
