"""The live line of a trace: on the last row of the terminal, which the script's own output never reaches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from memlab.show._columns import cut, size_of
from memlab.show._terminal import given_back
from memlab.units import format_bytes

_PAUSE = 0.1  # seconds between two drawings
_SAVE, _RESTORE = "\0337", "\0338"
_DOWN, _UP = "\033D", "\033[1A"  # the column stays, which a line feed would lose: the script may be within a line


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
            self._draw(point)

    def _draw(self, point: dict[str, int]) -> None:
        columns, height = size = size_of(self._out)
        if height < 3:
            return
        head = self._reserve(height) if size != self._size else ""
        self._size = (columns, height)
        self._out.write(f"{head}{_SAVE}\033[{height};1H\033[2K{text(point, columns)}{_RESTORE}")
        self._out.flush()

    def _reserve(self, height: int) -> str:
        return f"{_DOWN}{_SAVE}\033[1;{height - 1}r{_RESTORE}{_UP}"

    def clear(self) -> None:
        """Give the last row back."""
        if self._size != (0, 0) and os.getpid() == self._process:
            height = self._size[1]
            self._out.write(f"{_SAVE}\033[{height};1H\033[2K\033[r{_RESTORE}")
            self._out.flush()
            self._size = (0, 0)


def text(point: dict[str, int], columns: int) -> str:
    """Say where a run is, in at most so many columns."""
    grew = point.get("grew", 0)
    growth = f"{'+' if grew > 0 else ''}{format_bytes(grew)}/step"
    saved, peak = format_bytes(point["saved"]), format_bytes(point["peak"])
    said = f"memlab  step {point['step']:,}  saved {saved}  peak {peak}  growth {growth}"
    return said if len(said) <= columns else cut(f"step {point['step']:,}  saved {saved}  {growth}", columns)


@contextmanager
def watching(out: TextIO) -> Iterator[Callable[[dict[str, int]], None]]:
    """Yield what draws a point on ``out`` if a person looks at it, and leave the terminal as it was."""
    if not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda point: None
        return
    line = Line(out)
    with given_back(line.clear):
        yield line.step
