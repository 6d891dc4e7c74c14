"""A prediction as lines for people: the verdict first, then the numbers, then what they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from memlab.prediction import DIES, FITS, Prediction
from memlab.show._card import bar, bar_width, first_sentences
from memlab.show._columns import fold, width_of
from memlab.show._words import clean
from memlab.units import format_bytes

LARGEST = 5
NAMED = 3


def show(found: Prediction, out: TextIO) -> None:
    """Write the prediction; at a terminal no line is wider than it."""
    width = width_of(out)
    for name, text in _told(found, bar_width(width)):
        lead = f"  {name:<13} " if name is not None else ""
        for line in fold(text, width, lead, " " * len(lead)):
            out.write(line.rstrip() + "\n")


def _told(found: Prediction, room: int) -> Iterator[tuple[str | None, str]]:
    """Yield label and text of each line; None instead of a label where the text stands alone."""
    usable = found.total - found.context - found.other
    yield None, _verdict(found)
    yield None, ""
    yield "card", clean(found.card)
    yield "", f"{bar(found.reserved, usable, room)} {format_bytes(found.reserved)} reserved"
    yield "allocated", clean(_allocated(found))
    yield "for backward", f"{format_bytes(found.saved)} saved at most"
    if found.verdict == DIES:
        yield "torch says", first_sentences(found.oom)
        for where, size in found.filled.items():
            yield "kept by", _sized(size, where)
    if found.largest is not None:
        yield "batches", ", ".join(f"{batch} {clean(verdict)}" for batch, verdict in found.batches.items())
    for index, text in enumerate(_blocks(found)):
        yield "" if index else "checkpointing", text
    yield None, ""
    for name in ("assumed", "exact", "modelled", "missing"):
        if sentences := getattr(found, name):
            yield name, clean("; ".join(sentences))
    yield None, ""
    yield None, _machine(found)


def _verdict(found: Prediction) -> str:
    what = clean(found.what)
    if found.largest is not None:
        return f"{what}: {_largest(found)}"
    if found.verdict == FITS:
        errors = "OutOfMemoryError" if found.caught == 1 else "OutOfMemoryErrors"
        caught = f", after {found.caught:,} {errors} that it caught" if found.caught else ""
        return f"{what} fits{_doubt(found)}{caught}"
    return f"{what} dies at {clean(found.died)}" if found.verdict == DIES else f"{what}: {clean(found.reason)}"


def _largest(found: Prediction) -> str:
    """Say what is known of the batches: only what was tried."""
    if not found.largest:
        first = next(iter(found.batches), "1")
        return "no batch fits" if first == "1" else f"batch {clean(first)} does not fit, and no smaller one was tried"
    if found.batches and DIES not in found.batches.values():
        return f"every batch that was tried fits, up to {found.largest}{_doubt(found)}"
    return f"the largest batch that fits is {found.largest}{_doubt(found)}"


def _doubt(found: Prediction) -> str:
    """The peak is a lower bound, or its bar reaches beyond the card, or it is that of values which were assumed."""
    beyond = found.allocated + found.bar > found.total - found.context - found.other
    if found.unknown or beyond:
        return ", as far as is known"
    return ", for the values assumed" if found.assumed else ""


def _allocated(found: Prediction) -> str:
    """The peak and its bar; what may be missing of it is named."""
    size = format_bytes(found.allocated)
    names = list(found.unknown or found.bars or found.high)
    who = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    if found.unknown:
        peak = f"at least {size} at the peak, without what is taken inside {who}"
    elif found.bar:
        peak = f"{size} at the peak, + at most {format_bytes(found.bar)} ({who})"
    else:
        peak = f"{size} at the peak, {f'or a little less ({who})' if found.high else 'exact'}"
    return f"{peak}; cuBLAS {format_bytes(found.workspaces)} of it" if found.workspaces else peak


def _blocks(found: Prediction) -> list[str]:
    """Blocks that save alike are told together: a model has many layers."""
    alike: dict[int, list[str]] = {}
    worth = max(found.blocks.values(), default=0) // 1000
    for block, size in found.blocks.items():
        if size > worth:
            alike.setdefault(size, []).append(clean(block))
    lines = []
    for size, names in list(alike.items())[:LARGEST]:
        ends = f"{names[0]} and {names[-1]}" if len(names) == 2 else f"{names[0]} to {names[-1]} ({len(names)})"
        who = names[0] if len(names) == 1 else f"each of {ends}"
        lines.append(_sized(size, f"less for backward, {who}"))
    return lines


def _sized(size: int, text: str) -> str:
    return f"{format_bytes(size):>10}  {clean(text)}"


def _machine(found: Prediction) -> str:
    how = "on fake tensors" if found.fake else "on real tensors"
    parts = [f"simulated {how} for {found.device}", f"torch {found.machine.get('torch', 'unknown')}"]
    return clean(", ".join([*parts, f"{found.seconds:.1f} s"]))
