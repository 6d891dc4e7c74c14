"""The itemised bill of a baseline: what it was made of, and which lines are new, gone, grown or shrunk.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab import places
from memlab.units import format_exact

if TYPE_CHECKING:
    from memlab.lines import Line

_ROLES = {"activation": "input", "own output": "output", "input": "given input"}  # what an operator saves a tensor as


@dataclass(frozen=True, order=True)
class Entry:
    """Storages alike that autograd keeps: what, from which source line and module, how many, and their bytes in all."""

    what: str
    where: str
    module: str
    count: int
    bytes: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What an entry is known by: a line that only moved within its file is the same entry."""
        return self.what, places.parted(self.where)[0], self.module

    def told(self, sign: str = "", nbytes: int | None = None, more: str = "") -> str:
        size = format_exact(self.bytes if nbytes is None else nbytes)
        return "  ".join(filter(None, [f"{sign} {size}".strip(), self.what, self.where, self.module, more]))


def entries(lines: Iterable[Line], root: Path) -> list[Entry]:
    """Return the bill of ``lines``, alike ones together, sorted; files are named relative to ``root``."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for line in lines:
        key = (what(line), stable(line.where, root), line.module or line.module_class)
        found.setdefault(key, []).append(line.bytes)
    return sorted(Entry(*key, len(sizes), sum(sizes)) for key, sizes in found.items())


def what(line: Line) -> str:
    """Say in a few words what a line is: ``gelu input``, ``exp output``, ``addmm parameter``."""
    return f"{line.op} {_ROLES.get(line.kind, line.kind)}"


def stable(where: str, root: Path) -> str:
    """Return ``file:line`` with a file that is named alike on every machine."""
    file, colon, number = where.rpartition(":")
    if not colon:
        return where
    path = Path(places.file_of(file))
    name = places.installed(str(path))
    if name is None:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    return f"{Path(name).as_posix()}:{number}"


@dataclass(frozen=True)
class Change:
    """One difference between two bills: ``+`` new, ``-`` gone, ``>`` grown, ``<`` shrunk."""

    sign: str
    entry: Entry
    bytes: int
    was: int

    def told(self) -> str:
        more = "" if self.sign in "+-" else f"({format_exact(self.entry.bytes)}, was {format_exact(self.was)})"
        return self.entry.told({">": "+", "<": "-"}.get(self.sign, self.sign), self.bytes, more)


def changes(before: Sequence[Entry], now: Sequence[Entry]) -> list[Change]:
    """Return what differs, the largest first. Lines that only moved within their file do not differ."""
    found: list[Change] = []
    for key in sorted({entry.key for entry in before} | {entry.key for entry in now}):
        old = [entry for entry in before if entry.key == key]
        new = [entry for entry in now if entry.key == key]
        if sum(entry.bytes for entry in old) != sum(entry.bytes for entry in new):
            found.extend(_changes_of_one(old, new))
    return sorted(found, key=lambda change: (-change.bytes, change.entry))


def _changes_of_one(old: list[Entry], new: list[Entry]) -> Iterable[Change]:
    """Compare entries of one key in the order of their lines: what moved cancels, what is left is paired."""
    old, new = _by_line(old), _by_line(new)
    match = SequenceMatcher(None, [entry.bytes for entry in old], [entry.bytes for entry in new], autojunk=False)
    for tag, i, i_end, j, j_end in match.get_opcodes():
        for before, now in zip_longest(old[i:i_end], new[j:j_end]) if tag != "equal" else ():
            if before is None:
                yield Change("+", now, now.bytes, 0)
            elif now is None:
                yield Change("-", before, before.bytes, before.bytes)
            else:
                yield Change(">" if now.bytes > before.bytes else "<", now, abs(now.bytes - before.bytes), before.bytes)


def _by_line(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: places.parted(entry.where)[1])


def to_json(entry: Entry) -> dict[str, Any]:
    return {
        "bytes": entry.bytes,
        "count": entry.count,
        "what": entry.what,
        "where": entry.where,
        "module": entry.module,
    }


def from_json(content: Any) -> Entry:
    """Read what `to_json` made. Raises ValueError, KeyError or TypeError for anything else."""
    numbers, texts = (content["bytes"], content["count"]), (content["what"], content["where"], content["module"])
    if not all(type(each) is int and each >= 0 for each in numbers) or not all(isinstance(each, str) for each in texts):
        raise ValueError("a line of it is no bill's")
    return Entry(content["what"], content["where"], content["module"], content["count"], content["bytes"])
