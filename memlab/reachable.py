"""The tensors that a function refers to before it is called."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

_NO_FURTHER = (type, ModuleType, FrameType, str, bytes, int, float)
MOST = 1_000_000  # objects looked at


def tensors_of(function: Callable[..., Any]) -> list[Tensor]:
    """Return the tensors that ``function`` reaches: closure, defaults, bound object, and the globals that it names."""
    todo: list[Any] = [function]
    seen: set[int] = set()
    found: list[Tensor] = []
    while todo and len(seen) < MOST:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, _NO_FURTHER):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
            if thing.grad is not None:
                todo.append(thing.grad)
        elif isinstance(thing, FunctionType):
            todo += _of_function(thing)
        elif isinstance(thing, MethodType):
            todo += [thing.__self__, thing.__func__]
        else:
            todo += gc.get_referents(thing)
    return found


def _of_function(function: FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    named = [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    return [*cells, *named, function.__defaults__, function.__kwdefaults__]
