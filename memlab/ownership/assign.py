"""Say which names hold which objects, each under its own name: `losses`, or `trainer.history`.

Names are spread downwards. All that a container holds belongs to the name of the container. An attribute of an object
that has a name is a name of its own, unless a container was passed on the way: then it belongs to the container's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from itertools import repeat
from types import FunctionType, TracebackType
from typing import Any

from torch import Tensor, nn

from memlab.ownership import look, seal
from memlab.ownership.climb import GENERATORS, LAST_ERROR, Climb, Key
from memlab.ownership.masks import bits

ALIKE = 8  # so many objects of one class with a name each, for the same attribute, count as one owner
_STORES = frozenset({"_parameters", "_buffers", "_modules"})


class Assignment:
    """The keys (of `Name`, or of attributes) that hold each object, directly or through containers.

    Attributes:
        keys: every key, in the order of its bit.
        masks: keys by the ``id()`` of what they hold, as bits.
        joined: ``{key: all keys that count as it}``.
        attributes: ``{key: (id of the object, attribute)}`` of keys that are attributes.
    """

    def __init__(self, climb: Climb) -> None:
        self.climb = climb
        self.keys: list[Key] = []
        self.attributes: dict[Key, tuple[int, str]] = {}
        self._bits: dict[Key, int] = {}
        self._open: defaultdict[int, int] = defaultdict(int)
        self._sealed: defaultdict[int, int] = defaultdict(int)
        self._labels: dict[tuple[int, int], str] = {}
        self._labels_in: dict[int, dict[int, str | None]] = {}
        self._spread()
        # What lies below a container belongs to its names, whatever it is called there.
        self.masks = seal.spread(self._sealed, *climb.down.pairs())
        for each, mask in self._open.items():
            self.masks[each] = self.masks.get(each, 0) | mask
        self.joined: dict[Key, list[Key]] = {key: [key] for key in self.keys}
        self.single = self.masks
        self._join_alike()

    def holds(self, key: Key, thing: int) -> bool:
        """Whether this very key, joined with others or not, holds the object."""
        return bool(self.single.get(thing, 0) & self._bits.get(key, 0))

    def of(self, thing: int) -> int:
        return self.masks.get(thing, 0)

    def of_all(self, things: Collection[int]) -> dict[int, int]:
        return dict(zip(things, map(self.masks.get, things, repeat(0)), strict=True))

    def _bit(self, key: Key) -> int:
        if key not in self._bits:
            self._bits[key] = 1 << len(self.keys)
            self.keys.append(key)
        return self._bits[key]

    def _spread(self) -> None:
        """Spread names of their own as far as they go; note what belongs to a container's, or the like."""
        waiting = []
        named = [(each, names) for each, names in self.climb.names.items() if each in self.climb.things]
        for each, names in named:
            for name in names:
                self._open[each] |= self._bit(name.key)
            if names:
                waiting.append(each)
        while waiting:
            holder = waiting.pop()
            if self.climb.links.owner_of(holder) is not None:
                continue  # whose dict it is has spread through it already
            for held, is_open in self._passed_on(holder):
                if is_open & ~self._open[held]:
                    self._open[held] |= is_open
                    waiting.append(held)

    def _passed_on(self, holder: int) -> list[tuple[int, int]]:
        """Return what a name goes on to, itself or as an attribute's; note what belongs to a container's name."""
        thing, is_open = self.climb.things[holder], self._open[holder]
        if look.is_a(thing, *look.CONTAINERS):
            self._sealed[holder] |= is_open
            return []
        passed = []
        for held, attribute in self.attributes_of(holder):
            if attribute is None or is_open & self._bits.get(LAST_ERROR, 0):
                passed.append((held, is_open))
            elif type(self.climb.things[held]) is type(thing) and not look.is_a(thing, nn.Module, Tensor):
                self._sealed[held] |= is_open  # linked elements are a container, too
            else:
                key = ("attribute", holder, attribute)
                self.attributes[key] = (holder, attribute)
                passed.append((held, self._bit(key)))
        return passed

    def attributes_of(self, holder: int) -> list[tuple[int, str | None]]:
        """Return what ``holder`` holds, with the attribute's name; None where it only passes on what it holds."""
        climb, thing = self.climb, self.climb.things[holder]
        if not _has_attributes(thing):
            return [(held, None) for held in climb.down[holder]]
        found: list[tuple[int, str | None]] = []
        for held in climb.down[holder]:
            if climb.links.owner_of(held) != holder and (
                type(thing) is FunctionType or held in climb.parts.get(holder, ())
            ):
                found.append((held, None))  # what it closes over, or a default; what a sparse tensor is made of
            elif climb.links.owner_of(held) == holder:
                found.extend((each, self.attribute_in(held, each)) for each in climb.down[held])
            else:
                found.append((held, self.attribute(holder, held)))
        if look.is_a(thing, nn.Module):
            found = [pair for each in found for pair in self._in_store(each)]
        return found

    def _in_store(self, pair: tuple[int, str | None]) -> list[tuple[int, str | None]]:
        """What a module keeps in its stores of parameters, buffers and modules is an attribute of it."""
        held, attribute = pair
        if attribute not in _STORES:
            return [pair]
        return [(each, self.attribute_in(held, each)) for each in self.climb.down[held]]

    def attribute_in(self, space: int, held: int) -> str:
        labels = self._labels_in.get(space)
        if labels is None:
            labels = look.keys_of(self.climb.things[space], set(self.climb.down[space]))
            self._labels_in[space] = labels
        return labels.get(held) or "?"

    def attribute(self, holder: int, held: int) -> str:
        label = self._labels.get((holder, held))
        if label is None:
            thing = self.climb.things[holder]
            is_grad = look.is_a(thing, Tensor) and held in self.climb.grads.get(holder, ())
            label = self._labels[holder, held] = "grad" if is_grad else look.attribute(thing, held)
        return label

    def _join_alike(self) -> None:
        """Many objects with one attribute each, such as every layer's last output, are one owner."""
        alike: Counter[tuple[int, str]] = Counter()
        kinds = {key: (id(type(self.climb.things[each])), name) for key, (each, name) in self.attributes.items()}
        alike.update(kinds.values())
        joined: dict[int, int] = {}
        first: dict[tuple[int, str], int] = {}
        for key, kind in kinds.items():
            if alike[kind] > (1 if kind[1] == "grad" else ALIKE):
                to = joined[self._bits[key]] = first.setdefault(kind, self._bits[key])
                if to != self._bits[key]:
                    self.joined[self.keys[to.bit_length() - 1]] += self.joined.pop(key)
        if not joined:
            return
        several = sum(joined)
        self.masks = {each: _with_joined(mask, several, joined) for each, mask in self.single.items()}


def _with_joined(mask: int, several: int, joined: dict[int, int]) -> int:
    """Return a mask in which each of ``several`` bits is replaced by the one that it is joined to."""
    found = mask & ~several
    for bit in bits(mask & several):
        found |= joined[bit]
    return found


def _has_attributes(thing: Any) -> bool:
    return not (
        look.passes_on(thing) or look.is_exactly(thing, *GENERATORS, TracebackType) or look.is_node(type(thing))
    )
