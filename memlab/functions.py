"""The frame of ``autograd.Function.apply``, which says for which custom Function a tensor is saved.

Up to torch 2.13 ``apply`` is Python code and its frame is there to read. From 2.14 on it is C++; so while a ledger is
open a Python function stands in its place, which does nothing but call it.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

import torch

_function: Any = torch.autograd.Function
_torchs: Any = vars(_function)["apply"]
_IN_PYTHON = isinstance(_torchs, classmethod)


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    return _torchs.__get__(None, cls)(*args, **kwargs)


_apply.__name__ = _apply.__qualname__ = "apply"  # by its name torch.compile knows it
APPLY: CodeType = _torchs.__func__.__code__ if _IN_PYTHON else _apply.__code__


def show() -> None:
    """Let ``apply`` have a frame, in all threads."""
    if not _IN_PYTHON:
        _function.apply = classmethod(_apply)


def leave() -> None:
    """Put torch's own back."""
    if not _IN_PYTHON:
        _function.apply = _torchs
