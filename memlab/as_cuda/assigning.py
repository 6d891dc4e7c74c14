"""``x[...] = 3.0``: the number becomes a tensor of the host, also for an x on CUDA, and where a mask says is filled.

Source: THPVariable_setitem in torch/csrc/autograd/python_variable_indexing.cpp, and canDispatchToMaskedFill in
aten/src/ATen/native/TensorAdvancedIndexing.h.
"""

from __future__ import annotations

import dis
import weakref
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_STORES = {dis.opmap[name] for name in ("STORE_SUBSCR", "STORE_SLICE") if name in dis.opmap}
_MASKS = (torch.bool, torch.uint8)


class Assigned:
    """The number that was assigned last in this thread, as a tensor."""

    def __init__(self) -> None:
        self._storage: Any = None

    def see(self, out: Tensor, frame: FrameType | None) -> bool:
        """Tell whether ``out``, which torch made of a Python value in this frame, is such a number; remember it."""
        if out.dim() or frame is None or frame.f_code.co_code[frame.f_lasti] not in _STORES:
            return False
        self._storage = weakref.ref(out.untyped_storage())
        return True

    def __contains__(self, tensor: Tensor) -> bool:
        return self._storage is not None and self._storage() is tensor.untyped_storage()


def fills(indices: Sequence[Tensor | None]) -> bool:
    """Whether a number at these indices is filled in: there is one mask, and nothing else but whole dimensions."""
    given = [each for each in indices if each is not None]
    return len(given) == 1 and given[0].dtype in _MASKS
