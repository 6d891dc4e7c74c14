"""Why a tensor, or everything at an OutOfMemoryError, is alive: a bill and its owners, as plain data."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memlab import billing
from memlab.node_names import READS_PACKED
from memlab.tracing import holders, makeup
from memlab.tracing.trace import Held, Moment


@dataclass
class Explanation:
    """What one tensor keeps, or what all graphs keep.

    Attributes:
        what: the tensor in words, or empty for everything.
        moment: the bytes kept for backward, in rows that add up to ``moment.saved``; after an OutOfMemoryError also
            the classes of all tensors that Python code can see.
        nodes: autograd nodes that it leads to.
        unseen: ``{node: count}`` whose saved tensors cannot be read from Python.
        owners: who holds it.
        error: the OutOfMemoryError's text.
        devices: ``{device: bytes}`` allocated there, as torch counts them; CUDA only.
    """

    what: str
    moment: Moment
    nodes: int = 0
    unseen: dict[str, int] = field(default_factory=dict)
    owners: list[Held] = field(default_factory=list)
    error: str = ""
    devices: dict[str, int] = field(default_factory=dict)


def of_tensor(tensor: Tensor) -> Explanation:
    """Explain one tensor. Raises TypeError and Unavailable as `memlab.bill` does."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"explain() takes one tensor, such as a loss, not {type(tensor).__name__}")
    bill = billing.bill(tensor)
    rows = makeup.rows_of(bill.lines)
    moment = Moment(0, sum(row.bytes for row in rows), rows=rows)
    node = tensor.grad_fn.name() if tensor.grad_fn is not None else "no graph"
    shape = "x".join(map(str, tensor.shape)) or "a number"
    what = f"{type(tensor).__name__} ({shape}, {str(tensor.dtype).removeprefix('torch.')}, {tensor.device}) -> {node}"
    return Explanation(what, moment, bill.nodes, bill.unseen, holders.find(0, tensor=tensor))


def of_oom(error: BaseException) -> Explanation:
    """Explain what is alive while ``error``, with the frames in its traceback, still is."""
    bill, keys = _everything()
    rows = makeup.rows_of(bill.lines)
    seen = makeup.seen_by_python()
    totals, plain = makeup.classed({key: nbytes for key, nbytes in seen.items() if key not in keys})
    for line in bill.lines:
        totals[line.kind] += line.bytes
    moment = Moment(0, sum(row.bytes for row in rows), totals.total(), rows, dict(totals.most_common()))
    owners = holders.find(0, error=error, made=plain)
    return Explanation("", moment, bill.nodes, bill.unseen, owners, str(error), _devices())


def _everything() -> tuple[billing.Bill, set[int]]:
    """Return the bill of all graphs to which tensors that Python code can see lead."""
    if not READS_PACKED:
        return billing.Bill([], 0), set()
    with torch._C.DisableTorchFunctionSubclass():
        # What else is held here while the graphs are read would count as held by Python code.
        roots = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing.grad_fn is not None]
        return billing.survey(roots)


def _devices() -> dict[str, int]:
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {f"cuda:{index}": torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count())}
