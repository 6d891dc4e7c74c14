"""Graphs that no name holds: kept by other graphs, by a reference cycle, or by C++ alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FrameType

from torch import Tensor

from memlab.ownership import look
from memlab.ownership.alive import Garbage
from memlab.ownership.assign import Assignment
from memlab.ownership.climb import Climb, Key, Name
from memlab.ownership.reach import Graphs
from memlab.ownership.stored import storages

_CPP = Name("(no Python name)", "held by C++ only", "C++ only", ("C++ only",), 9)


class Loose:
    """Finds out what holds the tensors that no name does.

    Attributes:
        keys: the assignment's keys, and one for each sort of cycle, in the order of their bits.
    """

    def __init__(
        self, climb: Climb, assignment: Assignment, graphs: Graphs, numbers: dict[int, int], garbage: Garbage
    ) -> None:
        self._climb, self._assignment, self._graphs = climb, assignment, graphs
        self._numbers, self._garbage = numbers, garbage
        self.keys: list[Key] = list(assignment.keys)
        self._names: dict[Key, Name] = {}
        self._freed: dict[Key, bool] = {}

    def settle(self) -> tuple[dict[int, int], list[int]]:
        """Return who holds each tensor and who reaches each node, as bits of `keys`."""
        holders = self._assignment.of_all(self._numbers)
        above = {each: self._above(each) for each, mask in holders.items() if not mask}
        if self._graphs.unread:
            above.clear()  # what was not read may lead to them
        sources = {each: self._nodes_of(each, found) for each, found in above.items()}
        reached = self._spread(holders, sources)
        cycles = {each: self._cycle(each, found) for each, found in above.items() if not reached[self._numbers[each]]}
        for each, name in cycles.items():
            if name is not None:
                holders[each] = self._bit(name, above[each])
        if any(cycles.values()):
            reached = self._spread(holders, sources)
        left = [each for each in cycles if not reached[self._numbers[each]]]
        for each in left:
            holders[each] = self._bit(_CPP, above[each])
        return holders, self._spread(holders, sources) if left else reached

    def _spread(self, holders: dict[int, int], sources: dict[int, set[int]]) -> list[int]:
        """Spread over graphs, and over what graphs hold besides nodes, until nothing changes."""
        masks: dict[int, int] = {}
        for each, mask in holders.items():
            masks[self._numbers[each]] = masks.get(self._numbers[each], 0) | mask
        while True:
            reached = self._graphs.spread(masks)
            changed = False
            for each, numbers in sources.items():
                number, mask = self._numbers[each], 0
                for source in numbers:
                    mask |= reached[source]
                if mask & ~reached[number]:
                    masks[number] = masks.get(number, 0) | mask
                    changed = True
            if not changed:
                return reached

    def _above(self, thing: int) -> set[int]:
        """Everything that holds a thing, and is seen."""
        found, waiting = {thing}, [thing]
        while waiting:
            for holder in self._climb.up[waiting.pop()]:
                if holder not in found:
                    found.add(holder)
                    waiting.append(holder)
        return found

    def _nodes_of(self, thing: int, above: Iterable[int]) -> set[int]:
        """Nodes that, directly or by tensors, hold what is above a thing."""
        graphs, found = self._graphs, set()
        for each in above:
            if each in graphs.number:
                found.add(graphs.number[each])
            elif each in graphs.variables:
                found.add(graphs.variables[each])
            elif each in graphs.regions:
                found.update(graphs.regions[each])
            elif each != thing and each in self._numbers:
                found.add(self._numbers[each])
        return found

    def inside(self, thing: int, reached: list[int], saved: Mapping[int, int]) -> int:
        """Return who keeps a thing that lies inside what graphs keep: on a ``ctx``, or in a saved tensor of a subclass.

        Args:
            thing: its ``id()``.
            reached: who reaches each node.
            saved: who reaches each storage that nodes keep, by its key.
        """
        above, mask = self._above(thing), 0
        for number in self._nodes_of(thing, above):
            mask |= reached[number]
        holders = [self._climb.things[each] for each in above if each != thing]
        for _, storage in storages(each for each in holders if look.is_a(each, Tensor)):
            mask |= saved.get(storage._cdata, 0)
        return mask

    def _bit(self, name: Name, above: set[int]) -> int:
        """Return the bit of an owner that is no Python name, a new one if it is the first of its sort."""
        if name.key not in self._names:
            self.keys.append(name.key)
            self._names[name.key] = name
            self._freed[name.key] = name is not _CPP
        if self._freed[name.key]:
            self._freed[name.key] = self._garbage.only_each_other(above)
        return 1 << self.keys.index(name.key)

    def _cycle(self, thing: int, above: set[int]) -> Name | None:
        things, climb = self._climb.things, self._climb
        for node, held in climb.nodes:
            if node in above and held in above and node in self._graphs.number:
                attributes = [climb.things[held]] if type(things[held]) is dict else []
                for space in attributes:
                    for child in climb.down[held]:
                        if child in above:
                            text = f"ctx.{look.key_of(space, child) or '?'}"
                            kind = look.type_name(type(things[node])).removesuffix("Backward")
                            where = f"attribute of {kind}'s ctx, in a reference cycle"
                            return Name(text, where, "cycle", ("ctx", kind, text), 8)
        for each in above:
            if climb.grads.get(each, set()) & above:
                where = "a parameter and its gradient's graph hold each other (backward with create_graph=True)"
                return Name(f"{look.type_name(type(things[each]))}.grad", where, "cycle", ("cycle", "grad"), 8)
        for each in above:
            if each != thing and each in self._graphs.variables and self._leads_to(thing, each):
                name = self._attribute(things[each], above)
                where = f"a {look.type_name(type(things[each]))} and the graph of its attribute hold each other"
                return Name(f"{look.type_name(type(things[each]))}.{name}", where, "cycle", ("cycle", "leaf", name), 8)
        if any(type(things[each]) is FrameType for each in above):
            return Name("a frame", "a frame in a reference cycle", "cycle", ("cycle", "frame"), 8)
        return self._ring(above)

    def _leads_to(self, thing: int, leaf: int) -> bool:
        """Whether the graph of a tensor, or a node, leads to a leaf."""
        return bool(self._graphs.spread({self._numbers[thing]: 1})[self._graphs.variables[leaf]])

    def _attribute(self, tensor: Tensor, above: set[int]) -> str:
        """Return the attribute in which a tensor holds one of the things that are above another."""
        found = (key for key, value in look.items(look.dict_of(tensor) or {}) if id(value) in above)
        return next((key for key in found if type(key) is str), "?")

    def _ring(self, above: set[int]) -> Name | None:
        """Strip what nothing holds, and what holds nothing, again and again: what is left holds itself."""
        climb = self._climb
        ring = set(above)
        while free := {each for each in ring if ring.isdisjoint(climb.up[each]) or ring.isdisjoint(climb.down[each])}:
            ring -= free
        if not ring:
            return None
        objects = [
            each
            for each in ring
            if climb.links.owner_of(each) is None and not look.is_a(climb.things[each], *look.CONTAINERS)
        ]
        named = [each for each in objects if not look.is_a(climb.things[each], Tensor)] or objects or sorted(ring)
        kinds = sorted({look.type_name(type(climb.things[each])) for each in named if each in ring})
        text = " <-> ".join(kinds[:3]) if len(kinds) > 1 else f"{kinds[0]} <-> itself"
        return Name(text, "a reference cycle that no name leads to", "cycle", ("cycle", text), 8)

    def name(self, key: Key) -> Name | None:
        return self._names.get(key)

    def freed_by_gc(self, key: Key) -> bool | None:
        """Whether the garbage collector would free it; None for what has a name."""
        return self._freed.get(key)
