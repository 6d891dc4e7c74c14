"""Autograd nodes alive at the ends of a few steps: they pile up where no bytes do, as under ``total += loss``."""

from __future__ import annotations

from memlab import graph

_FIRST = 4  # a step; then those of its doubles
_ENOUGH = 3  # counts that a verdict needs
_FULL = 2 * graph.SHALLOW  # nodes: counting stops there


class Nodes:
    """Counts nodes that live Python tensors lead to; a count walks the heap."""

    def __init__(self) -> None:
        self._counts: list[tuple[int, int]] = []
        self._is_full = False

    def is_due(self, step: int) -> bool:
        """Whether a count at the end of ``step`` would tell more."""
        return not self._is_full and step >= _FIRST and not step & (step - 1)

    @property
    def needs_more(self) -> bool:
        """Whether there are too few counts for a verdict."""
        return len(self._counts) < _ENOUGH

    def count(self, step: int) -> None:
        """Count now, at the end of ``step``."""
        self.add(step, graph.count_live_nodes())

    def add(self, step: int, nodes: int) -> None:
        """Take note of so many nodes at the end of ``step``."""
        self._is_full = nodes >= _FULL
        if not self._is_full:
            self._counts.append((step, nodes))

    @property
    def per_step(self) -> int:
        """How many nodes each step leaves; 0 unless every count is higher, and still at half the first pace."""
        if self.needs_more:
            return 0
        pairs = zip(self._counts, self._counts[1:], strict=False)
        paces = [(nodes - before) / (step - earlier) for (earlier, before), (step, nodes) in pairs]
        if min(paces) < 1 or paces[-1] < paces[0] / 2:
            return 0
        (first, least), (last, most) = self._counts[0], self._counts[-1]
        return round((most - least) / (last - first))
