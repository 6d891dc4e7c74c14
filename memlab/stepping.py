"""`step`: how a training loop says that a step has ended. Importing this does not import torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Heard = Callable[[], None]


class _Here(threading.local):
    heard: tuple[Heard, ...] = ()


_here = _Here()


def step() -> None:
    """Say that a step of your loop has ended; it does nothing unless a watch or a trace sees this thread.

    Inside `memlab.watch`, what is saved from now on carries the next number. Under ``memlab trace`` it is where the
    steps end, whatever else could be taken for one.
    """
    for hear in _here.heard:
        hear()


@contextmanager
def heard_by(hear: Heard) -> Iterator[None]:
    """Let ``hear`` be called at every `step` of this thread."""
    _here.heard = (*_here.heard, hear)
    try:
        yield
    finally:
        _here.heard = tuple(each for each in _here.heard if each is not hear)
