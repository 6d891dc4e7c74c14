"""How help is laid out: paragraphs and small tables as a command's docstring has them, folded to the terminal."""

from __future__ import annotations

import argparse
import re
from typing import Any

from memlab.show._columns import align, fold


class Formatter(argparse.HelpFormatter):
    """Folds each paragraph for itself; lines that are all a command, two spaces and its meaning become a table."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n\s*\n", text.strip())
        return "\n\n".join("\n".join(indent + line for line in _paragraph(each, width)) for each in paragraphs)

    def _format_usage(self, *given: Any, **named: Any) -> str:
        text = super()._format_usage(*given, **named)
        lines = [line for each in text.split("\n") for line in _usage(each, self._width + 2)]
        return "\n".join(lines)


def _paragraph(text: str, width: int) -> list[str]:
    rows = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    if all(len(row) == 2 for row in rows):
        return align(rows, width=width)
    return [line for row in rows for line in fold("  ".join(row), width)]


def _usage(line: str, width: int) -> list[str]:
    text = line.lstrip()
    inset = line[: len(line) - len(text)]
    return fold(text, width, inset, inset or "  ")
