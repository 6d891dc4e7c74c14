"""What ``torch.utils.checkpoint`` keeps outside the graph: the inputs from which it computes a region again.

A node of such a region keeps a `HOLDER` in the place of a tensor. The frame that has the inputs is only in the closure
of the function that would unpack it, and that function is never called here. Reentrant checkpoints need none of this:
their inputs are saved by a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch.utils.checkpoint
from torch import Tensor

from memlab.node_names import saved_fields

FILE = torch.utils.checkpoint.__file__
HOLDER: Any = getattr(torch.utils.checkpoint, "_Holder", None)
_FRAME: Any = getattr(torch.utils.checkpoint, "_CheckpointFrame", None)
_CACHE: Any = getattr(torch.utils.checkpoint, "_CachedTorchDispatchMode", None)
_SAVED: Any = torch._C._autograd.SavedTensor
_DEEPEST = 3  # functions around checkpoint's own: memlab's, and the one that explains errors


class Regions:
    """The checkpointed regions that one walk has met.

    Attributes:
        here: the frames, by ``id()``, of those that the node belongs to which was asked about last.
        caching: how many were met whose policy caches outputs of operators (selective checkpoint).
    """

    def __init__(self) -> None:
        self._met: set[int] = set()  # by id: the graph that is walked keeps them
        self.here: set[int] = set()
        self.caching = 0

    def inputs(self, node: Any) -> Iterator[tuple[str, Any]]:
        """Yield what is kept for the regions of ``node`` that were not met before, as `node_names.saved_by` would.

        A region within a region has its inputs computed again, too: then those of the outer one are yielded.
        """
        self.here = set()
        waiting = [raw for attribute, _ in saved_fields(type(node)) for raw in _saved_in(node, attribute)]
        while waiting:
            raw = waiting.pop()
            frame = _frame_of(getattr(raw, "unpack_hook", None))
            if frame is None:
                continue
            self.here.add(id(frame))
            if id(frame) in self._met:
                continue
            self._met.add(id(frame))
            self.caching += _caches(frame)
            for each in _inputs(frame):
                data = _data(each)
                if data is not None:
                    yield "", data
                    waiting.append(each)


def caches(unpack: Any) -> bool:
    """Whether an unpack hook is a checkpoint's whose policy keeps outputs of operators, in a cache of its own."""
    frame = _frame_of(unpack)
    return frame is not None and _caches(frame)


def _caches(frame: Any) -> bool:
    closure = getattr(frame.recompute_fn, "__closure__", None)
    return any(type(_content(cell)) is _CACHE for cell in closure or ())


def _inputs(frame: Any) -> list[Any]:
    saver = getattr(frame, "input_saver", None)  # up to torch 2.11 or 2.12: an output of a node of its own
    if isinstance(saver, Tensor) and saver.grad_fn is not None:
        return _saved_in(saver.grad_fn, "_raw_saved_tensors")
    return list(getattr(frame, "saved_args", ()))


def _saved_in(node: Any, attribute: str) -> list[Any]:
    try:
        raw = getattr(node, attribute)
    except RuntimeError:  # freed by backward
        return []
    return list(raw) if isinstance(raw, (tuple, list)) else [raw]


def _data(saved: Any) -> Any:
    try:
        return saved.data if type(saved) is _SAVED else None
    except RuntimeError:  # freed by backward
        return None


def _frame_of(unpack: Any, depth: int = _DEEPEST) -> Any:
    """Return checkpoint's frame in the closure of an unpack hook, None if it is no checkpoint's."""
    if type(unpack) is not FunctionType or not depth:
        return None
    held = [_content(cell) for cell in unpack.__closure__ or ()]
    frame = next((each for each in held if type(each) is _FRAME), None)
    return frame or next(filter(None, (_frame_of(each, depth - 1) for each in held)), None)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
