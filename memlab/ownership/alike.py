"""Functions and generators of one code of which every step leaves one: what holds them is the owner.

Each has a variable of its own that it does not bind anew, such as the loss that a callback closes over. The variable of
each cannot grow; the list of the callbacks does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from memlab.ownership import look
from memlab.ownership.links import Links

_FEWEST = 2


@dataclass
class Bearer:
    """A function or generator; ``held`` are the ids of its own variables (cells, values), with their names' keys."""

    thing: Any
    held: dict[int, Any] = field(default_factory=dict)
    linked: set[int] = field(default_factory=set)


class Alike:
    """Collects bearers while the climb meets them, and settles at its end who is the owner.

    Attributes:
        passed: ids of those through which the climb leads on.
    """

    def __init__(self, links: Links, starts: set[int]) -> None:
        self.passed: set[int] = set()
        self._links, self._starts = links, starts
        self._groups: defaultdict[int, dict[int, Bearer]] = defaultdict(dict)

    def note(self, thing: Any, code: CodeType, held: int, content: int, key: Any) -> None:
        """Remember that ``thing`` has its own variable ``held``, bound once, whose value has the id ``content``."""
        if content in self._starts or look.is_exactly(self._links.things.get(content), tuple, FunctionType):
            self._groups[id(code)].setdefault(id(thing), Bearer(thing)).held[held] = key

    def rise(self) -> set[int]:
        """Let the climb lead on through those that have fellows; return their ids."""
        fresh = set()
        for group in self._groups.values():
            for bearer in group.values() if len(group) >= _FEWEST else ():
                for held in bearer.held.keys() - bearer.linked:
                    self._links.link(bearer.thing, [held])
                    bearer.linked.add(held)
                    fresh.add(id(bearer.thing))
        self.passed |= fresh
        return fresh

    def settle(self, names: defaultdict[int, list[Any]]) -> None:
        """Take the names of the variables away where one store with a name has several of a group; else the links."""
        for group in self._groups.values():
            stored = self._stored(group, names)
            for each, bearer in group.items():
                if each in stored:  # a function that has attributes was named, too
                    names[each] = [name for name in names[each] if name.kind != "function"]
                for held in bearer.linked:
                    if each in stored:
                        names[held] = [name for name in names[held] if name.key != bearer.held[held]]
                    else:
                        self._links.unlink(bearer.thing, held)

    def _stored(self, group: dict[int, Bearer], names: defaultdict[int, list[Any]]) -> set[int]:
        """Those that lie in a container, however deep, of which another part has another of them."""
        parts: defaultdict[int, set[int]] = defaultdict(set)
        above = {each: list(self._above(each)) for each in group}
        for pairs in above.values():
            for holder, part in pairs:
                parts[holder].add(part)
        stores = {each for each, several in parts.items() if len(several) >= _FEWEST and self._has_name(each, names)}
        return {each for each, pairs in above.items() if any(holder in stores for holder, _ in pairs)}

    def _above(self, thing: int) -> Iterator[tuple[int, int]]:
        """Yield the containers that a thing lies in, each with its part that leads to the thing."""
        links, waiting, met = self._links, [thing], {thing}
        while waiting:
            part = waiting.pop()
            for holder in links.up[part]:
                if look.is_a(links.things[holder], *look.CONTAINERS) and links.owner_of(holder) is None:
                    yield holder, part
                if holder not in met and not look.is_a(links.things[holder], nn.Module, Tensor, type):
                    met.add(holder)
                    waiting.append(holder)

    def _has_name(self, thing: int, names: defaultdict[int, list[Any]]) -> bool:
        waiting, met = [thing], {thing}
        while waiting:
            each = waiting.pop()
            if any(name.kind != "temporary" for name in names.get(each, ())):
                return True
            more = [holder for holder in self._links.up[each] if holder not in met]
            met.update(more)
            waiting += more
        return False
