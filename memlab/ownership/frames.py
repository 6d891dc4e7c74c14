"""What frames hold, read without touching it: names and identities of locals, no reference and no snapshot.

Before Python 3.13 ``frame.f_locals`` makes a dict that stays in the frame: a variable would live on after its ``del``,
and under a debugger the dict is written back. So the slots are read where the interpreter keeps them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from memlab import places, stacks

OPTIMIZED = 1  # CO_OPTIMIZED: a function's frame; others keep their names in a dict
Slot = tuple[str, int]  # a local's name (TEMPORARY for a value in use that has none) and the id of what it holds
TEMPORARY = ""

_POINTER = ctypes.sizeof(ctypes.c_void_p)
# Offsets of the interpreter's own structures: PyFrameObject.f_frame; and in it stacktop and localsplus (3.11 and 3.12).
_F_FRAME, _STACKTOP, _LOCALSPLUS = 3 * _POINTER, 8 * _POINTER, 8 * _POINTER + 8
_DEEPEST_STACK = 1_000


FRAME_OF: dict[type, Any] = {
    GeneratorType: GeneratorType.gi_frame,
    CoroutineType: CoroutineType.cr_frame,
    AsyncGeneratorType: AsyncGeneratorType.ag_frame,
}


def running() -> list[FrameType]:
    """Return the frames that run now in every thread, innermost first, without memlab's own."""
    found = []
    each: FrameType | None
    for each in list(sys._current_frames().values()):
        while each is not None:
            if not is_own(each.f_code):
                found.append(each)
            each = each.f_back  # ends as None: a frame that held itself would be a cycle
    known = {id(each) for each in found}
    ended = (each for several in _ended for each in several)
    return [*found, *(each for each in ended if id(each) not in known and not is_own(each.f_code))]


class Ended(list[FrameType]):
    """The frames that an error has ended and its traceback keeps; between ``with`` and its end they count as running.

    It ends the program, and they are what the program was doing.
    """

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        traceback = error.__traceback__ if error is not None else None
        while traceback is not None:
            self.append(traceback.tb_frame)
            traceback = traceback.tb_next

    def __enter__(self) -> Ended:
        _ended.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ended.pop()


_ended: list[Ended] = []


def has_ended(frame: FrameType) -> bool:
    """Tell whether a frame counts as running because of `Ended`."""
    return any(each is frame for several in _ended for each in several)


def generators_of(objects: Iterable[Any]) -> dict[int, Any]:
    """Return the generators and coroutines by the ``id()`` of their frames.

    Only where `LIES_BETWEEN`: elsewhere a generator holds its locals itself, and asking for its frame would make one.
    """
    if not LIES_BETWEEN:
        return {}
    found = {}
    for each in objects:
        kind = type(each)  # compared one by one: a dict would ask a metaclass for its hash
        if kind is GeneratorType or kind is CoroutineType or kind is AsyncGeneratorType:
            frame = FRAME_OF[kind].__get__(each)
            if frame is not None:
                found[id(frame)] = each
    return found


def is_own(code: CodeType) -> bool:
    return stacks.is_own(code.co_filename)


def describe(frame: FrameType) -> str:
    """Return ``train(), train.py:31`` for a frame at this line."""
    code = frame.f_code
    return f"{getattr(code, 'co_qualname', code.co_name)}(), {place(code, frame.f_lineno)}"


def place(code: CodeType, line: int | None = None) -> str:
    return places.place(code.co_filename, line or code.co_firstlineno)


def slots(frame: FrameType) -> Iterator[Slot]:
    """Yield the locals of a function's frame, running, suspended or finished; cells stand for themselves."""
    if not frame.f_code.co_flags & OPTIMIZED:
        return
    if sys.version_info >= (3, 13):
        yield from [(name, id(value)) for name, value in frame.f_locals.items()]
    elif READS_SLOTS:
        yield from _read(frame)
    elif sys.gettrace() is None and sys.getprofile() is None and frame.f_trace is None:
        snapshot: dict[str, Any] = frame.f_locals
        found = [(name, id(value)) for name, value in snapshot.items()]
        snapshot.clear()
        yield from found


def _read(frame: FrameType) -> list[Slot]:
    code = frame.f_code
    names = _names(code)
    if sys.version_info >= (3, 11):
        inner = _word(id(frame) + _F_FRAME)
        start, depth = inner + _LOCALSPLUS, ctypes.c_int.from_address(inner + _STACKTOP).value
    else:
        start, depth = id(frame) + type(frame).__basicsize__ - _POINTER, 0
    named = [(name, _word(start + index * _POINTER)) for index, name in enumerate(names)]
    used = range(len(names), depth) if len(names) < depth <= len(names) + min(code.co_stacksize, _DEEPEST_STACK) else ()
    return [slot for slot in named if slot[1]] + [(TEMPORARY, _word(start + index * _POINTER)) for index in used]


def _names(code: CodeType) -> tuple[str, ...]:
    """Names of the slots in their order: an argument that is also a cell has one slot from Python 3.11 on."""
    cells = code.co_cellvars
    if sys.version_info >= (3, 11):
        cells = tuple(name for name in cells if name not in code.co_varnames)
    return code.co_varnames + cells + code.co_freevars


def _word(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _reads_slots() -> bool:
    """Check on frames with known locals, running and suspended, that their slots are where they are expected."""
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13) or hasattr(sys, "gettotalrefcount"):
        return False

    def known(one: object, captured: object) -> bool:
        two = object()
        frame = sys._getframe()
        found = dict(_read(frame))
        return (lambda: captured) is not None and found["one"] == id(one) and found["two"] == id(two)

    def waits(one: object) -> Iterator[object]:
        yield (lambda: one)

    one = object()
    generator = waits(one)
    captures: Any = next(generator)
    (cell,) = captures.__closure__
    suspended = _read(FRAME_OF[GeneratorType].__get__(generator))
    return known(object(), object()) and suspended[-1] == ("one", id(cell))


def _lies_between() -> bool:
    """Before Python 3.11 a generator holds a frame, and the frame the locals."""
    generator = (each for each in "")
    return any(type(each) is FrameType for each in gc.get_referents(generator))


LIES_BETWEEN = _lies_between()
READS_SLOTS = _reads_slots()
SHOWS_CONTENT = not READS_SLOTS  # f_locals shows what a cell holds, the slots the cell itself
