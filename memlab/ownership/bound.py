"""Which variables of a function are bound once: they cannot grow, only what holds many such functions can."""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType

_STORES = ("STORE_FAST", "STORE_DEREF")
_CODES = 256  # so many answers are remembered; they keep code, no tensors


@lru_cache(_CODES)
def rebinds(code: CodeType, name: str) -> bool:
    """Whether calling a function gives a new value to the variable ``name`` that it closes over, or a default."""
    if name in code.co_freevars and _binds(code, "STORE_DEREF", name):
        return True
    inner = [each for each in code.co_consts if isinstance(each, CodeType) and name in each.co_freevars]
    return any(rebinds(each, name) for each in inner)


@lru_cache(_CODES)
def rebinds_in_loop(code: CodeType, name: str) -> bool:
    """Whether a generator may give a new value to its local ``name`` again and again."""
    steps = list(dis.get_instructions(code))
    loops = [(to, each.offset) for each in steps if "JUMP" in each.opname and (to := _target(each)) <= each.offset]
    stores = [each.offset for each in steps if each.opname.startswith(_STORES) and _names(each, name)]
    return rebinds(code, name) or any(start <= store <= end for store in stores for start, end in loops)


def _binds(code: CodeType, operation: str, name: str) -> bool:
    return any(each.opname == operation and each.argval == name for each in dis.get_instructions(code))


def _target(jump: dis.Instruction) -> int:
    return jump.argval if isinstance(jump.argval, int) else jump.offset + 1


def _names(store: dis.Instruction, name: str) -> bool:
    """Python 3.13 has instructions that store into two names at once."""
    return name in store.argval if isinstance(store.argval, tuple) else store.argval == name
