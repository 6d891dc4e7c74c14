"""The stack of saved-tensor hooks of this thread: push, pop, and a look at the innermost pair.

torch 2.6 has no way to look; there the pushes and pops of Python code are noted from the moment memlab is imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

Pair = tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]

autograd: Any = torch._C._autograd
push = autograd._push_saved_tensors_default_hooks  # torch's own, before memlab.hooks replaces them for a while
pop = autograd._pop_saved_tensors_default_hooks


class _Noted(threading.local):
    def __init__(self) -> None:
        self.pairs: list[Pair] = []


if hasattr(autograd, "_top_saved_tensors_default_hooks"):

    def top() -> Pair | None:
        """Return the innermost pair of this thread, None if there is none."""
        pair: Pair | None = autograd._top_saved_tensors_default_hooks(True)
        return pair

else:
    _noted = _Noted()
    _push, _pop = push, pop

    def push(pack: Any, unpack: Any) -> None:
        _push(pack, unpack)
        _noted.pairs.append((pack, unpack))

    def pop() -> None:
        _pop()
        del _noted.pairs[-1:]

    def top() -> Pair | None:
        """Return the innermost pair of this thread, None if there is none."""
        return _noted.pairs[-1] if _noted.pairs else None

    autograd._push_saved_tensors_default_hooks = push
    autograd._pop_saved_tensors_default_hooks = pop


def drop_all() -> list[Pair]:
    """Take every pair of this thread off and return them, innermost first."""
    dropped: list[Pair] = []
    while (pair := top()) is not None:
        pop()
        dropped.append(pair)
    return dropped


def put_back(pairs: list[Pair]) -> None:
    """Push pairs that were taken off, innermost first."""
    for pack, unpack in reversed(pairs):
        push(pack, unpack)
