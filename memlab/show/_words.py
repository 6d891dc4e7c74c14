"""The words and cells that every way of showing uses."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memlab.report import FAILED, HOLDS, REFUTED, SKIPPED, STATUSES, Finding, Report
from memlab.units import format_bytes, sparkline

MARKS = {HOLDS: "✓", REFUTED: "✗", SKIPPED: "-", FAILED: "!"}
SIMULATED = "simulated"
FULL, SHORT, BARE = "full", "short", "bare"
_WORDS = {FULL: "{curve} up to {top}", SHORT: "{curve} {top}", BARE: "up to {top}"}
_NAMES = {
    "nvml_process": "NVML's count for this process",
    "host_rss": "the resident set size",
    "host_uss": "the unique set size",
    "snapshot": "the snapshot",
}
_MODEL = "by a model of torch's caching allocator, fed with what the CPU run creates"


def clean(text: str) -> str:
    """Return ``text`` on one line and without control characters: a report may come from anywhere."""
    return "".join(each if unicodedata.category(each)[0] != "C" else " " for each in " ".join(text.split()))


def verdict(finding: Finding) -> str:
    return f"{MARKS[finding.status]} {finding.status}"


def by_step(values: Sequence[int], style: str = FULL) -> str:
    """Say how a value goes over the steps: the same added by each, one level, or a curve up to its maximum.

    >>> by_step([6144, 12288, 18432]), by_step([6144, 12288, 18432], SHORT), by_step([512, 512])
    ('+6.00 KiB/step', '+6.00 KiB', '512 B')
    >>> by_step([512, 4096, 512, 1024]), by_step([512, 4096, 512, 1024], BARE)
    ('▂█▂▃ up to 4.00 KiB', 'up to 4.00 KiB')
    """
    if not values:
        return "-"
    added = {after - before for before, after in pairwise(values)}
    if added <= {0}:
        return format_bytes(values[-1])
    if len(added) > 1:
        return _WORDS[style].format(curve=curve(values), top=format_bytes(max(values)))
    each = added.pop()
    return f"{'+' if each > 0 else ''}{format_bytes(each)}{'/step' if style == FULL else ''}"


def curve(values: Sequence[int], top: int = 0, width: int = 10) -> str:
    """Draw ``values`` with at most ``width`` characters, from 0 up to ``top`` or their maximum."""
    stride = -(-len(values) // width) or 1
    drawn = [max(0, value) for value in values[::stride]]
    return sparkline([*drawn, max(top, *drawn, 0)])[:-1] if drawn else ""


def measured(finding: Finding, column: str) -> list[int]:
    """Return a column over the steps, as it is compared with the closed form."""
    return [
        row[column] - (row.get("unsplit", 0) if column == "allocated" else 0) for row in finding.rows if column in row
    ]


def expected(finding: Finding, column: str) -> list[int]:
    return [row[column] for row in finding.expected if column in row]


@dataclass(frozen=True)
class Cells:
    """One arm's line in words; saved and allocated are each (expected, measured)."""

    arm: str
    title: str
    saved: tuple[str, str]
    allocated: tuple[str, str]
    verdict: str


def cells(finding: Finding, style: str = FULL) -> Cells:
    """Return the line of one arm."""

    def pair(column: str) -> tuple[str, str]:
        return by_step(expected(finding, column), style), by_step(measured(finding, column), style)

    return Cells(clean(finding.arm), clean(finding.title), pair("saved"), pair("allocated"), verdict(finding))


def how(findings: Iterable[Finding], column: str) -> str:
    """Return ``simulated`` where any number of the column is, else ``measured``."""
    return SIMULATED if any(each.sources.get(column) == SIMULATED for each in findings) else "measured"


def notes(report: Report) -> list[str]:
    """Say once, in sentences, which columns are simulated and which are not available."""
    columns: dict[str, list[str]] = {}
    for finding in report.findings:
        for column, source in (finding.sources | _hidden(finding)).items():
            if source != "measured" and column not in columns.setdefault(source, []):
                columns[source].append(column)
    return [
        _note(source, columns[source])
        for source in sorted(columns, key=lambda each: each != SIMULATED)
        if columns[source]
    ]


def _hidden(finding: Finding) -> dict[str, str]:
    """Columns whose probe worked and did not tell them."""
    told = not finding.rows or "nvml_process" in finding.rows[-1]
    if finding.sources.get("nvml_process") != "measured" or told:
        return {}
    return {"nvml_process": "not available: the driver hides it (in a container, with MIG or WDDM)"}


def _note(source: str, columns: list[str]) -> str:
    names = [_NAMES.get(each, each) for each in columns]
    subject = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    verb = "are" if len(names) > 1 else "is"
    subject = subject[0].upper() + subject[1:]
    return f"{subject} {verb} {clean(source)}{', ' + _MODEL if source == SIMULATED else ''}."


def summary(report: Report) -> str:
    """Count the verdicts in one line."""
    arms = len(report.findings)
    return f"{arms} arm{'' if arms == 1 else 's'}: {counts(report.findings) or 'nothing was measured'}"


def counts(findings: Sequence[Finding]) -> str:
    """Return how many hold, are refuted, skipped and failed."""
    number = Counter(each.status for each in findings)
    words = {HOLDS: "hold" if number[HOLDS] != 1 else "holds"}
    return ", ".join(f"{number[each]} {words.get(each, each)}" for each in STATUSES if number[each])


def machine(report: Report) -> str:
    """Name the machine that the report was measured on, in one line."""
    known = report.machine
    parts = [
        known.get("device", ""),
        f"torch {known['torch']}" if "torch" in known else "",
        f"Python {known['python']}" if "python" in known else "",
        known.get("processor", ""),
    ]
    return clean(f"measured on {', '.join(filter(None, parts)) or 'an unknown machine'}")
