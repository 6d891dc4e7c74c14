"""Two moments of traces side by side: which lines came, went and grew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memlab.tracing.trace import Moment, Trace, load, module_text

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
class Comparison:
    """Two moments: their names, what was saved at each, and the changes, largest first; these add up to `bytes`."""

    names: tuple[str, str]
    saved: tuple[int, int]
    changes: list[Change]

    @property
    def bytes(self) -> int:
        """By how much more is saved at the second moment."""
        return self.saved[1] - self.saved[0]

    def of(self, how: str) -> list[Change]:
        return [change for change in self.changes if change.how == how]


def compare(names: tuple[str, str], before: Moment, after: Moment) -> Comparison:
    """Set two moments side by side."""
    first, second = _grouped(before), _grouped(after)
    changes = [
        Change(*key, first.get(key, 0), second.get(key, 0))
        for key in dict.fromkeys([*first, *second])
        if first.get(key, 0) != second.get(key, 0)
    ]
    changes.sort(key=lambda change: (-abs(change.bytes), change.line))
    return Comparison(names, (before.saved, after.saved), changes)


def _grouped(moment: Moment) -> dict[tuple[str, str, str], int]:
    totals: dict[tuple[str, str, str], int] = {}
    for row in moment.rows:
        key = row.line, module_text(row), row.kind
        totals[key] = totals.get(key, 0) + row.bytes
    return totals


def read(name: str) -> tuple[str, Moment]:
    """Return what ``file`` (its peak) or ``file@step`` (the end of that step) names, with its name in words.

    Raises:
        ValueError: not a trace, or a step that was not recorded; `OSError` when the file cannot be read.
    """
    path, step = _split(name)
    trace: Trace = load(path)
    return f"{path} at {'its peak' if step is None else f'the end of step {step}'}", trace.at(step)


def _split(name: str) -> tuple[Path, int | None]:
    file, at, step = name.rpartition("@")
    if not at or Path(name).exists():
        return Path(name), None
    if not step.isdigit():
        raise ValueError(f"after @ comes the number of a step, not {step!r}")
    return Path(file), int(step)
