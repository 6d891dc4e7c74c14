"""A trace in words: the peak and what it was made of, whether it grows, who holds it; the last state of an OOM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from memlab.show import _card, _owners
from memlab.show._columns import width_of
from memlab.show._pages import BAD, FAINT, GOOD, HEADING, PLAIN, Text, folded, groups, labelled, write
from memlab.show._words import clean, curve
from memlab.tracing.trace import ENOUGH, EXITED, FAILED, OUT_OF_MEMORY, STOPPED, WARMUP, Trace
from memlab.units import format_bytes

TOP, FILLED = 3, 5
WIDTH, NARROWEST = 30, 8  # characters of a curve


def show(trace: Trace, out: TextIO, how: str | None = None) -> None:
    """Write the trace to ``out``; ``how`` is ``json`` for the trace itself."""
    if how == "json":
        out.write(trace.to_json())
    else:
        write(lines(trace, width_of(out)), out)


def lines(trace: Trace, width: int | None) -> Iterator[Text]:
    """Yield the whole report in lines of at most ``width`` characters."""
    yield Text("")
    yield from folded(f"memlab trace {clean(' '.join(trace.command))}", width, HEADING)
    yield from folded(ending(trace), width, BAD if trace.ended in (OUT_OF_MEMORY, FAILED, EXITED) else "")
    if trace.ended == OUT_OF_MEMORY or trace.oom:
        yield from _out_of_memory(trace, width)
    yield from _peak(trace, width)
    yield from _allocator(trace, width)
    yield Text("")
    judged = len(trace.points) >= WARMUP + ENOUGH
    style = BAD if trace.grows or trace.nodes_per_step else GOOD if judged else PLAIN
    yield from labelled("growth", verdict(trace, width), width, style)
    yield from _owners_of(trace, width)
    for sentence in trace.blind:
        yield from labelled("blind", clean(sentence), width, FAINT)


def ending(trace: Trace) -> str:
    """Say how the run ended, after how many steps and how they were told."""
    steps = f"{trace.steps:,} step{'' if trace.steps == 1 else 's'}"
    told = f"{steps} ({clean(trace.source)})" if trace.steps else f"no step: {_missed(trace.source)}"
    ended = f"{trace.ended} with {trace.code}" if trace.ended == EXITED else trace.ended
    reason = f" ({clean(trace.reason)})" if trace.reason and trace.ended != STOPPED else ""
    asked = ", as --steps asked" if trace.ended == STOPPED else ""
    seconds = trace.seconds.get("script", 0.0)
    searched = trace.seconds.get("owners", 0.0)
    return f"{ended}{reason} after {told}{asked}; {seconds:.1f} s, {searched:.1f} s of them for owners"


def _missed(line: str) -> str:
    return f"{clean(line)} was not seen to run" if line else "no optimizer, backward or module was seen"


def verdict(trace: Trace, width: int | None = None) -> str:
    """Say whether steps leave more and more behind; the curve takes what the words leave of ``width``."""
    live = [point.get("live", 0) for point in trace.points]
    if len(live) < 2:
        return "too few steps to tell"
    ends = f"from {format_bytes(live[0])} to {format_bytes(live[-1])}"
    if trace.grows:
        said = f"grows {format_bytes(trace.per_step)} every step, {ends}"
    elif len(live) < WARMUP + ENOUGH:
        said = f"{ends} at the ends of steps; too few to tell whether it grows"
    else:
        said = f"{_flat(trace)}; {ends} at the ends of steps"
    room = WIDTH if width is None else max(NARROWEST, min(WIDTH, width - len("growth    ") - len(said)))
    return f"{curve(live, 0, room)} {said}"


def _flat(trace: Trace) -> str:
    """Say that bytes do not grow, and whether nodes do."""
    if not trace.nodes_per_step:
        return "does not grow"
    return f"{trace.nodes_per_step:,} autograd nodes more every step, and no bytes"


def _peak(trace: Trace, width: int | None) -> Iterator[Text]:
    yield Text("")
    saved, live = format_bytes(trace.peak.saved), format_bytes(trace.live_peak)
    yield from labelled("peak", f"{saved} saved for backward, {live} of tensors alive", width, HEADING)
    for what in ("module", "line", "class"):
        yield from groups(f"by {what}", trace.peak.by(what), width, TOP)


def _allocator(trace: Trace, width: int | None) -> Iterator[Text]:
    held = _card.allocator(trace.card_numbers)
    if held and trace.card:
        most = format_bytes(trace.card_numbers["reserved_peak"])
        said = f"{most} of {format_bytes(trace.card)} reserved at most (simulated). At the end {held}"
        yield from labelled("card", said, width)


def _out_of_memory(trace: Trace, width: int | None) -> Iterator[Text]:
    yield Text("")
    live = trace.last.live
    if trace.card:
        simulated = " (simulated)" if trace.simulated else ""
        drawn = "" if width is not None and width < 60 else f"{_card.bar(live, trace.card)} "
        yield from labelled("card", f"{drawn}{format_bytes(live)} of {format_bytes(trace.card)}{simulated}", width)
    else:
        yield from labelled("alive", f"{format_bytes(live)} of tensors", width)
    yield from groups("filled by", trace.last.classes, width, FILLED)
    yield from groups("saved at", trace.last.by("line"), width, FILLED)
    if trace.oom:
        yield from labelled("says", _card.first_sentences(trace.oom), width)


def _owners_of(trace: Trace, width: int | None) -> Iterator[Text]:
    """Yield who holds what grew; where nothing grows, nobody is accused."""
    growing = [each for each in trace.owners if each.per_step > 0]
    found = growing if trace.grows and growing else trace.owners
    if not found or not (trace.grows or trace.nodes_per_step or trace.ended == OUT_OF_MEMORY):
        return
    yield Text("")
    yield from _owners.owners(found, width, trace.steps, oom=trace.ended == OUT_OF_MEMORY)
