"""Snapshots as pickles: written for every reader there is, read as plain data whoever wrote them.

A pickle is a program. `loads` runs the part of it that makes None, numbers, texts, lists, tuples and dicts; there is no
instruction for anything else, so nothing in a file can import, call or build an object. What a file may cost is bounded
in bytes, marks and seconds. How deep its containers nest is not: nothing here goes through them by recursion.
"""

from __future__ import annotations

import gc
import pickle
import struct
import time
from typing import Any, BinaryIO

from memlab.units import format_bytes

LARGEST_FILE = 512 << 20
"""Bytes that are read of a file at most."""
MEMORY = 2 << 30
"""Bytes that what is read may take, by a rough count."""
SECONDS = 120.0
"""How long reading may take."""
PROTOCOLS = (2, 3, 4, 5)
_MARKS = 64  # a snapshot nests containers six deep
_LONGEST_INTEGER = 16  # bytes
_OFTEN = 1 << 16  # instructions between two looks at the clock
_FIRST = 0x80


class NotASnapshot(ValueError):
    """A file that is no snapshot, or one that is not read; the text says why."""


def is_pickle(head: bytes) -> bool:
    """Tell whether a file that begins with these bytes is a pickle of protocol 2 or later."""
    return head[:1] == bytes([_FIRST])


def dumps(content: Any) -> bytes:
    """Return plain data as a pickle that the memory_viz page opens: protocol 4, whatever Python's default is."""
    return pickle.dumps(content, protocol=4)


def load(file: BinaryIO) -> Any:
    """Return the plain data in ``file``.

    Raises:
        NotASnapshot: it holds anything else, or more than the limits of this module allow.
        OSError: it cannot be read.
    """
    head = file.read(2)
    if not is_pickle(head) or head[1:2] not in [bytes([each]) for each in PROTOCOLS]:
        raise NotASnapshot("it is not a pickle of protocol 2, 3, 4 or 5, which torch writes")
    data = head + file.read(LARGEST_FILE - 1)
    if len(data) > LARGEST_FILE:
        raise NotASnapshot(f"it is larger than {format_bytes(LARGEST_FILE)}; record with a smaller max_entries")
    return loads(data)


def loads(data: bytes, *, memory: int = MEMORY, seconds: float = SECONDS) -> Any:
    """Return the plain data in a pickle.

    Args:
        data: the pickle.
        memory: bytes that the result may take, by a rough count.
        seconds: how long this may take.

    Raises:
        NotASnapshot: an instruction that makes anything but plain data; damage; a limit.
    """
    collects = gc.isenabled()
    gc.disable()  # millions of containers, none of them garbage
    try:
        return _run(data, memory, time.monotonic() + seconds)
    except (IndexError, KeyError, struct.error):
        raise NotASnapshot("it is damaged or cut short") from None
    finally:
        if collects:
            gc.enable()


def _run(data: bytes, budget: int, deadline: float) -> Any:
    """Follow the pickle's instructions. Raises IndexError, KeyError or struct.error where they make no sense."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    int4, float8 = struct.Struct("<i").unpack_from, struct.Struct(">d").unpack_from
    at = step = 0
    while True:
        op = data[at]
        at += 1
        step += 1
        if not step % _OFTEN:
            _check_limits(budget - 8 * step, deadline)
        if op == 0x68:  # BINGET
            stack.append(memo[data[at]])
            at += 1
        elif op == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif op == 0x8C or op == 0x58:  # SHORT_BINUNICODE, BINUNICODE
            size, at = (data[at], at + 1) if op == 0x8C else (_unsigned(data, at), at + 4)
            stack.append(_text(data, at, size))
            at += size
            budget -= 60 + size
        elif op == 0x4B:  # BININT1
            stack.append(data[at])
            at += 1
        elif op == 0x4A:  # BININT
            stack.append(int4(data, at)[0])
            at += 4
            budget -= 32
        elif op == 0x4D:  # BININT2
            stack.append(data[at] | data[at + 1] << 8)
            at += 2
            budget -= 32
        elif op == 0x8A:  # LONG1
            size = data[at]
            at += 1
            stack.append(_integer(data, at, size))
            at += size
            budget -= 32
        elif op == 0x6A:  # LONG_BINGET
            stack.append(memo[_unsigned(data, at)])
            at += 4
        elif op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
            index, at = (data[at], at + 1) if op == 0x71 else (_unsigned(data, at), at + 4)
            memo[index] = stack[-1]
            budget -= 100
        elif op == 0x28:  # MARK
            marks.append(stack)
            stack = []
            if len(marks) > _MARKS:
                raise NotASnapshot("it is nested deeper than any snapshot")
        elif op == 0x75:  # SETITEMS
            items, stack = stack, marks.pop()
            _set_items(stack[-1], items)
        elif op == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif op == 0x7D:  # EMPTY_DICT
            stack.append({})
            budget -= 240
        elif op == 0x5D:  # EMPTY_LIST
            stack.append([])
            budget -= 90
        elif op == 0x86 or op == 0x85 or op == 0x87:  # TUPLE2, TUPLE1, TUPLE3
            count = op - 0x84
            stack[-count] = tuple(stack[-count:])
            del stack[len(stack) - count + 1 :]
            budget -= 64
        elif op == 0x61:  # APPEND
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif op == 0x65:  # APPENDS
            items, stack = stack, marks.pop()
            _list(stack[-1]).extend(items)
        elif op == 0x4E:  # NONE
            stack.append(None)
        elif op == 0x88 or op == 0x89:  # NEWTRUE, NEWFALSE
            stack.append(op == 0x88)
        elif op == 0x47:  # BINFLOAT
            stack.append(float8(data, at)[0])
            at += 8
            budget -= 32
        elif op == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif op == 0x74:  # TUPLE
            items, stack = stack, marks.pop()
            stack.append(tuple(items))
            budget -= 64
        elif op == 0x6C:  # LIST
            items, stack = stack, marks.pop()
            stack.append(items)
        elif op == 0x64:  # DICT
            items, stack = stack, marks.pop()
            stack.append({})
            _set_items(stack[-1], items)
            budget -= 240
        elif op == 0x95:  # FRAME
            at += 8
        elif op == 0x80:  # PROTO
            at += 1
        elif op == 0x2E:  # STOP
            _check_limits(budget - 8 * step, deadline)
            return stack.pop()
        else:
            raise NotASnapshot(
                f"it holds more than plain data (pickle instruction {bytes([op])!r} at byte {at - 1:,}), "
                "which no snapshot does; nothing of it was run"
            )


def _check_limits(budget: int, deadline: float) -> None:
    if budget < 0:
        raise NotASnapshot("it would take too much memory; record with a smaller max_entries")
    if time.monotonic() > deadline:
        raise NotASnapshot("it takes too long to read; record with a smaller max_entries")


def _unsigned(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _text(data: bytes, at: int, size: int) -> str:
    if at + size > len(data):
        raise IndexError
    return data[at : at + size].decode("utf-8", "replace")


def _integer(data: bytes, at: int, size: int) -> int:
    if size > _LONGEST_INTEGER:
        raise NotASnapshot(f"it holds a number of {size} bytes, which no snapshot does")
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "little", signed=True)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise KeyError
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise KeyError
    for key in items[::2]:
        if not isinstance(key, str):  # numbers can be chosen to collide, and nested tuples overflow the stack
            raise NotASnapshot("it holds a dict whose keys are not texts, which no snapshot does")
    target.update(zip(items[::2], items[1::2], strict=True))
