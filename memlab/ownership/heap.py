"""Python's heap at one moment: which objects hold which, found backwards without a loop over every reference."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, compress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlab.ownership import look

Ids = NDArray[np.intp]
_NONE = np.zeros(0, np.intp)
_CHUNK = 512
_BITS = 20
_HASHES = 1 << _BITS
# Python 3.12's _asyncio shows the collector its list of freed futures' iterators. A reference to one of them, as
# gc.get_referents makes, frees it a second time: the list becomes a ring, and the next collection never ends.
_REVIVES = sys.version_info[:2] == (3, 12)


@dataclass
class Holders:
    """Objects, and which of those asked about each refers to: ``things[places[i]]`` to what has the id ``held[i]``.

    ``ids`` are those of the things. Links of one thing stand together, in the order in which it shows them.
    """

    things: list[Any]
    ids: Ids
    places: Ids
    held: Ids

    def only(self, wanted: NDArray[np.bool_]) -> Holders:
        """Return those of the things for which ``wanted`` says so."""
        links = wanted[self.places]
        things = list(compress(self.things, wanted.tolist()))
        places = (np.cumsum(wanted) - 1)[self.places[links]]
        return Holders(things, self.ids[wanted], places, self.held[links])

    def pairs(self) -> list[tuple[Any, list[int]]]:
        """Return each thing with what it refers to, each once."""
        found: list[tuple[Any, dict[int, None]]] = [(each, {}) for each in self.things]
        for place, each in zip(self.places.tolist(), self.held.tolist(), strict=True):
            found[place][1][each] = None
        return [(each, list(held)) for each, held in found]


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
        self._ids: Ids = np.concatenate(parts) if parts else _NONE
        del parts
        self._hashes = _hash(self._ids)
        self._chunks: dict[int, tuple[Ids, Ids]] = {}
        # Now, before the search itself holds anything but the list.
        self._references = np.fromiter(map(sys.getrefcount, objects), dtype=np.intp, count=len(objects))
        self._references -= next(map(sys.getrefcount, [object()]))

    def holders(self, targets: set[int]) -> Holders:
        """Return every object that refers to one of ``targets``, and to which."""
        chunks = np.searchsorted(self._starts, self._places(self._ids, self._hashes, targets), "right") - 1
        several, parts, counts = [], [_NONE], [_NONE]
        for chunk in chunks[np.flatnonzero(np.diff(chunks, prepend=-1))].tolist():
            several += self.objects[chunk * _CHUNK : (chunk + 1) * _CHUNK]
            part, count = self._read(chunk)
            parts.append(part)
            counts.append(count)
        ends, ids = np.cumsum(np.concatenate(counts)), np.concatenate(parts)
        places = self._places(ids, _hash(ids), targets)
        sources = np.searchsorted(ends, places, "right")
        first = np.diff(sources, prepend=-1) != 0
        things = list(map(several.__getitem__, sources[first].tolist()))
        found = Holders(things, _ids(things), np.cumsum(first) - 1, ids[places])
        own = np.isin(found.ids, list(self.without))
        return found.only(~own) if own.any() else found

    def _read(self, chunk: int) -> tuple[Ids, Ids]:
        """Return the ids of all that the objects of a chunk refer to, in their order, and how many those of each are.

        Read once: several levels of a climb lie in one chunk, and looking at an object may make its ``__dict__``.
        """
        if chunk not in self._chunks:
            held = list(map(gc.get_referents, self.objects[chunk * _CHUNK : (chunk + 1) * _CHUNK]))
            count = np.fromiter(map(len, held), dtype=np.intp, count=len(held))
            self._chunks[chunk] = _ids(list(chain.from_iterable(held))), count
        return self._chunks[chunk]

    def count(self, targets: set[int]) -> dict[int, int]:
        """Return how many references to each of ``targets`` tracked objects hold."""
        ids, counts = np.unique(self._ids[self._places(self._ids, self._hashes, targets)], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def references(self, targets: set[int]) -> dict[int, int]:
        """Return how many references there are to each of ``targets``, whoever holds them."""
        ids = _ids(self.objects)
        places = np.flatnonzero(np.isin(ids, np.fromiter(targets, dtype=np.intp, count=len(targets))))
        return dict(zip(ids[places].tolist(), self._references[places].tolist(), strict=True))

    @staticmethod
    def _places(ids: Ids, hashes: NDArray[np.uint32], targets: set[int]) -> Ids:
        """Return where in ``ids`` one of ``targets`` stands, in ascending order."""
        wanted = np.fromiter(targets, dtype=np.intp, count=len(targets))
        table = np.zeros(_HASHES, dtype=np.bool_)
        table[_hash(wanted)] = True
        places: Ids = np.flatnonzero(table[hashes])
        likely = ids[places]
        wanted.sort()
        found: Ids = places[wanted.take(np.searchsorted(wanted, likely), mode="clip") == likely]
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
