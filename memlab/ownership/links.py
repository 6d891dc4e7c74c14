"""Who holds what on the climb, by ``id()``: many holders are kept as arrays, and no step is taken for each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from memlab.ownership import look
from memlab.ownership.heap import Holders, Ids


class Side:
    """The links seen from one side: ``side[each]`` are the ids on the other side, in the order they were found."""

    def __init__(self) -> None:
        self._few: defaultdict[int, dict[int, None]] = defaultdict(dict)
        self._many: list[_Sorted] = []

    def __getitem__(self, each: int) -> list[int]:
        found = dict.fromkeys(self._few[each]) if each in self._few else {}
        for several in self._many:
            found.update(dict.fromkeys(several.of(each)))
        return list(found)

    def add(self, each: int, other: int) -> None:
        self._few[each][other] = None

    def discard(self, each: int, other: int) -> None:
        self._few[each].pop(other, None)

    def extend(self, several: Ids, others: Ids) -> None:
        self._many.append(_Sorted(several, others))

    def pairs(self) -> tuple[Ids, Ids]:
        """Return all links as two arrays: what is asked for, and what lies on the other side."""
        few = [(each, other) for each, others in self._few.items() for other in others]
        one, other = np.array(few, dtype=np.intp).reshape(-1, 2).T
        return (
            np.concatenate([one, *(several.keys for several in self._many)]),
            np.concatenate([other, *(several.others for several in self._many)]),
        )


class _Sorted:
    """Pairs of ids, sorted when the first is looked up."""

    def __init__(self, keys: Ids, others: Ids) -> None:
        self.keys, self.others = keys, others
        self._starts: dict[int, int] | None = None

    def of(self, key: int) -> list[int]:
        if self._starts is None:
            order = np.argsort(self.keys, kind="stable")
            self.keys, self.others = self.keys[order], self.others[order]
            starts = np.flatnonzero(np.diff(self.keys, prepend=0))
            self._starts = dict(zip(self.keys[starts].tolist(), starts.tolist(), strict=True))
        start = self._starts.get(key)
        if start is None:
            return []
        end = int(np.searchsorted(self.keys, key, "right"))
        others: list[int] = self.others[start:end].tolist()
        return others


class Links:
    """What the climb has found, and still finds.

    Attributes:
        things: every object on the way, by ``id()``.
        down: what each holds.
        up: what holds each.
        spaces: dicts that are known to be somebody's ``__dict__``: ``{id of the dict: id of the object}``.
    """

    def __init__(self, starts: list[Any]) -> None:
        self.things: dict[int, Any] = dict(zip(map(id, starts), starts, strict=True))
        self.down, self.up = Side(), Side()
        self.spaces: dict[int, int | None] = {}

    def link(self, holder: Any, held: list[int]) -> None:
        """Say that ``holder`` holds what has these ids."""
        self.things[id(holder)] = holder
        for each in held:
            self.down.add(id(holder), each)
            self.up.add(each, id(holder))

    def link_all(self, found: Holders) -> None:
        """Say that these objects hold what they refer to."""
        self.things.update(zip(found.ids.tolist(), found.things, strict=True))
        holders = found.ids[found.places]
        self.down.extend(holders, found.held)
        self.up.extend(found.held, holders)

    def unlink(self, holder: Any, held: int) -> None:
        self.down.discard(id(holder), held)
        self.up.discard(held, id(holder))

    def owner_of(self, space: int) -> int | None:
        """Return the id of the object whose ``__dict__`` this is; None of any other. To be asked after the climb."""
        if space not in self.spaces:
            holders = self.up[space] if type(self.things[space]) is dict else []
            owners = [each for each in holders if id(look.dict_of(self.things[each])) == space]
            self.spaces[space] = owners[-1] if owners else None
        return self.spaces[space]
