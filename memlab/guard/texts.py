"""The words of a check that does not hold. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memlab.guard import bill
from memlab.guard.bill import Entry
from memlab.guard.limits import Size
from memlab.units import format_exact

if TYPE_CHECKING:
    from memlab.lines import Line
    from memlab.ownership.owner import Owner

MOST = 6  # lines that are told of each


def over(marker: str, what: str, measured: int, size: Size, *, exact: bool = False) -> str:
    """Say by how much ``measured`` misses the limit."""
    limit = f"{'exactly ' if exact else 'the limit of '}{size}"
    side = "over" if measured > size.bytes else "under"
    by = format_exact(abs(measured - size.bytes))
    return f"{marker}: {format_exact(measured)} {what}, {by} {side} {limit}"


def largest(lines: Iterable[Line], root: Path) -> list[str]:
    """Return the largest lines of a bill, alike ones together: bytes, op, file:line, module."""
    entries = sorted(bill.entries(lines, root), key=lambda entry: (-entry.bytes, entry))
    return table(entries)


def storages(at_peak: Iterable[tuple[int, str, str]], root: Path) -> list[str]:
    """Return the largest storages, alike ones together; ``at_peak`` has (bytes, operator, source line)."""
    found: dict[tuple[str, str], list[int]] = {}
    for nbytes, op, where in at_peak:
        found.setdefault((op, bill.stable(where, root)), []).append(nbytes)
    entries = [Entry(f"{op} output", where, "", len(each), sum(each)) for (op, where), each in found.items()]
    return table(sorted(entries, key=lambda entry: (-entry.bytes, entry)))


def table(entries: Sequence[Entry]) -> list[str]:
    """Return one line of text an entry, in columns."""
    shown = entries[:MOST]
    rows = [
        (format_exact(entry.bytes), entry.what + (f" ({entry.count}x)" if entry.count > 1 else ""), entry.where)
        for entry in shown
    ]
    widths = [max((len(row[index]) for row in rows), default=0) for index in range(3)]
    lines = [
        f"    {row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {entry.module}".rstrip()
        for row, entry in zip(rows, shown, strict=True)
    ]
    if len(entries) > MOST:
        rest = sum(entry.bytes for entry in entries[MOST:])
        more = len(entries) - MOST
        lines.append(f"    and {more} more line{'s' if more > 1 else ''} of {format_exact(rest)}")
    return lines


def owner_lines(owners: Iterable[Owner]) -> list[str]:
    """Return a few lines an owner: the path from its name to the graph, and what it holds."""
    lines = []
    for owner in owners:
        alone = format_exact(owner.exclusive_bytes)
        born = "" if owner.born == "unknown" else f", born at {owner.born}"
        lines += [*_folded(owner.path), f"      holds {format_exact(owner.bytes)}, {alone} alone{born}"]
    return lines


def _folded(path: str) -> list[str]:
    """Return an owner path in lines of 80 characters at most, folded at its arrows where that is possible."""
    lines = [""]
    for index, part in enumerate(path.split(" -> ")):
        arrow = f" -> {part}" if index else part
        if index and len(lines[-1]) + len(arrow) > 80 - 4:
            lines.append(f"  -> {part}")
        else:
            lines[-1] += arrow
    return [f"    {line}" for line in lines]


def readings(series: Sequence[int]) -> str:
    """Return the readings after each run, the middle of a long series left out."""
    shown = [f"{each:,}" for each in series]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:3], "...", shown[-1]]) + " B"
