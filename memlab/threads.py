"""Threads that are started inside a measured block are measured, too.

Saved-tensor hooks and dispatch modes belong to one thread. So while a block is open, a thread that is started in it
enters the same hooks and modes before Python runs it, and leaves them at its end. It does so outside of
``Thread._bootstrap_inner``, which reports a thread's exception: tracebacks have no frame of ours.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

Join = Callable[[], AbstractContextManager[object]]

_lock = threading.Lock()
_open = 0
_replaced = ExitStack()


class _Here(threading.local):
    joins: tuple[Join, ...] = ()


_here = _Here()


@contextlib.contextmanager
def followed(join: Join) -> Iterator[None]:
    """Let each thread that this thread starts run inside ``join()``, and those that it starts in turn."""
    _here.joins = (*_here.joins, join)
    _replace(1)
    try:
        yield
    finally:
        _here.joins = tuple(each for each in _here.joins if each is not join)
        _replace(-1)


@contextlib.contextmanager
def ends_heard(hear: Callable[[BaseException], None]) -> Iterator[None]:
    """Call ``hear`` with each exception that ends a thread, before `threading.excepthook` tells it."""
    told = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            hear(args.exc_value)
        told(args)

    threading.excepthook = excepthook
    try:
        yield
    finally:
        if threading.excepthook is excepthook:
            threading.excepthook = told


def _replace(more: int) -> None:
    global _open
    with _lock:
        _open += more
        if more > 0 and _open == 1:
            _replaced.callback(_replace_start())
        elif not _open:
            _replaced.close()


def _replace_start() -> Callable[[], None]:
    """Replace ``Thread.start``, and return what takes that back, unless somebody has replaced it once more."""
    start = threading.Thread.start

    def followed_start(thread: Any, *args: Any, **kwargs: Any) -> None:
        joins, inner = _here.joins, thread._bootstrap_inner
        if joins and "_bootstrap_inner" not in thread.__dict__:
            thread._bootstrap_inner = lambda: _inside(thread, joins, inner)
        try:
            start(thread, *args, **kwargs)
        except BaseException:
            thread.__dict__.pop("_bootstrap_inner", None)
            raise

    def put_back() -> None:
        if threading.Thread.start is followed_start:
            threading.Thread.start = start  # type: ignore[method-assign]

    threading.Thread.start = followed_start  # type: ignore[method-assign, assignment]
    return put_back


def _inside(thread: Any, joins: tuple[Join, ...], inner: Callable[[], None]) -> None:
    thread.__dict__.pop("_bootstrap_inner", None)  # it leads back to the thread
    _here.joins = joins
    with ExitStack() as stack:
        try:
            for join in joins:
                stack.enter_context(join())
        finally:
            inner()  # whoever started the thread waits for it to say that it runs
