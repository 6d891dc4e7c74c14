"""The experiments there are, for people and for pipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from memlab.experiment import Summary
from memlab.show._columns import align, fold, width_of
from memlab.show._words import clean


def show(found: Mapping[str, Summary | str], out: TextIO, *, arms: bool) -> None:
    """Write each experiment's claim and, if ``arms``, its arms; a text instead of a summary says why there is none."""
    width = width_of(out)
    claims = {clean(name): clean(each if isinstance(each, str) else each.claim) for name, each in found.items()}
    if width is None:
        heads = [[line] for line in align(list(claims.items()))] if claims else []
    else:
        heads = [[name, *fold(claim, width, "  ", "  ")] for name, claim in claims.items()]
    for head, summary in zip(heads, found.values(), strict=True):
        lines = [*head, *(_arms(summary, width) if arms else [])]
        out.write("".join(line + "\n" for line in lines))


def _arms(summary: Summary | str, width: int | None) -> list[str]:
    if isinstance(summary, str) or not summary.arms:
        return []
    rows = [(clean(arm), clean(title)) for arm, title in summary.arms.items()]
    return ["    " + line for line in align(rows, width=None if width is None else width - 4)]
