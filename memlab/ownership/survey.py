"""One look at the heap: every owner, with what it reaches and what only it reaches."""

from __future__ import annotations

import gc
import math
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from memlab import origins, places
from memlab.ownership import anchors, fixtures, look
from memlab.ownership.alive import Garbage
from memlab.ownership.anchors import Anchors
from memlab.ownership.assign import Assignment
from memlab.ownership.born import Births
from memlab.ownership.climb import Climb, Key, Name
from memlab.ownership.describe import Words
from memlab.ownership.heap import Heap
from memlab.ownership.loose import Loose
from memlab.ownership.masks import by_owner
from memlab.ownership.owner import Owner
from memlab.ownership.reach import LEAST, Graphs, Reached
from memlab.ownership.stored import Stored, storages

# Measured by benchmarks/owners.py. Once graphs' tensors are found, what is asked of the whole heap takes so many times
# as long as the walk over it did. Following one tensor to its owners takes so many times as long as judging it did: 7
# in a list, 11 in an object each, 18 in an object with a dict each. Following gets at most this share of the time; of
# what it leaves, reading graphs gets the other share, for working with what was read takes as long again.
_WHOLE, _EACH = 1.6, 18.0
_FOLLOWING, _READING = 0.75, 0.4
_FEW = 8  # of so many tensors of one owner each is asked for what it leads to, and that
_WEIGHED = 100_000  # nodes in one look, which takes less than 0.1 s
_base: Any = torch._C.TensorBase
_dimensions = _base.ndim.__get__
_PYTHON = sysconfig.get_path("stdlib")


@dataclass(frozen=True)
class Survey:
    """Owners, largest exclusive first; and by key what each pins: bytes of the storages asked about, and nodes."""

    owners: list[Owner]
    keys: list[Key]
    pinned: dict[Key, tuple[int, int]]


def survey(tensor: Tensor | None = None, made: dict[int, int] | None = None, *, seconds: float | None = None) -> Survey:
    """Look at the whole heap once.

    Args:
        tensor: only owners that keep this tensor's graph alive.
        made: ``{storage key: bytes}`` of storages for which plain tensors' owners are wanted, too.
        seconds: how long it may take; reading graphs is broken off for it, and of more tensors than can be followed
            meanwhile, some from all over the heap stand for all, unless ``tensor`` or ``made`` asks for certain ones.
    """
    with collector_paused(), torch._C.DisableTorchFunctionSubclass():
        try:
            return _survey(tensor, made or {}, math.inf if seconds is None else seconds)
        finally:
            look.forget()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Many objects are made and dropped meanwhile, which would start collections of the whole heap."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _survey(tensor: Tensor | None, made: dict[int, int], seconds: float) -> Survey:
    began = time.perf_counter()
    found = anchors.find(_wanted(tensor, made))
    now, each = time.perf_counter(), found.judged * _EACH
    left = seconds - (now - began) - found.walked * _WHOLE
    if tensor is None and not made and each and left < math.inf:
        found.thin(max(LEAST, int(left * _FOLLOWING / each)))
    graphs = Graphs(found.nodes, found.maybe, now + (left - len(found.things) * each) * _READING)
    graphs.unread += found.left_out  # they may lead to what nothing else does
    found.things += graphs.more
    found.nodes += graphs.more
    graphs.more.clear()
    found.maybe.clear()
    objects = gc.get_objects()
    try:
        pytests = fixtures.find(objects)
        heap = Heap(objects, found.own | pytests.holders)
        return _Look(found, graphs, heap, made, pytests.names).survey(tensor)
    finally:
        objects.clear()


def _wanted(tensor: Tensor | None, made: dict[int, int]) -> Callable[[list[Tensor]], Iterable[Tensor]] | None:
    if made:
        return lambda tensors: (each for each, storage in storages(tensors) if storage._cdata in made)
    if tensor is not None and tensor.grad_fn is None:
        return lambda _: [tensor]
    return None


class _Look:
    def __init__(
        self, found: Anchors, graphs: Graphs, heap: Heap, made: dict[int, int], known: dict[int, fixtures.Said]
    ) -> None:
        self._found, self._graphs, self._heap, self._made = found, graphs, heap, made
        self._climb = Climb(heap, [*found.things, *found.plain], found.grads, known, found.parts)
        self._assignment = Assignment(self._climb)
        self._words = Words(self._climb, self._assignment)
        self._garbage = Garbage(heap, self._climb)
        numbers = map(graphs.number.__getitem__, map(id, found.nodes))
        self._numbers = dict(zip(map(id, found.things), numbers, strict=True))
        self._ages = {id(each): node._sequence_nr() for each, node in zip(found.things, found.nodes, strict=True)}
        self._loose = Loose(self._climb, self._assignment, graphs, self._numbers, self._garbage)
        self._stored = Stored(found.plain, made)
        self._may_weigh = _WEIGHED

    def survey(self, tensor: Tensor | None) -> Survey:
        holders, reached = self._loose.settle()
        totals = self._graphs.totals(reached)
        wanted = self._keeping(tensor, reached)
        alone = [each for each in map(id, self._found.plain) if each not in holders]
        holders |= self._assignment.of_all(alone)
        plain = self._stored.alone(holders, self._numbers)
        reaching = self._assignment.of_all(self._stored.keys)
        for each in reaching.keys() & self._numbers.keys():
            reaching[each] |= holders[each]
        saved = self._graphs.storages(reached)
        lies_in = self._stored.keys
        for each in [each for each, mask in reaching.items() if not mask and lies_in[each] not in saved]:
            reaching[each] = self._loose.inside(each, reached, saved)
        masks = self._stored.masks(reaching)
        self._births = Births(self._stored.births(masks))
        pinned = self._pinned(masks, saved, reached)
        held_by = _held_by(holders)
        groups = by_owner(totals)
        found = []
        for bit, key in enumerate(self._loose.keys):
            mask = 1 << bit
            shares = {group: totals[group] for group in groups.get(mask, ())}
            held = held_by(mask)
            if (shares or plain.get(mask)) and held and (wanted is None or wanted & mask):
                found.append((self._owner(key, mask, shares, held, plain), key))
        found.sort(key=lambda pair: _order(pair[0]))
        keys = [key for _, key in found]
        return Survey([owner for owner, _ in found], keys, {key: pinned(key) for key in keys})

    def _keeping(self, tensor: Tensor | None, reached: list[int]) -> int | None:
        """The owners that keep the tensor's graph alive, as bits; None for all."""
        if tensor is None:
            return None
        if tensor.grad_fn is not None:
            return reached[self._graphs.number[id(tensor.grad_fn)]]
        return self._assignment.of(id(tensor))

    def _pinned(
        self, masks: dict[int, int], saved: dict[int, int], reached: list[int]
    ) -> Callable[[Key], tuple[int, int]]:
        nbytes = self._stored.pinned(masks, saved)
        nodes = Counter(reached)
        numbers = {key: number for number, key in enumerate(self._loose.keys)}
        by_bytes, by_nodes = by_owner(nbytes), by_owner(nodes)

        def pinned(key: Key) -> tuple[int, int]:
            bit = 1 << numbers[key]
            held, leading = by_bytes.get(bit, ()), by_nodes.get(bit, ())
            return sum(nbytes[mask] for mask in held), sum(nodes[mask] for mask in leading)

        return pinned

    def _owner(
        self, key: Key, mask: int, shares: dict[int, Reached], held: list[int], plain: dict[int, Counter[int]]
    ) -> Owner:
        name = self._loose.name(key) or self._words.name(key)
        places: Counter[tuple[Any, int]] = Counter()
        modes: Counter[bool | None] = Counter()
        for each in shares.values():
            places.update(each.places)
            modes.update(each.modes)
        alone = shares.get(mask, Reached())
        is_plain = not shares
        last = self._heaviest(self._shown(name, held))
        ends = self._climb.things[last]
        unread = sum(each.unread for each in shares.values())
        text = look.type_name(type(ends))
        if not is_plain and look.is_a(ends, Tensor):
            text += f" -> {ends.grad_fn.name().removeprefix('torch::autograd::')}"
        least = [f"stopped after reading {self._graphs.read:,} nodes"] if unread else []
        if self._found.left_out:
            looked_at = len(self._found.things)
            least.append(f"followed {looked_at:,} of {looked_at + self._found.left_out:,} tensors")
        if least:
            text += f" (at least: {', '.join(least)})"
        way = self._words.way(key, last)
        return Owner(
            path=self._words.path(name, way, text),
            name=name.text,
            where=name.where,
            kind=name.kind,
            bytes=sum(plain[mask].values()) if is_plain else sum(each.bytes for each in shares.values()),
            exclusive_bytes=plain[mask][mask] if is_plain else alone.bytes,
            tensors=len(held) if is_plain else sum(each.tensors for each in shares.values()),
            nodes=sum(each.nodes for each in shares.values()),
            exclusive_nodes=alone.nodes,
            elements=len(held),
            born=self._born(mask, places),
            holds="tensors" if is_plain else "graph",
            freed_by_gc=self._is_garbage(key, name),
            through=self._words.through(way),
            scalar=all(is_number(self._climb.things[each]) for each in held),
            made_by=() if is_plain else made_by(ends),
            evaluating=modes[False] > 0 and not modes[True],
            complete=not unread and not self._found.left_out,
        )

    def _heaviest(self, held: list[int]) -> int:
        """Return the newest, for it is like the others; or another of a few that leads to far more, as a sum does.

        Where none leads to a graph it is the last found.
        """
        graphs = list(filter(self._ages.__contains__, held))
        if not graphs:
            return held[-1]
        newest = max(reversed(graphs), key=self._ages.__getitem__)
        if not 1 < len(graphs) <= _FEW or not self._may_weigh:
            return newest
        weights = {each: self._graphs.weight(self._numbers[each], self._may_weigh) for each in graphs}
        self._may_weigh -= min(self._may_weigh, sum(nodes for _, nodes in weights.values()))
        heaviest = max(reversed(graphs), key=weights.__getitem__)
        (nbytes, nodes), (most_bytes, most_nodes) = weights[newest], weights[heaviest]
        far_more = most_bytes > 2 * nbytes or (most_bytes == nbytes and most_nodes > 2 * nodes)
        return heaviest if far_more else newest

    def _shown(self, name: Name, held: list[int]) -> list[int]:
        """Return those of which the newest stands for all.

        Of a traceback, whose frames hold inputs and what was in use, too, these are those that lie where most do.
        """
        if name.kind != "traceback":
            return held
        places: defaultdict[int, list[int]] = defaultdict(list)
        for each in held:
            for holder in self._climb.up[each]:
                places[holder].append(each)
        return max(places.values(), key=len, default=held)

    def _born(self, mask: int, places: Counter[tuple[Any, int]]) -> str:
        saved = max(places, key=lambda place: places[place]) if places else None
        return self._births.of(mask) if saved is None or saved[0] is None else origins.describe(*saved)

    def _is_garbage(self, key: Key, name: Name) -> bool:
        known = self._loose.freed_by_gc(key)
        if known is not None:
            return known
        roots = [each.root for each in self._words.names(key)] or [name.root]
        return all(root is not None and self._garbage.is_garbage(root) for root in roots)


def _held_by(holders: dict[int, int]) -> Callable[[int], list[int]]:
    """Return what finds the objects that one owner (a bit) holds: many have the same owners, which are asked once."""
    objects = list(holders)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for place, mask in enumerate(holders.values()):
        groups[mask].append(place)

    owned = by_owner(groups)

    def held(bit: int) -> list[int]:
        places = chain.from_iterable(groups[mask] for mask in owned.get(bit, ()))
        return [objects[place] for place in sorted(places)]

    return held


def is_number(thing: Any) -> bool:
    """Whether a thing is a 0-dim tensor."""
    return look.is_a(thing, Tensor) and not _dimensions(thing)


def made_by(thing: Any) -> tuple[str, ...]:
    """Return the name of a tensor's node, or of a node, and the names of those that it leads to."""
    node = thing.grad_fn if look.is_a(thing, Tensor) else thing
    following = [each for each, _ in node.next_functions if each is not None]
    return tuple(each.name().removeprefix("torch::autograd::") for each in (node, *following))


def _order(owner: Owner) -> tuple[Any, ...]:
    shell = owner.where == "global of __main__" and owner.name.startswith(("_", "Out"))
    at = places.at_end(owner.where)
    in_library = at is not None and (at[0].startswith(_PYTHON) or places.installed(at[0]) is not None)
    theirs = shell or in_library  # a shell's or a library's, not the user's
    return (-owner.exclusive_bytes, theirs, -owner.bytes, -owner.exclusive_nodes, -owner.nodes, owner.name)
