"""The end of a pytest run: what was not checked and why, the largest tests, annotations. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memlab.guard.record import Record
from memlab.show._words import clean
from memlab.units import format_bytes

if TYPE_CHECKING:
    from memlab.guard.session import Session

_TOP = 5
_RANKS: tuple[tuple[str, Callable[[Record], int | None]], ...] = (
    ("saved for backward at the peak", lambda record: record.saved_peak),
    ("tensor storages at the peak", lambda record: record.storages_peak),
    ("torch.cuda's allocated bytes at the peak", lambda record: record.cuda_peak),
    ("reserved on a simulated card at the peak", lambda record: (record.card or {}).get("reserved_peak")),
    ("left behind by each run", lambda record: record.growth),
)


def lines(session: Session, *, everything: bool) -> Iterator[str]:
    """Yield the summary: with ``everything`` the largest tests and all notes, always what somebody must know."""
    if everything:
        yield from _largest(session.records)
        yield from _by_reason("noticed", [(record.test, note) for record in session.records for note in record.notes])
    yield from _by_reason(
        "NOT CHECKED", [(record.test, reason) for record in session.records for reason in record.not_checked]
    )
    if not everything:
        growing = [(r.test, note) for r in session.records for note in r.notes if "nodes behind" in note]
        yield from _by_reason("noticed", growing)
    for path in session.updated:
        yield f"baseline written: {clean(path)}; commit it"
    for sentence in session.refused:
        yield f"baseline NOT written: {clean(sentence)}"
    for sentence in session.stale:
        yield f"stale baseline: {clean(sentence)}; delete its lines"


def _largest(records: list[Record]) -> Iterator[str]:
    for title, value in _RANKS:
        known = [(nbytes, record.test) for record in records if (nbytes := value(record))]
        if known:
            yield f"{title}:"
            for nbytes, test in sorted(known, key=lambda each: (-each[0], each[1]))[:_TOP]:
                yield f"  {format_bytes(nbytes):>11}  {clean(test)}"


def _by_reason(heading: str, found: list[tuple[str, str]]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for test, reason in found:
        reasons.setdefault(reason, []).append(test)
    for reason, tests in reasons.items():
        more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
        yield f"{heading}: {clean(tests[0])}{more}"
        yield f"  {clean(reason)}"


def for_github(session: Session, workspace: str) -> Iterator[str]:
    """Yield GitHub's workflow commands: an error for what failed, a warning for what was not checked."""
    for record in session.records:
        for level, texts in (("error", record.failures + _failed_checks(record)), ("warning", record.not_checked)):
            for text in texts:
                file = _property(_in_workspace(session.config.rootpath / record.file, workspace))
                title = _property(f"memlab: {record.test}")
                yield f"::{level} file={file},line={record.line},title={title}::{_data(text)}"


def _failed_checks(record: Record) -> list[str]:
    return [
        f"check {check['name']!r} differs from its baseline" for check in record.checks if check["outcome"] == "failed"
    ]


def _in_workspace(path: Path, workspace: str) -> str:
    below = bool(workspace) and path.is_relative_to(workspace)
    return path.relative_to(workspace).as_posix() if below else path.as_posix()


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
