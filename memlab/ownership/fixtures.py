"""What pytest keeps for tests: fixtures' values and tests' instances, under the names that tests know them by.

pytest itself holds them many times over, in plugins and caches that no test's author can clear.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from types import CodeType, FunctionType, GeneratorType
from typing import Any

from memlab.ownership import frames, look

Said = tuple[str, str]  # a name, and where it lives


@dataclass(frozen=True)
class Fixtures:
    """What was found; nothing of it is held.

    Attributes:
        names: what a value is called and where that name lives, by the ``id()`` of the value.
        holders: ``id()`` of pytest's own objects that hold values, which are not to be named instead.
    """

    names: dict[int, Said] = field(default_factory=dict)
    holders: set[int] = field(default_factory=set)


def find(objects: list[Any]) -> Fixtures:
    """Look among all objects for pytest's fixtures and tests; none of its code runs."""
    found = Fixtures()
    fixture, test = _kind("_pytest.fixtures", "FixtureDef"), _kind("_pytest.python", "Function")
    if fixture is None or test is None:
        return found
    generators: list[Any] = []
    codes: dict[int, CodeType] = {}  # of fixtures, by the id of the value
    for thing in _of(objects, (fixture, test, GeneratorType)):
        if type(thing) is GeneratorType:
            generators.append(thing)
            continue
        state = look.dict_of(thing) or {}
        found.holders.update((id(thing), id(state)))
        if look.is_a(thing, test):
            _add_instance(found, state)
        else:
            _add_value(found, state, codes)
    for value in _named_in(generators, codes):
        del found.names[value]
    return found


def _kind(module: str, name: str) -> type | None:
    thing = sys.modules.get(module)
    kind: Any = None if thing is None else (look.dict_of(thing) or {}).get(name)
    return kind if look.is_a(kind, type) else None


def _of(objects: list[Any], wanted: tuple[type, ...]) -> Iterator[Any]:
    kinds = list(map(id, map(type, objects)))
    is_wanted = {each: look.is_a(thing, *wanted) for each, thing in dict(zip(kinds, objects, strict=True)).items()}
    return compress(objects, map(is_wanted.__getitem__, kinds))


def _add_value(found: Fixtures, state: dict[Any, Any], codes: dict[int, CodeType]) -> None:
    cached, function, name = state.get("cached_result"), state.get("func"), state.get("argname")
    if type(cached) is not tuple or not cached or type(name) is not str:
        return
    scope = (look.dict_of(state.get("_scope")) or {}).get("_value_")
    where = f"{scope} fixture" if type(scope) is str else "fixture"
    if type(function) is FunctionType:
        where += f", {frames.place(function.__code__)}"
        codes[id(cached[0])] = function.__code__
    found.names[id(cached[0])] = name, where


def _add_instance(found: Fixtures, state: dict[Any, Any]) -> None:
    instance, test = state.get("_instance"), state.get("originalname")
    if instance is not None:
        found.names[id(instance)] = "self", f"instance of {look.type_name(type(instance))} for {test}()"


def _named_in(generators: list[Any], codes: dict[int, CodeType]) -> set[int]:
    """Return the values that a fixture still has a variable for: that name is the better one."""
    several = {id(code) for code in codes.values()}
    found: set[int] = set()
    for each in generators:
        frame = frames.FRAME_OF[GeneratorType].__get__(each)
        if frame is not None and id(frame.f_code) in several:
            found.update(held for _, held in frames.slots(frame) if codes.get(held) is frame.f_code)
    return found
