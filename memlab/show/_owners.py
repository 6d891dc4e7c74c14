"""Who holds it: a sentence for each owner, with the birth of what it holds, and the cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memlab.patterns import TENSORS
from memlab.show._columns import cells, fold
from memlab.show._pages import FAINT, PLAIN, Text, groups
from memlab.show._words import clean
from memlab.tracing.trace import Held
from memlab.units import format_bytes

FULL = 3  # owners that are told in full; the others get a line each
NO_PATTERN = "none of the known patterns fits; what holds it is the path above"


def owners(found: Sequence[Held], width: int | None, last: int = 0, *, oom: bool = False) -> Iterator[Text]:
    """Yield the lines of several owners, the first ones in full; ``last`` is the run's last step.

    At an OutOfMemoryError (``oom``) the plain tensors of what ran come last, a line each: they are no cause.
    """
    told = [each for each in found if each.exclusive or each.per_step or each.kind != "C++ only"]
    used = [each for each in told if oom and _is_in_use(each)]
    told = [each for each in told if each not in used]
    for index, each in enumerate(told[:FULL]):
        if index:
            yield Text("")
        yield from owner(each, width, last)
    rest = told[FULL:]
    if rest:
        yield Text("")
        reach = format_bytes(sum(each.exclusive for each in rest))
        yield Text(f"  and {len(rest)} more, which alone pin{'s' * (len(rest) == 1)} {reach}", FAINT)
    if used:
        if told:
            yield Text("")
        yield from groups("in use", {f"{each.name} ({each.where})": each.bytes for each in used}, width, FULL)


def _is_in_use(each: Held) -> bool:
    """Whether it is a variable of a function that runs, which holds one plain tensor itself, and does not grow."""
    return each.kind == "local" and each.holds == TENSORS and each.elements == 1 and not (each.per_step or each.pattern)


def owner(each: Held, width: int | None, last: int = 0) -> Iterator[Text]:
    """Yield path, birth and cure of one owner."""
    then = f", as of step {each.step:,}" if 0 < each.step < last else ""
    for line in fold(f"{clean(each.path)} {pins(each)}{then}", width, "  ", "    "):
        yield Text(line, PLAIN)
    for label, text in _told(each, width):
        lead = f"  {label:<9}"
        if not label and width is not None and cells(lead + text) > width:
            lead = "    "  # a command that is broken cannot be copied
        for line in fold(text, width, lead, " " * len(lead)):
            yield Text(line)


def pins(each: Held) -> str:
    """Say how much an owner keeps and by how much it grows."""
    least = "" if each.complete else "at least "
    if each.tensors or not each.nodes:
        alone = "" if each.exclusive == each.bytes else f", {format_bytes(each.exclusive)} of them alone"
        count = f"{each.tensors:,} {'saved ' if each.holds == 'graph' else ''}tensor{'' if each.tensors == 1 else 's'}"
        count += "" if each.holds == "graph" else " (no graph)"
        text = f"... pins {least}{format_bytes(each.bytes)} in {count}{alone}"
    else:
        text = f"... pins {least}{each.nodes:,} node{'' if each.nodes == 1 else 's'} and nothing that they saved"
    return text + (f", +{format_bytes(each.per_step)} every step" if each.per_step > 0 else "")


def _told(each: Held, width: int | None) -> Iterator[tuple[str, str]]:
    """Yield label and text; fix and code share a line where there is room."""
    for label, place, source in each.places:
        yield label, f"{clean(place)}  {clean(source)}"
    if not each.pattern:
        yield "pattern", NO_PATTERN
        return
    yield "pattern", clean(each.pattern)
    if not each.cure:
        yield "fix", clean(each.fix)
        return
    fix, code = clean(each.fix), f"python -m memlab show pattern {clean(each.cure)}"
    both = f"{fix:<36}  {code}"
    if width is None or cells(both) + 11 <= width:
        yield "fix", both
    else:
        yield "fix", fix
        yield "", code
