"""What a snapshot says, in numbers: per device, what there is, how it is broken up, and who asked for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from memlab.allocator.settings import Settings
from memlab.snapshots import content, replay
from memlab.snapshots.content import ALLOCATED, OOM, Block, Event, Snapshot
from memlab.snapshots.layout import Inconsistent
from memlab.snapshots.replay import Outcome

TOP = 5
# Files come from anybody's machine: a folder that happens to be called torch or memlab is not the library.
_LIBRARY = re.compile(
    r"^<frozen |[/\\](site|dist)-packages[/\\](torch|memlab)[/\\]"
    r"|[/\\]torch[/\\](nn|autograd|optim|utils|cuda|amp|fx|distributed|_\w+)[/\\.]"
    r"|[/\\]memlab[/\\](probes|guard|tracing|measure|child|watching|dispatch|kernel)[/\\.]"
)
_NATIVE = re.compile(r"^(\?\?)?$|\.(c|cc|cpp|cxx|cu|cuh|h|hpp|pyx)$")  # an interpreter with symbols has lines, too


@dataclass(frozen=True)
class Oom:
    """A request that failed. Sizes in bytes."""

    size: int
    free: int
    where: str


@dataclass(frozen=True)
class Replays:
    """One history under several settings.

    Attributes:
        recorded: what happened.
        model: what the model makes of it under the recorded settings: how far it can be trusted.
        asked: ``{settings: outcome}``.
        capacity: bytes of the card, None if not known.
        tie_break: the rule for blocks of equal size that comes closest to the record.
        before: bytes that were allocated before the history begins.
    """

    recorded: Outcome
    model: Outcome
    asked: dict[str, Outcome]
    capacity: int | None
    tie_break: str
    before: int


@dataclass(frozen=True)
class DeviceSummary:
    """One device of a snapshot. Sizes in bytes.

    Attributes:
        reserved, allocated, requested: of all segments; of blocks in use; what was asked for, before rounding.
        pending: freed, and still used by another stream.
        inactive: free in segments that hold something else, or nothing.
        returnable: of inactive, what empty_cache() would give back in whole segments, expandable ones aside.
        largest_free: the largest free block.
        segments, blocks, events: how many.
        top: ``{source line: (bytes, blocks)}`` of what is in use, largest first.
        categories: ``{category: bytes}`` of what is in use, where the file has categories.
        ooms: requests that failed.
        problem: why the history cannot be laid out, in a sentence; empty if it can.
        replays: present if asked for and possible.
    """

    device: int
    reserved: int
    allocated: int
    requested: int
    pending: int
    inactive: int
    returnable: int
    largest_free: int
    segments: int
    blocks: int
    events: int
    top: dict[str, tuple[int, int]]
    ooms: list[Oom]
    problem: str = ""
    recorded: Outcome | None = None
    capacity: int | None = None
    before: int = 0
    replays: Replays | None = None


@dataclass(frozen=True)
class Summary:
    """What a file says. ``missing`` names what torch 2.13 would have written besides."""

    settings: str
    devices: list[DeviceSummary]
    missing: list[str] = field(default_factory=list)


def summarise(snapshot: Snapshot, confs: Iterable[str] = (), capacity: int | None = None) -> Summary:
    """Return what a snapshot says, and what its history becomes under other settings.

    Args:
        snapshot: what was read.
        confs: settings as in PYTORCH_CUDA_ALLOC_CONF.
        capacity: bytes of the card, where it is known better than from the file.

    Raises:
        ValueError: with torch's text, for settings that cannot be read.
    """
    asked = list(confs)
    for conf in asked:
        Settings(sets_reserve=True).update(conf)  # wrong ones are the caller's mistake, whatever the file holds
    devices = [_device(snapshot, device, asked, capacity) for device in snapshot.devices]
    return Summary(snapshot.settings, devices, snapshot.missing)


def _device(snapshot: Snapshot, device: int, confs: list[str], capacity: int | None) -> DeviceSummary:
    segments = snapshot.of(device)
    blocks = [block for segment in segments for block in segment.blocks]
    used = [block for block in blocks if block.state == ALLOCATED]
    free = [block.size for block in blocks if not block.active]
    events = snapshot.histories.get(device, [])
    whole = [each for each in segments if not each.expandable and not any(block.active for block in each.blocks)]
    told: dict[str, Any] = {}
    try:
        found = replay.history(snapshot, device, capacity)
        told = {"recorded": found.recorded, "capacity": found.capacity, "before": found.before}
        if confs and events:
            told["replays"] = _replays(found, confs)
    except Inconsistent as error:
        told = {"problem": str(error)}
    return DeviceSummary(
        device=device,
        reserved=sum(segment.size for segment in segments),
        allocated=sum(block.size for block in used),
        requested=sum(block.requested for block in used),
        pending=sum(block.size for block in blocks if block.active and block.state != ALLOCATED),
        inactive=sum(free),
        returnable=sum(segment.size for segment in whole),
        largest_free=max(free, default=0),
        segments=len(segments),
        blocks=len(used),
        events=len(events),
        top=_top(used),
        ooms=[Oom(event.size, event.address, where(event.frames)) for event in events if event.action == OOM],
        **told,
    )


def _replays(found: replay.History, confs: list[str]) -> Replays:
    rule, model = replay.closest(found)
    asked = {conf: replay.replay(found, conf, rule) for conf in confs}
    return Replays(found.recorded, model, asked, found.capacity, rule, found.before)


def _top(blocks: list[Block]) -> dict[str, tuple[int, int]]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    known: dict[int, str] = {}  # many blocks share their frames
    for block in blocks:
        line = known.setdefault(id(block.frames), "") or where(block.frames)
        known[id(block.frames)] = line
        sizes[line] += block.size
        counts[line] += 1
    return {line: (size, counts[line]) for line, size in sizes.most_common(TOP)}


def where(frames: Any) -> str:
    """Return the innermost source line outside libraries, as ``file:line``; the innermost Python line without one."""
    python = [each for each in content.frames(frames) if each.line > 0 and not _NATIVE.search(each.filename)]
    users = (each for each in python if not _LIBRARY.search(each.filename))
    chosen = next(users, python[0] if python else None)
    return f"{chosen.filename}:{chosen.line}" if chosen is not None else "unknown"


__all__ = ["DeviceSummary", "Event", "Oom", "Replays", "Summary", "summarise", "where"]
