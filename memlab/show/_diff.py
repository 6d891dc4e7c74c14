"""Two moments side by side: what came, grew, shrank and went, and which names hold more every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

from memlab.show._columns import width_of
from memlab.show._pages import BAD, GOOD, HEADING, NARROW, Text, folded, rows, write
from memlab.show._words import clean
from memlab.tracing.compare import ADDED, KINDS, Change, Comparison, Pile
from memlab.units import format_bytes

MOST = 10


def show(found: Comparison, out: TextIO, limit: int | None = None) -> None:
    """Write the totals and the lines that differ; with a limit, whether it is kept."""
    write(lines(found, width_of(out), limit), out)


def lines(found: Comparison, width: int | None, limit: int | None) -> Iterator[Text]:
    for name, saved in zip(found.names, found.saved, strict=True):
        yield from rows([(format_bytes(saved).rjust(10), clean(name))], width, inset="")
    yield from folded(f"{_signed(found.bytes):>10}  {_differ(len(found.changes), len(found.piles))}", width, HEADING)
    for how in KINDS:
        changes = found.of(how)
        if changes:
            yield Text("")
            yield Text(f"{how}, {_signed(sum(each.bytes for each in changes))}", BAD if how == ADDED else HEADING)
            yield from _listed([_cells(each, width) for each in changes], changes, width)
    if found.piles:
        yield Text("")
        more = any(each.bytes > 0 for each in found.piles)
        yield from folded("what names hold more in every step", width, BAD if more else HEADING)
        yield from _listed([_rates(each, width) for each in found.piles], found.piles, width)
    if limit is not None:
        kept = found.bytes <= limit
        yield Text("")
        words = "within" if kept else "past"
        yield from folded(
            f"{_signed(found.bytes)} is {words} the limit of {format_bytes(limit)}", width, GOOD if kept else BAD
        )


def _listed(cells: list[tuple[str, ...]], differ: Sequence[Change | Pile], width: int | None) -> Iterator[Text]:
    yield from rows(cells[:MOST], width, right=(0,))
    if len(cells) > MOST:
        rest = sum(each.bytes for each in differ[MOST:])
        yield Text(f"  and {len(cells) - MOST} more, {_signed(rest)}", "dim")


def _differ(lines: int, names: int) -> str:
    counts = [f"{count} {what}{'s' * (count != 1)}" for count, what in ((lines, "line"), (names, "name")) if count]
    return f"{' and '.join(counts)} {'differs' if lines + names == 1 else 'differ'}" if counts else "nothing differs"


def _cells(change: Change, width: int | None) -> tuple[str, ...]:
    sizes = f"{format_bytes(change.before)} -> {format_bytes(change.after)}"
    place = f"{clean(change.line)}  {clean(change.module)}".rstrip()
    if width is not None and width < NARROW:
        return _signed(change.bytes), f"{place}, {clean(change.kind)}"
    return _signed(change.bytes), sizes, f"{place}, {clean(change.kind)}"


def _rates(pile: Pile, width: int | None) -> tuple[str, ...]:
    sizes = f"{format_bytes(pile.before)} -> {format_bytes(pile.after)}"
    what = ", ".join(clean(each) for each in (pile.name, pile.place) if each)
    narrow = width is not None and width < NARROW
    return (_signed(pile.bytes), what) if narrow else (_signed(pile.bytes), sizes, what)


def _signed(nbytes: int) -> str:
    return f"{'+' if nbytes > 0 else ''}{format_bytes(nbytes)}"
