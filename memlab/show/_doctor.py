"""What the doctor found, for people and for pipes."""

from __future__ import annotations

from typing import TextIO

from memlab.doctor import MEASURED, NOT_HERE, SIMULATED, Examination
from memlab.show._columns import align, width_of
from memlab.show._words import clean

_MARKS = {MEASURED: "✓", SIMULATED: "~", NOT_HERE: "-"}


def show(examination: Examination, out: TextIO) -> None:
    """Write the facts, then what can be measured here."""
    width = width_of(out)
    facts = [(name, clean(value)) for name, value in examination.facts.items()]
    abilities = [(f"{_MARKS[each.how]} {each.what}", each.how, clean(each.why)) for each in examination.abilities]
    for line in [*align(facts, width=width), "", "What can be measured here", *align(abilities, width=width)]:
        out.write(line + "\n")
