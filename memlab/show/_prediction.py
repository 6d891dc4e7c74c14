"""A prediction as lines for people: the verdict first, then the numbers, then what they are worth."""

from __future__ import annotations

import textwrap
from typing import TextIO

from memlab.prediction import DIES, FITS, Prediction
from memlab.show._card import bar, first_sentences
from memlab.show._words import clean
from memlab.units import format_bytes

WIDTH = 80
LARGEST = 5
NAMED = 3


def show(found: Prediction, out: TextIO) -> None:
    """Write the prediction; no line is longer than 80 characters unless one word is."""
    usable = found.total - found.context - found.other
    lines = [_verdict(found), ""]
    lines += _entry("card", found.card)
    lines += _entry("", f"{bar(found.reserved, usable)} {format_bytes(found.reserved)} reserved")
    lines += _entry("allocated", _allocated(found))
    lines += _entry("for backward", f"{format_bytes(found.saved)} saved at most")
    if found.verdict == DIES:
        lines += _entry("torch says", first_sentences(found.oom))
        lines += [line for where, size in found.filled.items() for line in _entry("kept by", _sized(size, where))]
    if found.largest is not None:
        lines += _entry("batches", ", ".join(f"{batch} {verdict}" for batch, verdict in found.batches.items()))
    lines += _blocks(found)
    lines += [""]
    for name, sentences in (("exact", found.exact), ("modelled", found.modelled), ("missing", found.missing)):
        lines += _entry(name, "; ".join(sentences))
    lines += ["", *_wrap(_machine(found))]
    for line in lines:
        out.write(line.rstrip() + "\n")


def _verdict(found: Prediction) -> str:
    what = clean(found.what)
    if found.largest is not None:
        return f"{what}: the largest batch that fits is {found.largest}" if found.largest else f"{what}: no batch fits"
    if found.verdict == FITS:
        return f"{what} fits"
    return f"{what} dies at {clean(found.died)}" if found.verdict == DIES else f"{what}: {clean(found.reason)}"


def _allocated(found: Prediction) -> str:
    """The peak and its bar; what may be missing of it is named."""
    size = format_bytes(found.allocated)
    names = list(found.unknown or found.bars)
    who = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    if found.unknown:
        peak = f"at least {size} at the peak, without what {who} take inside"
    elif found.bar:
        peak = f"{size} at the peak, + at most {format_bytes(found.bar)} ({who})"
    else:
        peak = f"{size} at the peak, " + (
            f"or a little less ({', '.join(found.high[:NAMED])})" if found.high else "exact"
        )
    return f"{peak}; cuBLAS {format_bytes(found.workspaces)} of it"


def _blocks(found: Prediction) -> list[str]:
    """Blocks that save alike are told together: a model has many layers."""
    alike: dict[int, list[str]] = {}
    worth = max(found.blocks.values(), default=0) // 1000
    for block, size in found.blocks.items():
        if size > worth:
            alike.setdefault(size, []).append(clean(block))
    lines: list[str] = []
    for size, names in list(alike.items())[:LARGEST]:
        who = names[0] if len(names) == 1 else f"each of {names[0]} to {names[-1]} ({len(names)})"
        lines += _entry("checkpointing" if not lines else "", _sized(size, f"less for backward, {who}"))
    return lines


def _sized(size: int, text: str) -> str:
    return f"{format_bytes(size):>10}  {text}"


def _machine(found: Prediction) -> str:
    how = "on fake tensors" if found.fake else "on real tensors"
    parts = [f"simulated {how} for {found.device}", f"torch {found.machine.get('torch', 'unknown')}"]
    return clean(", ".join([*parts, f"{found.seconds:.1f} s"]))


def _entry(name: str, text: str) -> list[str]:
    return _wrap(text if "█" in text or "  " in text else clean(text), f"  {name:<13} ")


def _wrap(text: str, head: str = "") -> list[str]:
    options = {"subsequent_indent": " " * len(head), "break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, initial_indent=head, **options) or [head]  # type: ignore[arg-type]
