"""Graphs that outlive the test that made them."""

from __future__ import annotations

from typing import Any

import torch

from memlab import graph

_LEAVES = 1 << 62  # AccumulateGrad's sequence number is 2**64 - 1: it belongs to a parameter, not to a graph

_sequence_nr = torch._C._autograd._get_sequence_nr


class Mark:
    """A moment; `left` tells the autograd nodes that were made after it and are alive.

    Nodes are numbered in the order in which a thread makes them. Another thread's numbers are its own, so what is alive
    at the mark is remembered, too: by number and name, for a reference would keep it alive.
    """

    def __init__(self) -> None:
        self._number = _sequence_nr()
        self._before = {_known_by(node) for node in graph.live_nodes() if node._sequence_nr() >= self._number}

    def left(self) -> int:
        """Return how many nodes, at most some thousands, tensors that Python can see lead to and are newer."""
        return sum(
            1
            for node in graph.live_nodes()
            if self._number <= node._sequence_nr() < _LEAVES and _known_by(node) not in self._before
        )


def _known_by(node: Any) -> tuple[int, str]:
    return node._sequence_nr(), node.name()
