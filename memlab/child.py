"""What runs in the processes that `memlab.isolate` starts. Importing this module does not import torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memlab.job import Job

_PAUSE = 0.02  # seconds between two rows that are sent: fifty a second are enough for an eye
_NOBODY_LISTENS = (BrokenPipeError, ConnectionResetError)


def answer(connection: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Send what ``function`` returns, or how it failed."""
    _settle(2)
    try:
        message = ("answer", function(*arguments))
    except Exception as error:
        message = ("failed", _said(error))
    with contextlib.suppress(*_NOBODY_LISTENS):
        connection.send(message)


def serve(connection: Connection, printed: Connection, job: Job, threads: int) -> None:
    """Measure; send rows and the finding through ``connection``, and what the arm prints through ``printed``."""
    _settle(printed.fileno())
    printed.close()
    last = [0.0]

    def emit(row: dict[str, int]) -> None:
        if time.monotonic() - last[0] > _PAUSE:
            last[0] = time.monotonic()
            connection.send(("row", row))

    try:
        message = _measured(job, threads, emit)
        sys.stderr.flush()
        connection.send(message)
    except _NOBODY_LISTENS:
        os._exit(1)


def _settle(output: int) -> None:
    """Print to the file descriptor ``output``, leave Ctrl-C to the parent, and end when the parent does.

    The process leads a group of its own, with what it starts, such as a DataLoader's workers: they end together.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.set_start_method(None, force=True)  # a script's processes start as they do without memlab
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    os.dup2(output, 2)
    os.dup2(output, 1)  # what an experiment prints must not mix with a report on stdout
    sys.stdout = sys.stderr
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _measured(job: Job, threads: int, emit: Callable[[dict[str, int]], None]) -> tuple[str, object]:
    try:
        import torch

        from memlab.measure import measure

        torch.set_num_threads(threads)
        # From torch 2.15 on each product takes a workspace of cuBLAS's, of the arm's card too, unless they are kept.
        os.environ.setdefault("TORCH_CUBLAS_WORKSPACE_CACHE", "1")
        return "finding", measure(job, emit)
    except _NOBODY_LISTENS:
        raise
    except ValueError as error:
        return "error", str(error)
    except Exception as error:
        return "failed", _said(error, job.path)


def _said(error: Exception, path: Path | None = None) -> str:
    """Name the error and, if it passed through ``path``, the last line there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" ({path.name}:{lines[-1]})" if path and lines else ""
    text = str(error).strip()
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
