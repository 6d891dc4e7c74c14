"""What a run of the body left on the heap: read often, so the heap is kept small meanwhile."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memlab import graph
from memlab.guard.body import Body

Older = Callable[[], list[Tensor]]
_FROZEN = 10_000  # objects; Python 3.12 puts its few hundred immortal ones among the frozen, and torch alone is 100,000


@dataclass(frozen=True)
class Reading:
    """What is alive after one run.

    Attributes:
        bytes: of storages that bodies created, and of whatever their graphs keep, each once.
        scalars: of these, 0-dim tensors that lead to a graph: losses, the handles of what backward has freed already.
        nodes: autograd nodes that Python's tensors lead to.
    """

    bytes: int
    scalars: int
    nodes: int

    @property
    def counted(self) -> int:
        """What growth is judged by."""
        return self.bytes - self.scalars


@contextmanager
def small_heap() -> Iterator[Older]:
    """Let garbage collections and heap walks inside visit only what is made inside; ten times faster under torch.

    Yields what returns the older tensors that live. Older garbage stays until the end: it is a constant. Where somebody
    has frozen the heap already, it is left as it is.
    """
    if gc.get_freeze_count() > _FROZEN:
        yield list
        return
    older = [weakref.ref(tensor) for tensor in graph.tensors_among(gc.get_objects())]
    gc.freeze()
    try:
        yield lambda: [tensor for each in older if (tensor := each()) is not None]
    finally:
        gc.unfreeze()


def read(bodies: list[Body], older: Older) -> Reading:
    """Collect garbage, and read what is left of everything that ``bodies`` made."""
    gc.collect()
    found: dict[int, int] = {}
    for body in bodies:
        found |= body.seen.storages.ledger.live() | body.seen.saved.ledger.kept()
    tensors = older()
    scalars = sum(found[key] for key in _scalars(tensors) if key in found)
    return Reading(sum(found.values()), scalars, graph.count_live_nodes(tensors))


def _scalars(tensors: list[Tensor]) -> set[int]:
    """Return the storages of 0-dim tensors that lead to a graph, among ``tensors`` and on the heap."""
    found: set[int] = set()
    with torch._C.DisableTorchFunctionSubclass():
        for each in graph.tensors_among([*gc.get_objects(), *tensors]):
            if not each.dim() and each.requires_grad and not each.is_leaf:
                storage = each.untyped_storage()
                if storage.nbytes() == each.element_size():
                    found.add(int(storage._cdata))
    return found
