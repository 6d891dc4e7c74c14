"""Python's heap at one moment: which objects hold which, found backwards without a loop over every reference."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlab.ownership import look

_CHUNK = 512
_BITS = 20
_HASHES = 1 << _BITS
# Python 3.12's _asyncio shows the collector its list of freed futures' iterators. A reference to one of them, as
# gc.get_referents makes, frees it a second time: the list becomes a ring, and the next collection never ends.
_REVIVES = sys.version_info[:2] == (3, 12)


class Heap:
    """Every object that Python's garbage collector tracks, and the identities of all that they refer to.

    References are read in C, a chunk of objects at a time (``gc.get_referents``), and kept as numbers; which object of
    a chunk holds what is only asked of chunks that can answer. No user code runs.

    Args:
        objects: what ``gc.get_objects()`` returned, before this object was made: else it would hold itself.
        without: identities of objects that do not count: the caller's own.
    """

    def __init__(self, objects: list[Any], without: Iterable[int] = ()) -> None:
        if _REVIVES:
            objects[:] = [each for each in objects if type(each) is not ModuleType or not _is_asyncio(each)]
        self.objects = objects
        self.without = {id(objects), *without}
        parts = []
        for start in range(0, len(self.objects), _CHUNK):
            parts.append(_ids(gc.get_referents(*self.objects[start : start + _CHUNK])))
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._ids: NDArray[np.intp] = np.concatenate(parts) if parts else np.zeros(0, np.intp)
        del parts
        self._hashes = _hash(self._ids)
        # Now, before the search itself holds anything but the list.
        self._references = np.fromiter(map(sys.getrefcount, objects), dtype=np.intp, count=len(objects))
        self._references -= next(map(sys.getrefcount, [object()]))

    def holders(self, targets: set[int]) -> list[tuple[Any, list[int]]]:
        """Return every object that refers to one of ``targets``, with the targets that it refers to."""
        found = []
        chunks = np.searchsorted(self._starts, self._places(targets), "right") - 1
        for chunk in chunks[np.flatnonzero(np.diff(chunks, prepend=-1))].tolist():
            for thing in self.objects[chunk * _CHUNK : (chunk + 1) * _CHUNK]:
                held = dict.fromkeys(filter(targets.__contains__, map(id, gc.get_referents(thing))))
                if held and id(thing) not in self.without:
                    found.append((thing, list(held)))
        return found

    def count(self, targets: set[int]) -> dict[int, int]:
        """Return how many references to each of ``targets`` tracked objects hold."""
        ids, counts = np.unique(self._ids[self._places(targets)], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def references(self, targets: set[int]) -> dict[int, int]:
        """Return how many references there are to each of ``targets``, whoever holds them."""
        ids = _ids(self.objects)
        places = np.flatnonzero(np.isin(ids, np.fromiter(targets, dtype=np.intp, count=len(targets))))
        return dict(zip(ids[places].tolist(), self._references[places].tolist(), strict=True))

    def _places(self, targets: set[int]) -> NDArray[np.intp]:
        """Return where in all references one of ``targets`` stands, in ascending order."""
        wanted = np.fromiter(targets, dtype=np.intp, count=len(targets))
        table = np.zeros(_HASHES, dtype=np.bool_)
        table[_hash(wanted)] = True
        places: NDArray[np.intp] = np.flatnonzero(table[self._hashes])
        ids = self._ids[places]
        wanted.sort()
        found: NDArray[np.intp] = places[wanted.take(np.searchsorted(wanted, ids), mode="clip") == ids]
        return found


def _is_asyncio(module: ModuleType) -> bool:
    name = (look.dict_of(module) or {}).get("__name__")
    return type(name) is str and name == "_asyncio"


def _ids(things: list[Any]) -> NDArray[np.intp]:
    """Return ``id()`` of each: what an array of objects consists of."""
    array = np.fromiter(things, dtype=np.object_, count=len(things))
    ids: NDArray[np.intp] = np.frombuffer(array, dtype=np.intp).copy()
    return ids


def _hash(ids: NDArray[np.intp]) -> NDArray[np.uint32]:
    hashes: NDArray[np.uint32] = ((ids >> 4) & (_HASHES - 1)).astype(np.uint32)
    return hashes
