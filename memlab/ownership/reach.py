"""What each of many tensors' graphs keeps: every node is visited once, and what is shared is known to be shared."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memlab import billing, graph
from memlab.hooks import Packed
from memlab.ledger import NO_CODE
from memlab.lines import GIVEN
from memlab.modules import Place
from memlab.node_names import saved_fields

LEAST = 20_000  # nodes that are read however long it takes: the same answer for a usual graph on any machine
_LOOKS_AT_CLOCK = 256  # nodes


@dataclass
class Reached:
    """What is reached by one group of owners together, and by no other."""

    bytes: int = 0
    tensors: int = 0
    nodes: int = 0
    unread: int = 0
    places: Counter[tuple[Any, int]] = field(default_factory=Counter)  # bytes by code and instruction
    modes: Counter[bool | None] = field(default_factory=Counter)  # bytes by ``training`` of the module that saved them


class _Storages(billing.Walk):
    """A walk that also remembers which storages each node keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []

    @property
    def regions(self) -> set[int]:
        """Checkpointed regions to which the node belongs that was visited last, by the ``id()`` of their frames."""
        return self._regions.here

    def _note(self, key: int, node: Any, name: str, packed: Packed | None) -> None:
        self.kept.append(key)
        tensor, known, _ = self._found[key]
        if known is not packed and known is not None and packed is not None and _before(packed, known, key):
            self._found[key] = (tensor, packed, name)

    def counted(self) -> Iterator[tuple[int, int, Any, bool | None]]:
        """Yield key, bytes, place and the module's mode of each storage that is not given."""
        for key, (tensor, packed, name) in self._found.items():
            origin = packed.origin(key) if packed is not None else None
            if origin is not None:
                if origin.kind not in GIVEN:
                    yield key, origin.bytes, (origin.code, origin.instruction), _is_training(origin.place)
            elif self._kind(key, tensor, name) not in GIVEN:
                yield key, tensor.untyped_storage().nbytes(), NO_CODE, None


def _before(one: Packed, other: Packed, key: int) -> bool:
    """Whether one was saved before the other, by the tokens of one ledger."""
    mine, theirs = one.counted(key), other.counted(key)
    return mine is not None and theirs is not None and mine[0] is theirs[0] and mine[1] < theirs[1]


def _is_training(place: Place | None) -> bool | None:
    """Return whether a module is in training mode now; None without a module, or if it is gone."""
    module = place.module() if place is not None else None
    return None if module is None else bool(module.__dict__.get("training", True))


class Graphs:
    """The graphs of some nodes, as numbers: nothing of them is held.

    Args:
        roots: nodes to start from.
        maybe: nodes that count as roots if none of those leads to them.
        deadline: when to stop reading, on `time.perf_counter`, once `LEAST` nodes were read; what was met by then
            counts as nodes that keep nothing and lead nowhere.

    Attributes:
        more: which of ``maybe`` are roots; the caller clears it.
        number: the number of each node, by ``id()`` of its Python object.
        variables: numbers of the nodes that accumulate into a leaf, by ``id()`` of the leaf.
        regions: numbers of the nodes of each checkpointed region, by ``id()`` of its frame.
        read: how many nodes were read.
        unread: how many were met and not read.
    """

    def __init__(self, roots: Iterable[Any], maybe: Iterable[Any] = (), deadline: float = math.inf) -> None:
        walk, tour = _Storages(), graph.Tour()
        self._kept: dict[int, list[int]] = {}
        self.variables: dict[int, int] = {}
        self.regions: defaultdict[int, list[int]] = defaultdict(list)
        tour.meet(roots)
        self._read(tour, walk, deadline)
        self.more = []
        for root in maybe:
            if tour.unread:  # an unread node may lead to any of them
                break
            if id(root) not in tour.number:
                tour.meet([root])
                self._read(tour, walk, deadline)
                self.more.append(root)
        self.read, self.unread = len(tour.following), tour.unread
        self._storages = {key: facts for key, *facts in walk.counted()}
        self.number = tour.number
        self._order, self._following = tour.end(), tour.following

    def _read(self, tour: graph.Tour, walk: _Storages, deadline: float) -> None:
        blank: set[type] = set()
        for number, node in enumerate(tour.read(), len(tour.following)):
            kind = type(node)
            if kind not in blank:
                walk.visit(node)
                if walk.regions:
                    self._note_regions(number, walk.regions)
                if walk.kept:
                    self._kept[number] = walk.kept
                    walk.kept = []
                elif kind.__name__ == "AccumulateGrad":
                    self.variables[id(node.variable)] = number
                elif not saved_fields(kind):
                    blank.add(kind)
            if not number % _LOOKS_AT_CLOCK and number >= LEAST and time.perf_counter() > deadline:
                return

    def _note_regions(self, number: int, regions: set[int]) -> None:
        for each in regions:
            self.regions[each].append(number)
        regions.clear()

    def weight(self, root: int, most: int) -> tuple[int, int]:
        """Return the saved bytes and the nodes that one node leads to, itself included, of at most ``most`` nodes."""
        met, waiting = {root}, [root]
        for number in waiting:  # grows meanwhile
            for each in self._following[number]:
                if each not in met and len(met) < most:
                    met.add(each)
                    waiting.append(each)
        kept = {key for number in waiting for key in self._kept.get(number, ()) if key in self._storages}
        return sum(self._storages[key][0] for key in kept), len(met)

    def spread(self, masks: dict[int, int]) -> list[int]:
        """Return for each node the owners that reach it, as bits; ``masks`` says who holds which node."""
        found = [0] * len(self._order)
        for number, mask in masks.items():
            found[number] |= mask
        for number in self._order:
            mask = found[number]
            if mask:
                for each in self._following[number]:
                    found[each] |= mask
        return found

    def storages(self, masks: list[int]) -> dict[int, int]:
        """Return for each storage that a node keeps the owners that reach it, given ones included."""
        found: dict[int, int] = {}
        for number, kept in self._kept.items():
            for key in kept:
                found[key] = found.get(key, 0) | masks[number]
        return found

    def totals(self, masks: list[int]) -> dict[int, Reached]:
        """Return what is kept, grouped by the set of owners (bits) that reach it."""
        totals: defaultdict[int, Reached] = defaultdict(Reached)
        for mask, count in Counter(masks).items():
            totals[mask].nodes = count
        for mask, count in Counter(masks[self.read :]).items():
            totals[mask].unread = count
        for number, kept in self._kept.items():
            totals[masks[number]].tensors += sum([key in self._storages for key in kept])
        for key, mask in self.storages(masks).items():
            if key in self._storages:
                nbytes, place, mode = self._storages[key]
                reached = totals[mask]
                reached.bytes += nbytes
                reached.places[place] += nbytes
                reached.modes[mode] += nbytes
        return dict(totals)
