"""Look at any object without running its code: only C descriptors of built-in types are used.

A class may define ``__class__``, ``__dict__``, ``__getattribute__``, ``__eq__``, ``__hash__`` or a metaclass that
raises or lies; none of them is called.
"""

from __future__ import annotations

import _thread
import functools
from collections import deque
from collections.abc import Callable, Iterator, Set
from types import CellType, FrameType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

mro = type.__dict__["__mro__"].__get__
_namespace = type.__dict__["__dict__"].__get__
_qualname = type.__dict__["__qualname__"].__get__
_module_dict = _namespace(ModuleType)["__dict__"].__get__
_name = type.__dict__["__name__"].__get__
# By id, for a metaclass may define __hash__; with the type itself, so that the id stays. `forget` lets the types go.
_known: dict[tuple[Any, int], tuple[type, Any]] = {}

SEQUENCES: tuple[tuple[type, Any], ...] = (
    (list, list.__iter__),
    (tuple, tuple.__iter__),
    (deque, deque.__iter__),
)
# What only leads to what it holds, and has no attributes to speak of.
_ITERABLES: list[Any] = [[], (), {}, set(), deque()]
PASSING: tuple[type, ...] = (
    CellType,
    FrameType,
    MethodType,
    functools.partial,
    *(type(iter(each)) for each in _ITERABLES),
)
# A tensor's hooks, which lie in C++ and not in its __dict__; the descriptors are torch's own.
TENSOR_HOOKS = {
    name: getattr(torch._C.TensorBase, name).__get__ for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
}
_SPACES = (type, _thread._local)  # their attributes lie where no descriptor says
CONTAINERS = (list, tuple, deque, set, frozenset, dict)


def type_name(kind: type) -> str:
    return str(_name(kind))


def qualified(kind: type) -> str:
    return str(_qualname(kind))


def is_a(thing: Any, *kinds: type) -> bool:
    """Tell by type alone, which ``isinstance`` does not."""
    kind = type(thing)
    known = _known.get((kinds, id(kind)))
    if known is None:
        known = _known[kinds, id(kind)] = (kind, any(each is one for each in mro(kind) for one in kinds))
    return bool(known[1])


def is_exactly(thing: Any, *kinds: type) -> bool:
    """Tell by the very type; ``in`` would call a metaclass's ``__eq__``."""
    kind = type(thing)
    return any(kind is each for each in kinds)


def is_node(kind: type) -> bool:
    """Tell the types of autograd nodes."""
    return bool(once("node", kind, _find_node))


def _find_node(kind: type) -> bool:
    entries = (_namespace(each).get("next_functions") for each in mro(kind))
    return any(type(entry) is GetSetDescriptorType for entry in entries)


def once(what: str, kind: type, find: Callable[[type], Any]) -> Any:
    """Return what ``find`` says of a type; it is asked once for each until `forget`."""
    known = _known.get((what, id(kind)))
    if known is None:
        known = _known[what, id(kind)] = (kind, find(kind))
    return known[1]


def forget() -> None:
    """Let go of the types that were looked at."""
    _known.clear()


def dict_of(thing: Any) -> dict[Any, Any] | None:
    """Return an object's ``__dict__`` if it has one, whatever its class says about it."""
    kind = type(thing)
    if is_a(thing, type):
        return None  # a class's namespace is read with `class_dict`
    if is_a(thing, ModuleType):
        found = _module_dict(thing)
        return found if is_a(found, dict) else None
    descriptor = once("dict", kind, _find_dict)
    try:
        found = None if descriptor is None else descriptor.__get__(thing)
    except Exception:
        return None
    return found if is_a(found, dict) else None


def class_dict(kind: type) -> Any:
    """Return a class's namespace, whatever its metaclass says about it."""
    return _namespace(kind)


def _find_dict(kind: type) -> Any:
    entries = (_namespace(each).get("__dict__") for each in mro(kind))
    return next((entry for entry in entries if is_exactly(entry, GetSetDescriptorType, MemberDescriptorType)), None)


def passes_on(thing: Any) -> bool:
    """Tell what only leads to what it holds: `PASSING`, and objects of C's without any attribute, such as a ``zip``."""
    kind = type(thing)
    return is_exactly(thing, *PASSING) or not (is_a(thing, *_SPACES) or once("attributes", kind, _has_attributes))


def _has_attributes(kind: type) -> bool:
    return any("__dict__" in _namespace(each) for each in mro(kind)) or bool(_find_members(kind))


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield slots and other attributes that lie in the object itself, such as an exception's traceback."""
    for name, entry in once("members", type(thing), _find_members):
        try:
            yield name, entry.__get__(thing)
        except Exception:  # an empty slot
            continue


def _find_members(kind: type) -> list[tuple[str, Any]]:
    bases = mro(kind)
    known = (
        (MemberDescriptorType, GetSetDescriptorType)
        if any(each is BaseException for each in bases)
        else (MemberDescriptorType,)
    )
    return [
        (name, entry)
        for each in bases
        for name, entry in list(_namespace(each).items())
        if is_exactly(entry, *known) and name not in ("__dict__", "__weakref__", "__class__")
    ]


def attribute(thing: Any, target: int) -> str:
    """Return the name of the attribute of ``thing`` that is the object with this id, or ``"?"``."""
    for name, value in items(dict_of(thing) or {}):
        if id(value) == target:
            return str(name) if type(name) is str else "?"
    if type(thing) is MethodType:
        return "__self__"
    if is_a(thing, Tensor):
        return next((name for name, read in TENSOR_HOOKS.items() if id(read(thing)) == target), "?")
    return next((name for name, value in members(thing) if id(value) == target), "?")


def items(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the items of a dict, of whatever subclass, as they are at this moment."""
    return list(dict.items(mapping))


def key_of(mapping: dict[Any, Any], target: int) -> str | None:
    """Return the last key, as text, whose value is the object with this id."""
    return keys_of(mapping, {target}).get(target)


def keys_of(mapping: dict[Any, Any], targets: Set[int]) -> dict[int, str | None]:
    """As `key_of`, of several objects in one pass: by their ids."""
    found = ((id(value), key) for key, value in items(mapping))
    return {each: key if type(key) is str else None for each, key in found if each in targets}


def place_in(container: Any, target: int) -> str:
    """Return where in a container the object with this id is: ``"[3]"``, ``"['loss']"``, or what can be said."""
    for kind, iterate in SEQUENCES:
        if is_a(container, kind):
            places = [index for index, each in enumerate(_settled(iterate, container)) if id(each) == target]
            return f"[{places[-1]}]" if places else ""
    if is_a(container, dict):
        for key, value in reversed(items(container)):
            if id(value) == target:
                return f"[{_spell(key)}]"
        return " key" if any(id(key) == target for key, _ in items(container)) else ""
    return ""


def _settled(iterate: Any, container: Any) -> list[Any]:
    try:
        return list(iterate(container))
    except RuntimeError:  # another thread has changed it
        return []


def _spell(key: Any) -> str:
    if type(key) is str:
        return repr(key if len(key) <= 40 else key[:37] + "...")
    return repr(key) if is_exactly(key, int, float, bool, type(None), bytes) else f"<{type_name(type(key))}>"
