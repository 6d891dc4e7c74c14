"""Keep torch from freeing a deep graph recursively, once Python has seen its nodes.

From torch 2.13 on a node that Python has seen frees its successors inside its own destruction: 50,000 in a row overflow
the stack. So the graph is cut into bands by height (the longest way down to a leaf). Where an edge leads from one band
to a lower one, the upper node's metadata holds the lower node, and lets it go only after the upper node is gone. A node
keeps its successors alive anyway, so nothing lives longer, whatever shares the graph and in which order it goes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

BAND = 2_000  # nodes; at most two bands are freed recursively, and five times as many would be harmless


class _Thread(threading.local):
    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.busy = False


_thread = _Thread()


class Cut:
    """Lives in a node's metadata, dies with it, and lets the successors that it holds go after it, one at a time."""

    __slots__ = ("successors",)

    def __init__(self, successors: list[Any]) -> None:
        self.successors = successors

    def __del__(self) -> None:
        thread = _thread
        thread.waiting.extend(self.successors)
        self.successors = []
        if thread.busy:
            return
        thread.busy = True
        try:
            while thread.waiting:
                thread.waiting.pop()
        finally:
            thread.busy = False


def cut(nodes: Sequence[Any], following: Sequence[Sequence[int]], order: Sequence[int]) -> None:
    """Cut a graph in which ``nodes[i]`` leads to ``nodes[j]`` for each ``j`` in ``following[i]``.

    ``order`` has each node's number before those of all that it leads to.
    """
    heights = [1] * len(nodes)
    for number in reversed(order):
        below = following[number]
        if not below:
            continue
        if len(below) == 1:  # most nodes of a deep graph
            height = heights[number] = 1 + heights[below[0]]
            if height % BAND:
                continue
        else:
            height = heights[number] = 1 + max([heights[each] for each in below])
        lower = [each for each in below if height // BAND > heights[each] // BAND >= 1]
        if lower:
            nodes[number].metadata["memlab"] = Cut([nodes[each] for each in lower])
