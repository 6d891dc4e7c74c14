"""Owners in words: a name, where it lives, and the path from it to a node."""

from __future__ import annotations

import _thread
from collections import defaultdict, deque
from collections.abc import Iterator
from types import CellType, FrameType, FunctionType, TracebackType
from typing import Any

from torch import Tensor, nn

from memlab.ownership import frames, look
from memlab.ownership.assign import Assignment
from memlab.ownership.climb import GENERATORS, LRU_CACHE, Climb, Key, Name

Way = list[tuple[int, int]]  # ids of holder and held, the outermost first
# Attributes in which torch itself keeps hooks.
HOOKS = frozenset(look.TENSOR_HOOKS) | {each for each in vars(nn.Module()) if each.endswith("_hooks")}
_SORTS: tuple[tuple[type, str], ...] = (
    *((kind, kind.__name__) for kind in (list, tuple, deque, set, dict, frozenset)),
    (FunctionType, "function"),
    *((kind, "generator") for kind in GENERATORS),
    (TracebackType, "traceback"),
    (FrameType, "frame"),
    (LRU_CACHE, "lru_cache"),
    *((kind, "") for kind in look.PASSING),
)


class Words:
    """Describes the keys of one assignment."""

    def __init__(self, climb: Climb, assignment: Assignment) -> None:
        self._climb, self._assignment = climb, assignment
        self._named: defaultdict[Key, list[tuple[int, Name]]] = defaultdict(list)
        for thing, names in climb.names.items():
            for name in names:
                self._named[name.key].append((thing, name))
        self._attributes: dict[int, defaultdict[str | None, set[int]]] = {}
        self._prefixes: dict[int, tuple[str, Name | None]] = {}

    def name(self, key: Key) -> Name:
        """Return the best name for a key; several objects' attributes that were joined share what their names share."""
        parts = [self._single(each) for each in self._assignment.joined.get(key, [key])]
        best = min(parts, key=lambda name: name.rank)
        return best if len(parts) == 1 else self._common(parts)

    def names(self, key: Key) -> list[Name]:
        """Return all names of a key; of an attribute's, none."""
        return [name for _, name in self._named.get(key, ())]

    def _single(self, key: Key) -> Name:
        if key in self._named:
            return min(self.names(key), key=lambda name: name.rank)
        holder, attribute = self._assignment.attributes[key]
        prefix, root = self._prefix(holder)
        kind = type(self._climb.things[holder])
        text = f"{prefix}.{attribute}".replace(".[", "[")
        thing = self._climb.things[holder]
        holds = thing if root is None else root.root
        if look.is_a(thing, type):
            where = f"attribute of class {look.qualified(thing)}"
        elif type(thing) is FunctionType:
            where = f"attribute of function {thing.__qualname__}()"
        elif root is None:
            where = f"attribute of a {look.type_name(kind)}"
        else:
            where = f"attribute of {look.type_name(kind)}; {root.text} is {root.where}"
        return Name(
            text,
            where,
            self._kind(holder, attribute),
            key,
            10 if root is None else root.rank,
            holds,
        )

    def _kind(self, holder: int, attribute: str) -> str:
        thing = self._climb.things[holder]
        if look.is_a(thing, type):
            return "class attribute"
        if attribute == "__traceback__":
            return "traceback"
        if attribute in HOOKS and look.is_a(thing, nn.Module, Tensor):
            return "hook"
        if look.is_a(thing, Tensor):
            return "tensor attribute"
        if look.is_a(thing, _thread._local):
            return "thread-local"
        return "function attribute" if type(thing) is FunctionType else "instance attribute"

    def _common(self, parts: list[Name]) -> Name:
        split = [part.text.split(".") for part in parts]
        shared: list[str] = []
        for column in zip(*split, strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        last = split[0][-1]
        text = ".".join([*shared, "*", last]) if shared and shared != split[0] else f"*.{last}"
        best = min(parts, key=lambda name: name.rank)
        return Name(text, f"{best.where} (and {len(parts) - 1} more)", best.kind, best.key, best.rank, best.root)

    def _prefix(self, thing: int) -> tuple[str, Name | None]:
        """Return how to reach an object in code: the name of what leads to it, and attributes."""
        if thing not in self._prefixes:
            self._prefixes[thing] = self._find_prefix(thing)
        return self._prefixes[thing]

    def _find_prefix(self, thing: int) -> tuple[str, Name | None]:
        level, before = [thing], {thing: -1}
        while level:
            named = [(min(names, key=lambda name: name.rank), each) for each in level if (names := self._names(each))]
            if named:
                name, each = min(named, key=lambda pair: pair[0].rank)
                return name.text + "".join(self._steps(each, before)), name
            above = []
            for each in level:
                for holder in self._climb.up[each]:
                    if holder not in before:
                        before[holder] = each
                        above.append(holder)
            level = above
        return look.type_name(type(self._climb.things[thing])), None

    def _names(self, thing: int) -> list[Name]:
        return self._climb.names_of(thing)

    def _steps(self, holder: int, below: dict[int, int]) -> Iterator[str]:
        climb = self._climb
        while (held := below[holder]) != -1:
            if climb.links.owner_of(held) == holder:
                pass
            elif climb.links.owner_of(holder) is not None:
                attribute = self._assignment.attribute_in(holder, held)
                yield "" if attribute in ("_modules", "_parameters", "_buffers") else f".{attribute}"
            elif look.is_a(climb.things[holder], *look.CONTAINERS):
                yield self._element(holder, held)
            elif not (
                look.passes_on(climb.things[holder]) or look.is_exactly(climb.things[holder], *GENERATORS, FunctionType)
            ):
                attribute = self._assignment.attribute(holder, held)
                yield "" if attribute in ("_modules", "_parameters", "_buffers") else f".{attribute}"
            holder = held

    def _element(self, holder: int, held: int) -> str:
        thing = self._climb.things[holder]
        place = look.place_in(thing, held)
        above = self._climb.up[holder]
        is_store = any(self._attribute(each, holder) in ("_modules", "_parameters") for each in above)
        return f".{place[2:-2]}" if is_store and place.startswith("['") else place

    def _attribute(self, holder: int, held: int) -> str:
        """Return as which attribute an object, or its ``__dict__``, holds another; ``""`` if it is no attribute."""
        thing = self._climb.things[holder]
        if self._climb.links.owner_of(holder) is not None:
            return self._assignment.attribute_in(holder, held)
        # From Python 3.13 on most objects hold their attributes themselves, without a dict between.
        other = look.is_a(thing, *look.CONTAINERS) or look.passes_on(thing)
        return "" if other else self._assignment.attribute(holder, held)

    def path(self, name: Name, way: Way, ends: str) -> str:
        """Return the way from a name down to one of the tensors that it holds, in words."""
        parts = [f"{name.text} ({name.where})", *(self._passed(holder, held) for holder, held in way), ends]
        return " -> ".join(part for index, part in enumerate(parts) if part and part != parts[index - 1])

    def through(self, way: Way) -> tuple[str, ...]:
        """Return what is passed on a way, by its structure alone: no name that a user gave is in it."""
        return tuple(each for each in (self._sort(holder, held) for holder, held in way) if each)

    def _sort(self, holder: int, held: int) -> str:
        thing: Any = self._climb.things[holder]
        if look.is_a(thing, nn.Module, Tensor) and self._assignment.attribute(holder, held) in HOOKS:
            return "hooks"
        if self._climb.links.owner_of(holder) is not None:
            return "hooks" if look.key_of(thing, held) in HOOKS else ""
        if look.is_node(type(thing)):
            return "node"
        return next(
            (name for kind, name in _SORTS if look.is_a(thing, kind)), "" if look.passes_on(thing) else "object"
        )

    def way(self, key: Key, anchor: int) -> Way:
        """Climb from the tensor to what the key names, on a shortest way; return holders with what they hold."""
        climb, assignment = self._climb, self._assignment
        keys = [each for each in assignment.joined.get(key, [key]) if assignment.holds(each, anchor)] or [key]
        targets = self._targets(keys[0])
        level, below = [anchor], {anchor: -1}
        while level:
            reached = next((each for each in level if each in targets), None)
            if reached is not None:
                return [(each, below[each]) for each in self._down(reached, below)]
            above = []
            for each in level:
                for holder in climb.up[each]:
                    if holder not in below and self._is_held(keys[0], holder):
                        below[holder] = each
                        above.append(holder)
            level = above
        return []

    def _is_held(self, key: Key, thing: int) -> bool:
        """Whether an object, or the one whose ``__dict__`` it is, belongs to a key."""
        owner = self._climb.links.owner_of(thing)
        return self._assignment.holds(key, thing) or (owner is not None and self._assignment.holds(key, owner))

    def _targets(self, key: Key) -> set[int]:
        if key in self._assignment.attributes:
            holder, attribute = self._assignment.attributes[key]
            return self._attributes_of(holder)[attribute]
        return {thing for thing, _ in self._named.get(key, ())}

    def _attributes_of(self, holder: int) -> defaultdict[str | None, set[int]]:
        if holder not in self._attributes:
            found = self._attributes[holder] = defaultdict(set)
            for held, attribute in self._assignment.attributes_of(holder):
                found[attribute].add(held)
        return self._attributes[holder]

    def _down(self, thing: int, below: dict[int, int]) -> Iterator[int]:
        while below[thing] != -1:
            yield thing
            thing = below[thing]

    def _passed(self, holder: int, held: int) -> str:
        climb = self._climb
        thing: Any = climb.things[holder]
        kind = type(thing)
        if look.is_exactly(thing, CellType) or climb.links.owner_of(held) == holder:
            return ""
        if look.is_exactly(thing, FunctionType, *GENERATORS):
            return f"{thing.__qualname__}()"
        space = climb.links.owner_of(holder)
        if space is not None:
            owner = climb.things[space]
            return f"{look.type_name(type(owner))}.{self._assignment.attribute_in(holder, held)}"
        if kind is TracebackType:
            return "traceback"
        if kind is FrameType:
            name = next((name for name, identity in frames.slots(thing) if identity == held), "")
            return f"frame of {frames.describe(thing)}" + (f": {name}" if name else "")
        if held in climb.parts.get(holder, ()):
            return f"sparse {look.type_name(kind)}"
        if look.is_a(thing, *look.CONTAINERS):
            return look.type_name(kind) + look.place_in(thing, held)
        if look.passes_on(thing):
            return look.type_name(kind)
        return f"{look.type_name(kind)}.{self._assignment.attribute(holder, held)}"
