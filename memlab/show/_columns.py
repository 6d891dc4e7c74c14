"""Text in columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

GAP = "  "
LEAST = 16  # characters that a folded column keeps on the narrowest terminal


def width_of(out: TextIO) -> int | None:
    """Return how wide a terminal is; None for what is no terminal: there nothing is folded."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = (), width: int | None = None) -> list[str]:
    """Return one line for each row, cells padded to columns two spaces apart; columns in ``right`` are flush right.

    Given a ``width``, the last column is folded at words to stay within it.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [line for row in rows for line in _row(row, widths, right, width)]


def _row(row: Sequence[str], widths: Sequence[int], right: Sequence[int], width: int | None) -> list[str]:
    cells = [
        cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    line = GAP.join(cells).rstrip()
    if width is None or len(line) <= width:
        return [line]
    before = GAP.join([*cells[:-1], ""])
    return fold(cells[-1], max(width, len(before) + LEAST), before, " " * len(before))


def fold(text: str, width: int | None, first: str = "", later: str = "") -> list[str]:
    """Return ``text`` in lines of at most ``width`` characters, broken at words; in one line without a width."""
    if width is None:
        return [first + text]
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False) or [first]


@dataclass(frozen=True)
class Block:
    """A heading and rows below it; ``status`` is the verdict it speaks of, if it does."""

    heading: str
    rows: list[tuple[str, ...]]
    right: tuple[int, ...] = ()
    status: str = ""

    def below(self, width: int | None = None) -> list[str]:
        """Return the rows as lines, set in by two characters."""
        inner = None if width is None else width - 2
        return ["  " + line for line in (align(self.rows, self.right, inner) if self.rows else [])]
