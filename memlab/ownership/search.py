"""Find the owners of the autograd graphs that are alive."""

from __future__ import annotations

import torch
from torch import Tensor

from memlab import graph
from memlab.ownership.owner import Owner
from memlab.ownership.survey import survey
from memlab.unavailable import Unavailable


def owners(tensor: Tensor | None = None, *, limit: int | None = None) -> list[Owner]:
    """Return the Python names that keep autograd graphs alive, those that alone keep most first.

    Takes a look at Python's whole heap, so it is not for hot paths: about a second for a million objects. It runs no
    code of the objects that it looks at, unpacks nothing, and keeps nothing alive.

    Args:
        tensor: only the owners that keep this tensor's graph alive; of a tensor without a graph, who holds the tensor.
        limit: at most so many.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: a ``limit`` below one.
        Unavailable: this torch cannot show what a node keeps without running unpack hooks (2.6).
    """
    if tensor is not None and not isinstance(tensor, Tensor):
        raise TypeError(f"owners() takes one tensor, such as a loss, or nothing, not {type(tensor).__name__}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not graph.READS_PACKED:
        raise Unavailable(f"torch {torch.__version__} cannot show what a node keeps without running unpack hooks")
    return survey(tensor).owners[:limit]
