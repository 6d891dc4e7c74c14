"""Spread sets of names over all that their containers hold: a level of alike objects in one step, however many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memlab.ownership.heap import Ids

_FEW = 64  # so many links are followed one by one rather than all at once: a long chain has few at each step


def spread(masks: dict[int, int], holders: Ids, held: Ids) -> dict[int, int]:
    """Return ``masks`` (bits by ``id()``) of all that these objects lead to: ``holders[i]`` holds ``held[i]``."""
    ids, numbers = np.unique(np.concatenate([holders, held]), return_inverse=True)
    links = _Spread(len(ids), *np.split(numbers, 2))
    starts = np.flatnonzero(np.isin(ids, list(masks)))
    links.sets_of[starts] = [links.sets.number(masks[each]) for each in ids[starts].tolist()]
    waiting = starts.tolist()
    while waiting:
        links.walk(waiting)
        waiting = links.leap(waiting)
    reached = links.sets_of > 0
    found = map(links.sets.masks.__getitem__, links.sets_of[reached].tolist())
    return masks | dict(zip(ids[reached].tolist(), found, strict=True))


class _Spread:
    """The set of each object, by number, while sets spread from those whose set has changed to what they hold."""

    def __init__(self, count: int, above: Ids, below: Ids) -> None:
        order = np.argsort(above, kind="stable")
        self._below = below[order]
        self._starts = np.searchsorted(above[order], np.arange(count + 1))
        self.sets, self.sets_of = _Sets(), np.zeros(count, np.intp)

    def walk(self, waiting: list[int]) -> None:
        """Go on one by one, until many are waiting or one holds many."""
        sets, sets_of = self.sets, self.sets_of
        while waiting and len(waiting) < _FEW:
            each = waiting[-1]
            start, end = self._starts[each], self._starts[each + 1]
            if end - start >= _FEW:
                return
            waiting.pop()
            mask = sets.masks[sets_of[each]]
            for held in self._below[start:end].tolist():
                known = sets.masks[sets_of[held]]
                if mask & ~known:
                    sets_of[held] = sets.number(mask | known)
                    waiting.append(held)

    def leap(self, waiting: list[int]) -> list[int]:
        """Go on from all at once, by one step; return those whose sets have changed."""
        holders = np.array(waiting, np.intp)
        counts = self._starts[holders + 1] - self._starts[holders]
        links = np.arange(counts.sum()) + np.repeat(self._starts[holders] - np.cumsum(counts) + counts, counts)
        targets, found = self._below[links], np.repeat(self.sets_of[holders], counts)
        order = np.argsort(targets, kind="stable")
        targets, found = self.sets.unite(targets[order], found[order])
        united = self.sets.both(self.sets_of[targets], found)
        changed = targets[united != self.sets_of[targets]]
        self.sets_of[targets] = united
        several: list[int] = changed.tolist()
        return several


class _Sets:
    """Each set of bits that has come up, under a number: many objects have the same."""

    def __init__(self) -> None:
        self.masks = [0]
        self._numbers = {0: 0}

    def number(self, mask: int) -> int:
        number = self._numbers.setdefault(mask, len(self.masks))
        if number == len(self.masks):
            self.masks.append(mask)
        return number

    def unite(self, targets: Ids, sets: Ids) -> tuple[Ids, Ids]:
        """Return each target once, with all its sets as one; a target's sets stand together."""
        while True:
            first = np.diff(targets, prepend=-1) != 0
            if first.all():
                return targets, sets
            starts = np.flatnonzero(first)
            even = (np.arange(len(targets)) - np.repeat(starts, np.diff(starts, append=len(targets)))) % 2 == 0
            pairs = np.flatnonzero(even[:-1] & ~even[1:])
            sets[pairs] = self.both(sets[pairs], sets[pairs + 1])
            targets, sets = targets[even], sets[even]

    def both(self, one: Ids, other: Ids) -> Ids:
        """Return the numbers of the unions, pair by pair."""
        several = len(self.masks)
        pairs, place = np.unique(one * several + other, return_inverse=True)
        unions = [self.number(self.masks[pair // several] | self.masks[pair % several]) for pair in pairs.tolist()]
        found: NDArray[np.intp] = np.array(unions, np.intp)[place]
        return found
