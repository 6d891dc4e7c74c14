"""A terminal that is drawn on is given back as it was, even by a process that SIGTERM ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def given_back(restore: Callable[[], None]) -> Iterator[None]:
    """Call ``restore`` when the block ends, and when SIGTERM ends the process in it, which runs no ``finally``.

    The process still dies of the signal. Whoever handles SIGTERM himself, before or in the block, is left alone.
    """

    def die(number: int, frame: object) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, die)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGTERM) is die:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        restore()
