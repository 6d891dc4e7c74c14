"""Lines of text for pipes, logs and grep: one finding per line, then the reasons of those that do not hold."""

from __future__ import annotations

from typing import TextIO

from memlab.report import Finding, Report
from memlab.show import _card, _reconcile, _words
from memlab.show._columns import align
from memlab.show._details import blocks


def show(report: Report, out: TextIO) -> None:
    """Write lines, none of them wrapped."""
    lines = _table(report.findings) if report.findings else []
    for _, findings in report.by_experiment():
        for block in blocks(findings):
            lines += ["", block.heading, *block.below()]
    where = _reconcile.block(report.findings)
    lines += ["", where.heading, *where.below()] if where else []
    for line in [*lines, "", *_words.notes(report), _words.summary(report), _words.machine(report)]:
        out.write(line + "\n")


def _table(findings: list[Finding]) -> list[str]:
    cards = _card.fills(findings)
    words = [f"{name} {word}" for name in ("saved", "allocated") for word in ("expected", _words.how(findings, name))]
    rows = [["verdict", "experiment:arm", *words, *(["steps"] if cards else [])]]
    for finding in findings:
        cells = _words.cells(finding)
        steps = [_card.survived(finding)] if cards else []
        rows.append([finding.status, _words.clean(finding.name), *cells.saved, *cells.allocated, *steps])
    return align(rows)
