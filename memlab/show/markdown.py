"""Markdown, for issues and pull requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from memlab.report import Finding, Report
from memlab.show import _card, _reconcile, _words
from memlab.show._columns import Block
from memlab.show._details import blocks


def show(report: Report, out: TextIO) -> None:
    for name, findings in report.by_experiment():
        out.write(f"## {_escape(name)}\n\n{_escape(findings[0].claim)}\n\n")
        out.write("\n".join(_table(findings)) + "\n\n")
        out.write("".join(map(_fenced, blocks(findings))))
    if where := _reconcile.block(report.findings):
        out.write(_fenced(where))
    for note in _words.notes(report):
        out.write(f"{_escape(note)}\n\n")
    out.write(f"**{_words.summary(report)}**\n\n{_escape(_words.machine(report))}\n")


def _fenced(block: Block) -> str:
    return "\n".join(["```text", block.heading, *block.below(), "```", "", ""])


def _table(findings: list[Finding]) -> list[str]:
    cards = _card.fills(findings)
    heads = [f"{name}, {word}" for name in ("saved", "allocated") for word in ("expected", _words.how(findings, name))]
    lines = [
        _row(["arm", "", *heads, *(["steps"] if cards else []), "verdict"]),
        _row(["---", "---", "--:", "--:", "--:", "--:", *(["--:"] if cards else []), "---"]),
    ]
    for finding in findings:
        cells = _words.cells(finding)
        steps = [_card.survived(finding)] if cards else []
        lines.append(_row([cells.arm, cells.title, *cells.saved, *cells.allocated, *steps, cells.verdict]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return "".join(f"\\{each}" if each in "\\|*<[" else each for each in _words.clean(text))
