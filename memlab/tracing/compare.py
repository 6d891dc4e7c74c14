"""Two moments of traces side by side: which lines came, went and grew, and which names hold more every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlab.tracing.trace import Held, Moment, Trace, load, module_text

ADDED, GROWN, SHRUNK, GONE = "added", "grown", "shrunk", "gone"
KINDS = (ADDED, GROWN, SHRUNK, GONE)


@dataclass(frozen=True)
class Change:
    """One line of code whose saved bytes differ; ``module`` is where in the model it ran, ``kind`` what it saves."""

    line: str
    module: str
    kind: str
    before: int
    after: int

    @property
    def bytes(self) -> int:
        return self.after - self.before

    @property
    def how(self) -> str:
        """Added, grown, shrunk or gone."""
        if not self.before or not self.after:
            return ADDED if self.after else GONE
        return GROWN if self.bytes > 0 else SHRUNK


@dataclass(frozen=True)
class Pile:
    """A name that holds more after each step; ``place`` is where that was made or kept, in words.

    ``before`` and ``after`` are bytes that it grows by in each step of a run, 0 in one in which it does not.
    """

    name: str
    place: str
    before: int
    after: int

    @property
    def bytes(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """Two moments: their names, what was saved at each, and the changes, largest first; these add up to `bytes`.

    ``piles`` are no part of it: after backward a graph has saved nothing, and its outputs pile up all the same. They
    are known of whole runs.
    """

    names: tuple[str, str]
    saved: tuple[int, int]
    changes: list[Change]
    piles: list[Pile]

    @property
    def bytes(self) -> int:
        """By how much more is saved at the second moment."""
        return self.saved[1] - self.saved[0]

    def of(self, how: str) -> list[Change]:
        return [change for change in self.changes if change.how == how]


@dataclass(frozen=True)
class Side:
    """One of two to compare: its name in words, what was saved, and who held what at the end of the run."""

    name: str
    moment: Moment
    owners: tuple[Held, ...] = ()


def compare(one: Side, other: Side) -> Comparison:
    """Set two moments side by side."""
    before, after = one.moment, other.moment
    changes = [Change(*key, *totals) for key, *totals in _differing(_grouped(before), _grouped(after))]
    changes.sort(key=lambda change: (-abs(change.bytes), change.line))
    return Comparison((one.name, other.name), (before.saved, after.saved), changes, _piles(one.owners, other.owners))


def _piles(before: Iterable[Held], after: Iterable[Held]) -> list[Pile]:
    places = {each.name: each.place for each in (*before, *after)}
    piles = [Pile(name, places[name], *rates) for name, *rates in _differing(_rates(before), _rates(after))]
    return sorted(piles, key=lambda pile: (-abs(pile.bytes), pile.name))


def _differing(before: dict[Any, int], after: dict[Any, int]) -> Iterator[tuple[Any, int, int]]:
    """Yield each key whose number is another afterwards, with both; a number that is missing is 0."""
    for key in dict.fromkeys([*before, *after]):
        if before.get(key, 0) != after.get(key, 0):
            yield key, before.get(key, 0), after.get(key, 0)


def _rates(owners: Iterable[Held]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for each in owners:
        if each.per_step > 0:
            totals[each.name] = totals.get(each.name, 0) + each.per_step
    return totals


def _grouped(moment: Moment) -> dict[tuple[str, str, str], int]:
    totals: dict[tuple[str, str, str], int] = {}
    for row in moment.rows:
        key = row.line, module_text(row), row.kind
        totals[key] = totals.get(key, 0) + row.bytes
    return totals


def read(name: str) -> Side:
    """Return what ``file`` (its peak, and the owners at its end) or ``file@step`` (the end of that step) names.

    Raises:
        ValueError: not a trace, or a step that was not recorded; `OSError` when the file cannot be read.
    """
    path, step = _split(name)
    trace: Trace = load(path)
    if step is not None:
        return Side(f"{path} at the end of step {step}", trace.at(step))
    return Side(f"{path} at its peak", trace.peak, tuple(trace.owners) if trace.grows else ())


def _split(name: str) -> tuple[Path, int | None]:
    file, at, step = name.rpartition("@")
    if not at or Path(name).exists():
        return Path(name), None
    if not step.isdigit():
        raise ValueError(f"after @ comes the number of a step, not {step!r}")
    return Path(file), int(step)
