"""Lines with a style, written for people in colours and for pipes without; whoever makes them knows no rich."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from memlab.show._columns import align, fold, size_of
from memlab.show._words import clean
from memlab.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

HEADING, PLAIN, FAINT, GOOD, BAD = "bold", "", "dim", "green", "bold red"
INSET = "  "
NARROW = 60  # columns below which labels stand alone


@dataclass(frozen=True)
class Text:
    """One line."""

    text: str
    style: str = PLAIN


def folded(text: str, width: int | None, style: str = PLAIN, inset: str = "") -> Iterator[Text]:
    """Yield ``text`` in lines that fit into ``width``."""
    for line in fold(text, width, inset, inset):
        yield Text(line, style)


def labelled(label: str, text: str, width: int | None, style: str = PLAIN) -> Iterator[Text]:
    """Yield ``text`` beside its label, and the lines after the first one below its beginning."""
    for line in fold(text, width, f"{label:<9}", " " * 9):
        yield Text(line, style)


def rows(
    cells: Iterable[tuple[str, ...]], width: int | None, right: tuple[int, ...] = (), inset: str = INSET
) -> list[Text]:
    """Return a line for each row, set in; the last column is folded to fit."""
    listed = list(cells)
    inner = None if width is None else width - len(inset)
    return [Text(inset + line) for line in (align(listed, right, inner) if listed else [])]


def groups(label: str, sizes: Mapping[str, int], width: int | None, top: int) -> list[Text]:
    """Return the largest of ``{name: bytes}``, one to a line; what is left is the last line, so that they add up."""
    listed = list(sizes.items())
    shown = listed[:top]
    if len(listed) > top:
        shown.append((f"{len(listed) - top} more", sum(nbytes for _, nbytes in listed[top:])))
    cells = [(format_bytes(nbytes).rjust(10), clean(name) or "unknown") for name, nbytes in shown]
    if width is not None and width < NARROW:
        return [Text(INSET + label), *rows(cells, width)] if cells else []
    return rows([((label if not index else "").ljust(9), *each) for index, each in enumerate(cells)], width)


def write(lines: Iterable[Text], out: TextIO) -> None:
    """Write lines, none of them wrapped."""
    if not out.isatty():
        for line in lines:
            out.write(line.text + "\n")
        return
    from rich.text import Text as Rich

    screen = console(out)
    for line in lines:
        screen.print(Rich(line.text, line.style), no_wrap=True, overflow="ellipsis")


def console(out: TextIO) -> Console:
    """Return a rich console that is as wide as ``out``: rich itself takes every dumb terminal for 80 columns."""
    from rich.console import Console

    columns, lines = size_of(out) if out.isatty() else (None, None)
    return Console(file=out, width=columns, height=lines, markup=False, highlight=False, emoji=False)
