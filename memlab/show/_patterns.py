"""The known patterns of growth, for people and for pipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from memlab.patterns import Pattern
from memlab.show._columns import width_of
from memlab.show._pages import HEADING, Text, folded, rows, write


def show(known: Sequence[Pattern], out: TextIO) -> None:
    """Write each pattern's sentence, its fix and the arm that shows the cure; one line each for a pipe."""
    width = width_of(out)
    if width is None:
        write(rows([(each.name, each.cure, each.what) for each in known], None, inset=""), out)
        return
    for each in known:
        write([Text(each.name, HEADING), *folded(each.what, width, inset="  ")], out)
        fix = each.fix.format(name="it")
        write(rows([("fix", fix), ("code", f"memlab show pattern {each.cure}")], width), out)
