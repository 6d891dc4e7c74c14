"""A memory snapshot, for people and for pipes: what is there, who holds it, and what other settings would have done."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TextIO

from memlab import places
from memlab.show._card import bar, bar_width
from memlab.show._columns import Block, fold, width_of
from memlab.show._words import clean
from memlab.snapshots.replay import Outcome
from memlab.snapshots.summary import DeviceSummary, Replays, Summary
from memlab.units import format_bytes

OOMS = 5  # that are told one by one
_EXACT = (
    "Exact: what the model's allocator decides for these requests in this order. Not known to it: which empty_cache() "
    "the program called, what streams wait for, and private pools; the first two rows say how far that matters here."
)
_CUT = (
    "The history does not begin at the beginning: {before} were allocated before its first event. They are laid out "
    "anew for the replay, so its numbers are close, not exact."
)

Rows = list[tuple[str, ...]]


def as_json(summary: Summary, out: TextIO) -> None:
    """Write everything, for programs."""
    out.write(json.dumps(asdict(summary), indent=1) + "\n")


def show(name: str, summary: Summary, out: TextIO) -> None:
    """Write what a file says; at a terminal no line is wider than it."""
    width = width_of(out)
    lines = fold(clean(name), width)
    if summary.settings:
        lines += fold(f"settings: {clean(summary.settings)}", width)
    for device in summary.devices:
        for block in _device(device, width):
            lines += ["", *fold(block.heading, width), *block.below(width)]
        for sentence in _sentences(device):
            lines += ["", *fold(sentence, width)]
    if not summary.devices:
        lines += ["", "nothing is in it: no segments and no events"]
    if summary.missing:
        lines += ["", *fold(f"Another torch than 2.13 wrote it; it does not say {_listed(summary.missing)}.", width)]
    out.write("".join(line + "\n" for line in lines))


def _listed(names: list[str]) -> str:
    return ", ".join(clean(name) for name in names)


def _device(device: DeviceSummary, width: int | None) -> list[Block]:
    blocks = [Block(f"device {device.device}", _totals(device, bar_width(width)))]
    if device.top:
        blocks.append(Block("allocated by", _top(device), right=(0, 1)))
    if device.ooms:
        blocks.append(Block("out of memory", _ooms(device), right=(0, 1)))
    if device.replays is not None:
        blocks.append(Block("the same requests once more", _outcomes(device.replays), right=(1, 2)))
    return blocks


def _top(device: DeviceSummary) -> Rows:
    return [(format_bytes(size), _count(number, "block"), _place(line)) for line, (size, number) in device.top.items()]


def _ooms(device: DeviceSummary) -> Rows:
    rows: Rows = [
        (f"{format_bytes(each.size)} wanted", f"{format_bytes(each.free)} free", _place(each.where))
        for each in device.ooms[:OOMS]
    ]
    more = len(device.ooms) - len(rows)
    return [*rows, (f"and {more} more", "", "")] if more else rows


def _place(line: str) -> str:
    """Return a source line, its file relative to the working directory where it lies below."""
    return clean(places.short(line))


def _totals(device: DeviceSummary, room: int) -> Rows:
    padding = device.allocated - device.requested
    rows: Rows = [
        ("reserved", f"{format_bytes(device.reserved)} in {_count(device.segments, 'segment')}"),
        ("allocated", f"{bar(device.allocated, device.reserved, room)} {format_bytes(device.allocated)}"),
        ("", f"{_count(device.blocks, 'block')}; {format_bytes(padding)} of it is rounding"),
        ("free inside", _free(device)),
    ]
    if device.pending:
        rows.append(("pending", f"{format_bytes(device.pending)} freed, and still used by another stream"))
    if device.recorded is not None and device.events:
        peak = device.recorded
        rows.append(
            ("peaks", f"{format_bytes(peak.peak_allocated)} allocated, {format_bytes(peak.peak_reserved)} reserved")
        )
        rows.append(("history", f"{_count(device.events, 'event')}{_beginning(device)}"))
    elif device.events:
        rows.append(("history", _count(device.events, "event")))
    else:
        rows.append(("history", "none: torch.cuda.memory._record_memory_history() was not called"))
    return rows


def _beginning(device: DeviceSummary) -> str:
    return f"; {format_bytes(device.before)} were allocated before" if device.before else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _free(device: DeviceSummary) -> str:
    """Fragmentation: how much of what is free is in how large a piece, and how much could go back."""
    if not device.inactive:
        return format_bytes(0)
    return (
        f"{format_bytes(device.inactive)}, the largest piece {format_bytes(device.largest_free)}; "
        f"empty_cache() returns {format_bytes(device.returnable)}"
    )


def _outcomes(replays: Replays) -> Rows:
    told = {"recorded": replays.recorded, "the model": replays.model, **replays.asked}
    rows = [
        (clean(name) or "no settings", format_bytes(each.peak_allocated), format_bytes(each.peak_reserved), _end(each))
        for name, each in told.items()
    ]
    return [("at the peak", "allocated", "reserved", ""), *rows]


def _end(outcome: Outcome) -> str:
    if outcome.died is not None:
        return f"out of memory at event {outcome.died:,}"
    return f"{_count(outcome.ooms, 'request')} failed" if outcome.ooms else "nothing failed"


def _sentences(device: DeviceSummary) -> list[str]:
    if device.problem:
        problem = clean(device.problem).rstrip(".")  # torch's own texts end in one
        return [f"The history cannot be followed to these segments: {problem}. So it is not replayed."]
    replays = device.replays
    if replays is None:
        return []
    sentences = [_verdict(conf, outcome, replays) for conf, outcome in replays.asked.items()]
    if replays.capacity is not None:
        sentences.append(f"The card is taken to hold {format_bytes(replays.capacity)} for the allocator.")
    else:
        sentences.append("Nothing says how large the card is: it is taken to hold everything; --card SIZE bounds it.")
    return [*sentences, *([_CUT.format(before=format_bytes(replays.before))] if replays.before else []), _EXACT]


def _verdict(conf: str, outcome: Outcome, replays: Replays) -> str:
    """Answer the question that people bring a snapshot for."""
    name, failed = clean(conf) or "no settings", replays.recorded.ooms
    before, after = format_bytes(replays.recorded.peak_reserved), format_bytes(outcome.peak_reserved)
    reserved = f"{after} reserved at the peak instead of {before}" if after != before else f"{after} reserved as before"
    question = f"Would {name} have saved you?"
    if outcome.died is not None:
        wanted = format_bytes(outcome.died_of)
        return f"{question} No: it runs out of memory at event {outcome.died:,}, a request of {wanted} that was served."
    if not failed:
        return f"Nothing failed in this history; with {name}, {reserved}."
    if 0 < outcome.saved == replays.model.saved:
        served = "what failed is served" if outcome.saved == failed else f"{outcome.saved} of {failed} are served"
        return f"On this card {served} under the recorded settings, too; with {name}, {reserved}."
    if outcome.saved == failed:
        return f"{question} Yes: what failed is served; {reserved}."
    if outcome.saved:
        served = f"{outcome.saved} of {failed} requests that failed {'is' if outcome.saved == 1 else 'are'} served"
        return f"{question} In part: {served}; {reserved}."
    return f"{question} No: what failed fails again; {reserved}."
