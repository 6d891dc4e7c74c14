"""How full a device was over its recorded events, and which source lines filled it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memlab.allocator.settings import Settings
from memlab.snapshots import layout
from memlab.snapshots.content import ALLOC, FREE_REQUESTED, OOM, Event, Snapshot
from memlab.snapshots.summary import where

POINTS = 600  # moments that are kept: of each stretch of events, the fullest one
LINES = 9
BEFORE, OTHERS = "before the history", "other lines"


@dataclass(frozen=True)
class Timeline:
    """Bytes at each moment.

    Attributes:
        moments: the number of an event each.
        lines: ``{source line: bytes at each moment}``, the fullest first; their sum is what was allocated.
        reserved: of all segments.
        ooms: the numbers of the events that failed.
        events: how many there are.
    """

    moments: list[int]
    lines: dict[str, list[int]]
    reserved: list[int]
    ooms: list[int]
    events: int

    @property
    def allocated(self) -> list[int]:
        return [sum(values) for values in zip(*self.lines.values(), strict=True)]


def timeline(snapshot: Snapshot, device: int) -> Timeline:
    """Follow the history of a device.

    Raises:
        layout.Inconsistent: it does not lead to the segments.
        ValueError: settings of another torch.
    """
    settings = Settings(sets_reserve=True)  # any torch may have written it
    settings.update(snapshot.settings)
    events = snapshot.histories.get(device, [])
    now = layout.start(snapshot.of(device), events, settings)
    held: Counter[str] = Counter({BEFORE: now.allocated})
    owners: dict[int, str] = dict.fromkeys(now.live, BEFORE)
    stretch = -(-len(events) // POINTS) or 1
    moments, states, reserved = [0], [dict(held)], [now.reserved]
    fullest = -1
    known: dict[int, str] = {}
    for index, event in enumerate(layout.paced(events)):
        if index % stretch == 0:
            fullest = -1
        _count(now, event, held, owners, known)
        if now.allocated > fullest:
            if fullest < 0:
                moments, states, reserved = [*moments, 0], [*states, {}], [*reserved, 0]
            fullest = now.allocated
            moments[-1], states[-1], reserved[-1] = index + 1, dict(held), now.reserved
    ooms = [index for index, event in enumerate(events) if event.action == OOM]
    return Timeline(moments, _lines(states), reserved, ooms, len(events))


def _count(now: layout.Layout, event: Event, held: Counter[str], owners: dict[int, str], known: dict[int, str]) -> None:
    """Do what the event did, and charge it to its source line."""
    address = event.address
    if event.action == FREE_REQUESTED and address in now.live:
        held[owners.pop(address)] -= now.live[address].size
    now.apply(event)
    if event.action == ALLOC:
        line = known.get(id(event.frames))
        if line is None:
            line = known[id(event.frames)] = where(event.frames)
        owners[address] = line
        held[line] += now.live[address].size


def _lines(states: list[dict[str, int]]) -> dict[str, list[int]]:
    """Return the lines that matter when it is fullest, and the sum of the others."""
    peak = max(states, key=lambda state: sum(state.values()))
    named = [line for line, _ in Counter(peak).most_common(LINES) if peak[line] > 0]
    found = {line: [state.get(line, 0) for state in states] for line in named}
    rest = [sum(state.values()) - sum(state.get(line, 0) for line in named) for state in states]
    return {**found, OTHERS: rest} if any(rest) else found
