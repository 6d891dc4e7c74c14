"""The report itself, complete, for programs."""

from __future__ import annotations

from typing import TextIO

from memlab.report import Report


def show(report: Report, out: TextIO) -> None:
    """Write the report's JSON; `memlab.report.load` reads it back."""
    out.write(report.to_json())
