"""Find the owners of the autograd graphs that are alive."""

from __future__ import annotations

import torch
from torch import Tensor

from memlab.node_names import READS_PACKED
from memlab.ownership.owner import Owner
from memlab.ownership.survey import survey
from memlab.unavailable import Unavailable

SECONDS = 2.0


def owners(tensor: Tensor | None = None, *, limit: int | None = None, seconds: float | None = SECONDS) -> list[Owner]:
    """Return the Python names that keep autograd graphs alive, those that alone keep most first.

    Takes a look at Python's whole heap, so it is not for hot paths: about a second for a million objects. It runs no
    code of the objects that it looks at, unpacks nothing, and keeps nothing alive. Graphs are read for as long as the
    whole can be expected to take no more than ``seconds``, 20,000 nodes in any case; of more tensors than can be
    followed in that time, at least 20,000, some stand for all. Owners say if something was left out
    (`Owner.complete`).

    Args:
        tensor: only the owners that keep this tensor's graph alive; of a tensor without a graph, who holds the tensor.
        limit: at most so many.
        seconds: how long it may take; None to follow every tensor and read every graph to its end, however long.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: a ``limit`` below one, or ``seconds`` that are not a positive number.
        Unavailable: this torch cannot show what a node keeps without running unpack hooks (2.6).
    """
    if tensor is not None and not isinstance(tensor, Tensor):
        raise TypeError(f"owners() takes one tensor, such as a loss, or nothing, not {type(tensor).__name__}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be more than 0, or None for no bound, got {seconds}")
    if not READS_PACKED:
        raise Unavailable(f"torch {torch.__version__} cannot show what a node keeps without running unpack hooks")
    return survey(tensor, seconds=seconds).owners[:limit]
