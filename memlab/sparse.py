"""Sparse tensors have no storage of their own: the tensors that they are made of have one each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_base: Any = torch._C.TensorBase
_layout = _base.layout.__get__
_ROWS = _base.crow_indices, _base.col_indices, _base.values
_COLUMNS = _base.ccol_indices, _base.row_indices, _base.values
_PARTS: dict[Any, tuple[Any, ...]] = {
    torch.sparse_coo: (_base._indices, _base._values),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}


def parts(tensor: Tensor) -> list[Tensor]:
    """Return indices and values of a sparse tensor, new Python objects on its own storages; none of a dense one."""
    try:
        found = _PARTS.get(_layout(tensor), ())
        with torch.no_grad():
            return [each(tensor) for each in found]
    except RuntimeError:  # a wrapper of torch.func, or a tensor of a subclass that has no memory
        return []
