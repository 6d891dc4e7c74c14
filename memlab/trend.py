"""Whether a series of readings grows, and by how much a step; integers in, no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def rises(series: Sequence[int]) -> bool:
    """Tell growth from a plateau, a single jump (a cache that fills once) and a sawtooth.

    The ceiling rises from each third to the next, the floor never falls and ends higher, and the slope is positive.
    """
    size = max(1, len(series) // 3)
    thirds = [series[:size], series[size:-size] or series[-size:], series[-size:]]
    floors, ceilings = [min(part) for part in thirds], [max(part) for part in thirds]
    climbs = ceilings[0] < ceilings[-1] if len(series) < 3 else ceilings[0] < ceilings[1] < ceilings[2]
    return climbs and floors[0] <= floors[1] <= floors[2] and floors[0] < floors[2] and slope(series) > 0


def slope(series: Sequence[int]) -> int:
    """Theil-Sen: the median of the slopes of all pairs, which a few odd steps do not move."""
    pairs = [(b - a) / (j - i) for i, a in enumerate(series) for j, b in enumerate(series) if i < j]
    return round(statistics.median(pairs)) if pairs else 0
