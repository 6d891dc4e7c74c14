"""Text in columns, measured in the cells that a terminal draws: a wide character takes two."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

GAP = "  "
LEAST = 16  # cells that a folded column keeps beside others; with fewer it stands below them
_EMOJI = "\ufe0f"  # asks for the picture of the character before it, which is wide


def size_of(out: TextIO) -> os.terminal_size:
    """Return columns and lines of the terminal that ``out`` writes to; COLUMNS and LINES overrule it."""
    try:
        seen = os.get_terminal_size(out.fileno())
    except (AttributeError, OSError, ValueError):
        seen = os.terminal_size((0, 0))
    return shutil.get_terminal_size(fallback=(seen.columns or 80, seen.lines or 24))


def width_of(out: TextIO) -> int | None:
    """Return how wide a terminal is; None for what is no terminal: there nothing is folded."""
    return size_of(out).columns if out.isatty() else None


def drawn(text: str) -> Iterator[tuple[str, int]]:
    """Yield each character, with the marks that are drawn on it, and the cells that it takes.

    >>> list(drawn("a层"))
    [('a', 1), ('层', 2)]
    """
    whole, size = "", 0
    for each in text:
        if whole and unicodedata.category(each) in ("Mn", "Me"):
            whole += each
            size = 2 if each == _EMOJI else size
            continue
        if whole:
            yield whole, size
        whole, size = each, 2 if unicodedata.east_asian_width(each) in "WF" else 1
    if whole:
        yield whole, size


def cells(text: str) -> int:
    """Return how many cells ``text`` takes."""
    return len(text) if text.isascii() else sum(size for _, size in drawn(text))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return ``text`` with spaces after it, or before it if it is flush ``right``, up to ``width`` cells."""
    spaces = " " * (width - cells(text))
    return spaces + text if right else text + spaces


def cut(text: str, width: int) -> str:
    """Return as much of ``text`` as fits into ``width`` cells, with an ellipsis where something is left out."""
    return text if cells(text) <= width else _beginning(text, width - 1) + "…"


def _beginning(text: str, width: int) -> str:
    kept, left = "", width
    for each, size in drawn(text):
        if size > left:
            break
        kept, left = kept + each, left - size
    return kept


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = (), width: int | None = None) -> list[str]:
    """Return one line for each row, cells padded to columns two spaces apart; columns in ``right`` are flush right.

    Given a ``width``, the last column is folded at words to stay within it; where little of it is left for that column,
    it stands below the others, set in.
    """
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    before = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    below = width is not None and before + min(LEAST, widths[-1]) > width
    return [line for row in rows for line in _row(row, widths, right, width, below=below)]


def _row(
    row: Sequence[str], widths: Sequence[int], right: Sequence[int], width: int | None, *, below: bool
) -> list[str]:
    padding = [padded(each, w, right=i in right) for i, (each, w) in enumerate(zip(row, widths, strict=True))]
    if not below:
        line = GAP.join(padding).rstrip()
        before = GAP.join([*padding[:-1], ""])
        return [line] if width is None or cells(line) <= width else fold(row[-1], width, before, " " * cells(before))
    head = GAP.join(padding[:-1]).rstrip()
    inset = " " * (len(head) - len(head.lstrip())) if width is None or cells(head) <= width else ""
    lines = fold(head.lstrip(), width, inset, GAP) if head else []
    return [*lines, *(fold(row[-1], width, GAP * 2, GAP * 2) if row[-1] else [])]


def fold(text: str, width: int | None, first: str = "", later: str = "", *, whole: bool = False) -> list[str]:
    """Return ``text`` in lines of at most ``width`` cells, broken at words; in one line without a width.

    A word is broken only where it is wider than a line, and not even there if words stay ``whole``. ``first`` begins
    the first line, ``later`` all others.
    """
    if width is None:
        return [first + text]
    lines, gap = [first], ""
    for word in re.split(r"(\s+)", text.rstrip()):
        if word.isspace():
            gap = word
        elif cells(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
        elif whole or cells(later + word) <= width:
            lines.append(later + word)
        else:
            lines[-1:] = _broken(word, width, lines[-1], gap, later)
    return lines


def _broken(word: str, width: int, line: str, gap: str, later: str) -> list[str]:
    """Return ``line`` and the lines after it when a word that is wider than a line is added."""
    begun = cells(line + gap) < width
    lines = [line + gap if begun else line, *([] if begun else [later])]
    left = width - cells(lines[-1])
    for each, size in drawn(word):
        if size > left and lines[-1] != later:
            lines.append(later)
            left = width - cells(later)
        lines[-1] += each
        left -= size
    return lines


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
