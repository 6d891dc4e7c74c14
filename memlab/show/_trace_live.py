"""The live line of a trace: on the last row of the terminal, which the script's own output never reaches."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from memlab.units import format_bytes

_PAUSE = 0.1  # seconds between two drawings
_SAVE, _RESTORE = "\0337", "\0338"


class Line:
    """Draws one line below everything else: the rows above it scroll, the last one does not (as apt does it)."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._process = out, os.getpid()
        self._size = (0, 0)
        self._last = 0.0

    def step(self, point: dict[str, int]) -> None:
        """Draw a point of a trace, unless the last drawing is too young."""
        now = time.monotonic()
        if now - self._last >= _PAUSE and os.getpid() == self._process:
            self._last = now
            self._draw(text(point))

    def _draw(self, said: str) -> None:
        columns, height = size = shutil.get_terminal_size()
        if height < 3:
            return
        head = self._reserve(height) if size != self._size else ""
        self._size = (columns, height)
        cut = said if len(said) <= columns else said[: columns - 1] + "…"
        self._out.write(f"{head}{_SAVE}\033[{height};1H\033[2K{cut}{_RESTORE}")
        self._out.flush()

    def _reserve(self, height: int) -> str:
        return f"\n{_SAVE}\033[1;{height - 1}r{_RESTORE}\033[1A"

    def clear(self) -> None:
        """Give the last row back."""
        if self._size != (0, 0) and os.getpid() == self._process:
            height = self._size[1]
            self._out.write(f"{_SAVE}\033[{height};1H\033[2K\033[r{_RESTORE}")
            self._out.flush()
            self._size = (0, 0)


def text(point: dict[str, int]) -> str:
    """Say where a run is."""
    grew = point.get("grew", 0)
    growth = f"{'+' if grew > 0 else ''}{format_bytes(grew)}/step"
    saved, peak = format_bytes(point["saved"]), format_bytes(point["peak"])
    return f"memlab  step {point['step']:,}  saved {saved}  peak {peak}  growth {growth}"


@contextmanager
def watching(out: TextIO) -> Iterator[Callable[[dict[str, int]], None]]:
    """Yield what draws a point on ``out`` if a person looks at it, and leave the terminal as it was."""
    if not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda point: None
        return
    line = Line(out)
    try:
        yield line.step
    finally:
        line.clear()
