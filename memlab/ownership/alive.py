"""Tell what only a reference cycle holds, as Python's garbage collector would."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from memlab.ownership import frames, look
from memlab.ownership.climb import Climb
from memlab.ownership.heap import Heap

_DEEPEST, _MOST = 12, 5_000


class Garbage:
    """Judges objects: garbage is what no running frame and no module leads to, and nothing outside Python holds."""

    def __init__(self, heap: Heap, climb: Climb) -> None:
        self._heap, self._climb = heap, climb
        self._running = {identity for frame in frames.running() for _, identity in frames.slots(frame)}
        self._known: dict[int, bool] = {}

    def is_garbage(self, thing: Any) -> bool:
        """Climb from ``thing``; not garbage as soon as something alive holds it, or if the way up is too long."""
        if id(thing) not in self._known:
            self._known[id(thing)] = self._judge(thing)
        return self._known[id(thing)]

    def _judge(self, thing: Any) -> bool:
        above = {id(thing): thing}
        level = {id(thing)}
        for _ in range(_DEEPEST):
            if level & self._running or len(above) > _MOST:
                return False
            fresh: dict[int, Any] = {}
            # Looking at an object may have made its __dict__ since: what was found on the climb still holds.
            found = self._heap.holders(level).things
            found += [self._climb.things[holder] for each in level for holder in self._climb.up[each]]
            for holder in found:
                if look.is_a(holder, ModuleType):
                    return False
                if id(holder) not in above:
                    fresh[id(holder)] = holder
            if not fresh:
                return self.only_each_other(above)
            above |= fresh
            level = set(fresh)
        return False

    def only_each_other(self, things: Iterable[int]) -> bool:
        """Whether all references to these objects (by ``id()``) come from objects that the collector tracks."""
        things = set(things)
        counted, references = self._heap.count(things), self._heap.references(things)
        return all(each in references and references[each] <= counted.get(each, 0) for each in things)
