"""Sets of owners as numbers: each owner is a bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


def by_owner(masks: Iterable[int]) -> dict[int, list[int]]:
    """Return for each owner, as a bit, the sets of owners that it is in."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for mask in masks:
        for bit in bits(mask):
            found[bit].append(mask)
    return found
