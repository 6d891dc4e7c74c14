"""Climb from objects to all the names that hold them, through containers and objects that have no name themselves."""

from __future__ import annotations

import _thread
import functools
import gc
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memlab import checkpoints, deep, hooks, origins
from memlab.ownership import bound, frames, look, shell
from memlab.ownership.alike import Alike
from memlab.ownership.heap import Heap, Holders
from memlab.ownership.links import Links

DEEPEST = 40  # levels of containers and objects between a tensor and a name
LRU_CACHE = type(functools.lru_cache(lambda: None))
_OWN = (hooks.Packed, deep.Cut, Heap, frames.Ended)
GENERATORS = {GeneratorType: "generator", CoroutineType: "coroutine", AsyncGeneratorType: "coroutine"}
_SPECIAL = frozenset(
    id(each)
    for each in (
        *_OWN,
        *GENERATORS,
        *(CodeType, FrameType, FunctionType, CellType, LRU_CACHE),
        *(ModuleType, type, Tensor, _thread._local),
    )
)

Key = tuple[Any, ...]
LAST_ERROR: Key = ("sys", "last")


@dataclass(frozen=True, eq=False)
class Name:
    """A name that Python code can use or clear.

    ``key`` tells names apart: two names of one closure cell have one key. ``rank`` says which of several to show: the
    lower, the better. ``root`` is an object that must be alive for the name to matter; None for what runs or is global.
    """

    text: str
    where: str
    kind: str
    key: Key
    rank: float
    root: Any = None


OUTPUT = Name(shell.NAME, shell.WHERE, "global", ("shell", "outputs"), 6)


class Climb:
    """Everything between some objects and the names that hold them.

    Attributes:
        links: which objects are on the way, and which hold which.
        things, down, up: these, of ``links``.
        names: names by the ``id()`` of what they name.
        parts: ids of the tensors that a sparse one is made of, by its ``id()``.
        nodes: pairs (id of an autograd node, id of what Python code has hung on it).
    """

    def __init__(
        self,
        heap: Heap,
        starts: list[Any],
        extra: list[tuple[Any, Any]],
        known: dict[int, tuple[str, str]] | None = None,
        parts: Sequence[tuple[Any, Any]] = (),
    ) -> None:
        self.heap, self._known = heap, known or {}
        self.links = Links(starts)
        self.things, self.down, self.up = self.links.things, self.links.down, self.links.up
        self.names: defaultdict[int, list[Name]] = defaultdict(list)
        self.nodes: set[tuple[int, int]] = set()
        self._modules = _module_dicts()
        self._shell = shell.find()
        running = frames.running()
        self._frames, self._cell_locals = _frame_slots(running)
        self._running = {id(frame) for frame in running}
        del running  # another thread's frames may end meanwhile
        self._generators = frames.generators_of(heap.objects)
        self.grads: defaultdict[int, set[int]] = defaultdict(set)
        self._extra: defaultdict[int, list[Any]] = defaultdict(list)
        for holder, held in extra:
            self._extra[id(held)].append(holder)
            self.grads[id(holder)].add(id(held))
        self.parts: defaultdict[int, set[int]] = defaultdict(set)
        for holder, held in parts:
            self._extra[id(held)].append(holder)
            self.parts[id(holder)].add(id(held))
        level = self._starts = set(self.things)
        self._alike = Alike(self.links, set(level))
        self._risen = set(level)
        for _ in range(DEEPEST):
            if not level:
                break
            level = self._rise(level)
        self._alike.settle(self.names)

    def names_of(self, thing: int) -> list[Name]:
        """Return the names of an object, those of a frame's cells that hold it among them."""
        cells = [each for each in self.up[thing] if type(self.things[each]) is CellType]
        return [*self.names.get(thing, ()), *(name for each in cells for name in self._frames.get(each, ()))]

    def _rise(self, level: set[int]) -> set[int]:
        """Find all holders of this level; return those that have no name and are to be asked next."""
        for each in level & self._frames.keys():
            self.names[each].extend(self._frames[each])
        for each in level & self._known.keys():
            text, where = self._known[each]
            self.names[each].append(Name(text, where, "fixture", ("fixture", each), 3))
        found = self.heap.holders(level)
        alone = self._special(found)
        pairs = found.only(alone).pairs()
        for each in level & self._extra.keys():
            pairs.extend((holder, [each]) for holder in self._extra[each])
        pairs.sort(key=lambda pair: id(pair[0]) not in self._modules)  # who has a name must be known first
        fresh = {id(holder) for holder, held in pairs if self._leads_on(holder, held)}
        others = found.only(~alone)
        self.links.link_all(others)
        fresh |= self._leading_on(others, level)
        fresh -= self._risen
        fresh |= self._alike.rise()  # again, where what has a name of its own was no way on before
        self._risen |= fresh
        return fresh

    def _special(self, found: Holders) -> NDArray[np.bool_]:
        """Say which of these are more than objects that hold what they refer to."""
        kinds = list(map(type, found.things))
        _, first, place = np.unique(list(map(id, kinds)), return_index=True, return_inverse=True)
        special = np.array([not _only_holds(kinds[each]) for each in first.tolist()], dtype=np.bool_)
        alone: NDArray[np.bool_] = special[place] | np.isin(found.ids, [*self._modules, *self._shell.places])
        return alone

    def _leads_on(self, holder: Any, held: list[int]) -> bool:
        """Record what ``holder`` is to what it holds; tell whether the way leads on through it, and not to a name."""
        if id(holder) in self._modules:
            self._name_globals(holder, set(held), self._modules[id(holder)])
            return False
        if id(holder) in self._shell.places:
            held = [each for each in held if not self._name_output(holder, each)]
        self.links.link(holder, [each for each in held if self._leads_to(holder, each)])
        return not all(map(self._is_named_object, self.down[id(holder)]))

    def _leading_on(self, found: Holders, level: set[int]) -> set[int]:
        """Return those through which the way leads on: climbing ends at an object that is named by now."""
        ends = [each for each in level & self.names.keys() if self._is_named_object(each)]
        if not ends:
            return set(found.ids.tolist())
        return set(found.ids[found.places[~np.isin(found.held, ends)]].tolist())

    def _leads_to(self, holder: Any, held: int) -> bool:
        """Record what ``holder`` is to ``held``; tell whether the way leads on through it, and not to a name."""
        kind = type(holder)
        if look.is_exactly(holder, *_OWN, CodeType):
            return False
        if kind is FrameType and (frames.is_own(holder.f_code) or frames.has_ended(holder)):
            return False
        if kind is FunctionType:
            return self._function(holder, held)
        if look.is_exactly(holder, *GENERATORS):
            return self._generator(holder, held)
        if kind is FrameType and id(holder) in self._generators:
            return self._generator(self._generators[id(holder)], held)
        if kind is LRU_CACHE:
            self._name_cache(holder, held)
            return False
        if look.is_a(holder, ModuleType):
            return False
        if look.is_a(holder, type):
            return self._class(holder, held)
        if look.is_node(kind):
            self.nodes.add((id(holder), held))
            return True
        if look.is_a(holder, Tensor) and look.is_node(type(self.things[held])):
            return False  # a tensor leads to its own graph
        if look.is_a(holder, _thread._local) and type(self.things[held]) is dict:
            for space in self.down[held]:  # in between lies a dict with one ``__dict__`` for each thread
                self.links.spaces[space] = id(holder)
                self.links.link(holder, [space])
            return False
        if kind is CellType:
            for name in self._cell_locals.get(held, ()):
                self.names[id(holder)].append(_renamed(name, ("cell", id(holder))))
        return True

    def _is_named_object(self, held: int) -> bool:
        if not self.names.get(held) or held in self._alike.passed or held in self._starts:
            return False
        thing = self.things[held]
        return not look.is_a(thing, *look.CONTAINERS) and not look.is_exactly(thing, *look.PASSING)

    def _name_globals(self, space: dict[Any, Any], held: set[int], module: str) -> None:
        for key, value in look.items(space):
            if id(value) in held and type(key) is str:
                if self._shell.is_output(id(space), key):
                    self.names[id(value)].append(OUTPUT)
                    continue
                is_theirs = module == "__main__" and (key.startswith("_") or key in ("Out", "In"))
                is_last_error = module == "sys" and key in ("last_value", "last_exc", "last_traceback", "last_type")
                self.names[id(value)].append(
                    Name(
                        text="sys.last_value" if is_last_error else key,
                        where="the last error" if is_last_error else f"global of {module}",
                        kind="traceback" if is_last_error else "global",
                        key=LAST_ERROR if is_last_error else ("global", id(space), key),
                        rank=6 if is_theirs else 1,
                    )
                )

    def _name_output(self, holder: Any, held: int) -> bool:
        is_output = self._shell.keeps(id(holder), held)
        if is_output:
            self.names[held].append(OUTPUT)
        return is_output

    def _function(self, function: FunctionType, held: int) -> bool:
        if function.__code__.co_filename == checkpoints.FILE:
            return held == id(function.__closure__)  # of a region, which its graph keeps; nobody can act on it
        if frames.is_own(function.__code__):
            return False
        about = f"{function.__qualname__}(), {frames.place(function.__code__)}"
        if held == id(function.__closure__):
            for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
                key = ("cell", id(cell))
                if id(cell) in self.down[held]:
                    self._note_cell(function, free, id(cell), key)
                self.names[id(cell)].append(Name(free, f"closure of {about}", "closure", key, 2, function))
        elif held == id(function.__defaults__):
            code, defaults = function.__code__, function.__defaults__ or ()
            named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
            for argument, value in zip(named, defaults, strict=False):
                self._name_default(function, argument, value, about)
        elif type(self.things[held]) is not dict:
            return False
        elif held == id(function.__globals__):
            module = function.__globals__.get("__name__")
            about = module if type(module) is str else "a namespace"
            self._name_globals(function.__globals__, set(self.down[held]), about)
        elif held == id(function.__kwdefaults__):
            for argument, value in look.items(function.__kwdefaults__ or {}):
                self._name_default(function, argument, value, about)
        elif held == id(function.__dict__):
            self.links.spaces[held] = id(function)
            name = Name(function.__qualname__, f"function {about}", "function", ("function", id(function)), 2)
            self.names[id(function)] = [name]
            return True
        return False

    def _note_cell(self, function: FunctionType, free: str, cell: int, key: Key) -> None:
        """A cell that another function or a frame shares is a variable of theirs, too."""
        shared = self.names.get(cell) or sum(type(self.things[each]) is tuple for each in self.up[cell]) > 1
        if not shared and not bound.rebinds(function.__code__, free):
            for content in self.down[cell]:
                self._alike.note(function, function.__code__, cell, content, key)

    def _name_default(self, function: FunctionType, argument: str, value: Any, about: str) -> None:
        key = ("default", id(function), argument)
        if id(value) in self.things:
            self._alike.note(function, function.__code__, id(value), id(value), key)
        self.names[id(value)].append(
            Name(argument, f"default argument of {about}", "default argument", key, 2, function)
        )

    def _generator(self, generator: Any, held: int) -> bool:
        kind, frame = GENERATORS[type(generator)], frames.FRAME_OF[type(generator)].__get__(generator)
        if frame is not None and id(frame) not in self._running:  # else its locals have names already
            for name in self._names_in(frame, held):
                where = f"local of {kind} {generator.__qualname__}(), {frames.place(frame.f_code, frame.f_lineno)}"
                key = ("generator", id(generator), name)
                self.names[held].append(_local(name, where, kind, key, 0, generator))
                if not bound.rebinds_in_loop(frame.f_code, name):
                    self._alike.note(generator, frame.f_code, held, held, key)
        return False

    def _names_in(self, frame: FrameType, held: int) -> list[str]:
        """Return what a suspended frame calls what it holds; if it has no name there, it is in use or a snapshot."""
        thing = self.things[held]
        target = held
        if frames.SHOWS_CONTENT and type(thing) is CellType:
            target = next(map(id, gc.get_referents(thing)), held)
        names = [name for name, identity in frames.slots(frame) if identity == target]
        others = (frame.f_globals, frame.f_builtins, frame.f_trace)
        if names or look.is_exactly(thing, FrameType, FunctionType) or any(each is thing for each in others):
            return names
        return [frames.TEMPORARY]

    def _name_cache(self, cache: Any, held: int) -> None:
        function = (look.dict_of(cache) or {}).get("__wrapped__")
        name = function.__qualname__ if type(function) is FunctionType else "a function"
        where = f"lru_cache of {name}(); {name}.cache_clear() empties it"
        self.names[held].append(Name(name, where, "lru_cache", ("lru_cache", id(cache)), 1, cache))

    def _class(self, kind: type, held: int) -> bool:
        if type(self.things[held]) is not dict:
            return False  # its bases, its subclasses
        self.links.spaces[held] = id(kind)
        name = look.qualified(kind)
        self.names[id(kind)] = [Name(name, f"class {name}", "class", ("class", id(kind)), 2, kind)]
        return True


def _local(name: str, where: str, kind: str, key: Key, rank: float, holder: Any = None) -> Name:
    if name == frames.TEMPORARY:
        return Name("a value in use", where.replace("local of", "in"), "temporary", key, 5, holder)
    return Name(name, where, kind, key, rank + 0.5 * (name == "self"), holder)


def _renamed(name: Name, key: Key) -> Name:
    return Name(name.text, name.where, name.kind, key, name.rank, name.root)


def _only_holds(kind: type) -> bool:
    """Whether what an object of this type holds is held by it, and there is no more to it."""
    return not look.is_node(kind) and _SPECIAL.isdisjoint(map(id, look.mro(kind)))


def _module_dicts() -> dict[int, str]:
    found: dict[int, str] = {}
    for name, module in list(sys.modules.items()):
        if look.is_a(module, ModuleType):
            found.setdefault(id(look.dict_of(module)), name)  # multiprocessing names __main__ a second time
    return found


def _frame_slots(running: list[FrameType]) -> tuple[dict[int, list[Name]], dict[int, list[Name]]]:
    """Return names by the identity of what running frames hold, and those of cells by the identity of the content."""
    found: defaultdict[int, list[Name]] = defaultdict(list)
    cells: defaultdict[int, list[Name]] = defaultdict(list)
    for frame in running:
        code = frame.f_code
        where = f"local of {frames.describe(frame)}"
        rank = 0 if origins.USER_FILES[code.co_filename] else 1.5  # torch's own self is no name for a user's global
        in_cells = {*code.co_cellvars, *code.co_freevars}
        for name, identity in frames.slots(frame):
            is_cell = name in in_cells
            key = ("cell", identity) if is_cell else ("local", id(frame), name)
            several = cells if is_cell and frames.SHOWS_CONTENT else found
            several[identity].append(_local(name, where, "local", key, rank))
    return dict(found), dict(cells)
