"""The requests of a history once more, through the allocator's model: under its own settings, or under others.

Exact is what the model decides for these requests in this order. Not exact: what the history does not tell. Whether the
program emptied the cache or the allocator did as its last resort is inferred; a block that waits for another stream
counts as freed when it really was; private pools of CUDA graphs are replayed in the common pool; and what was allocated
before the first event is laid out anew, in the order of its addresses. Where the lowest address decides between equal
blocks (torch up to 2.12), segments lie as the record has them, and a segment that it does not have lies behind these.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from memlab.allocator import Allocator, OutOfMemory
from memlab.allocator.settings import Settings
from memlab.allocator.sizes import allocation_size, round_size
from memlab.snapshots import layout
from memlab.snapshots.content import (
    ALLOC,
    FREE_COMPLETED,
    OOM,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    Event,
    Snapshot,
)
from memlab.snapshots.layout import Inconsistent

TIE_BREAKS = ("segment", "address")
RETURNS = (SEGMENT_FREE, SEGMENT_UNMAP)
UNLIMITED = 1 << 50  # bytes of a card that no history fills
LAST = 1 << 64  # behind every address
NONE: Mapping[int, int] = {}


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one history. Sizes in bytes.

    Attributes:
        peak_allocated, peak_reserved: the most there was during the history.
        allocated, reserved: at its end, or where the replay ended.
        ooms: requests that failed and fail; saved: those that failed in the record and are served here.
        died: the number of the event whose request fails here and was served in the record; the replay ends there.
        died_of: bytes of that request.
    """

    peak_allocated: int
    peak_reserved: int
    allocated: int
    reserved: int
    ooms: int = 0
    saved: int = 0
    died: int | None = None
    died_of: int = 0


@dataclass(frozen=True)
class History:
    """One device's recorded events with what was there before them.

    Attributes:
        device, events, conf: as recorded.
        recorded: what happened; exact where the history is complete.
        capacity: bytes that the allocator could have had, known from an out-of-memory event; None without one.
        limited: it was a limit of the process that refused, with room on the device: it counts whole segments.
        before: bytes that were allocated before the first event.
        before_blocks: the blocks of it, as (address, requested bytes, stream), in the order of their addresses.
        segments: address, bytes and stream of what the driver gave, before the first event and then in order of time.
        emptied: numbers of the events before which, by the record alone, the program emptied the cache.
    """

    device: int
    events: list[Event]
    conf: str
    recorded: Outcome
    capacity: int | None
    limited: bool
    before: int
    before_blocks: tuple[tuple[int, int, int], ...]
    segments: tuple[tuple[int, int, int], ...]
    emptied: frozenset[int]

    @property
    def releases(self) -> frozenset[int]:
        """Numbers of the events before which the program emptied the cache, by the record and by the model."""
        return self._modelled[0]

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What the model makes of it under its own settings, by the rule for blocks of equal size."""
        return self._modelled[1]

    @cached_property
    def _modelled(self) -> tuple[frozenset[int], dict[str, Outcome]]:
        """Of what either rule says of the releases, what comes closest to the record."""
        unsure = _unsure(self)
        found = _by_rule(self, self.emptied, TIE_BREAKS, unsure)
        table: dict[frozenset[int], dict[str, Outcome]] = {}
        for releases in {run.emptied: None for run in found.values()}:
            sure = {
                rule: run
                for rule, run in found.items()
                if run.emptied == releases <= self.emptied and run.outcome.died not in unsure
            }
            again = _by_rule(self, releases, [rule for rule in TIE_BREAKS if rule not in sure])
            table[releases] = {rule: (sure | again)[rule].outcome for rule in TIE_BREAKS}
        return min(table.items(), key=lambda each: min(_distance(it, self.recorded) for it in each[1].values()))


def history(snapshot: Snapshot, device: int, capacity: int | None = None) -> History:
    """Return the history of a device; ``capacity`` where it is known better than from the record.

    Raises:
        Inconsistent: it does not lead to the segments of the snapshot, or its settings are not known here.
    """
    settings = Settings(sets_reserve=True)  # any torch may have written it
    try:
        settings.update(snapshot.settings)
    except ValueError as error:
        raise Inconsistent(f"its settings are of another torch: {error}") from None
    events = snapshot.histories.get(device, [])
    now = layout.start(snapshot.of(device), events, settings)
    before_blocks = tuple((at, block.requested, block.stream) for at, block in sorted(now.live.items()))
    before = now.allocated
    segments = [(each.address, each.size, each.stream) for each in now.segments()]
    segments += [(each.address, each.size, each.stream) for each in events if each.action == SEGMENT_ALLOC]
    reserved, rooms, limited = [], [], False
    # What the process had and asked for, where pages were mapped: a limit counts that, and not that pages are whole.
    asked: list[int] = []
    mapped = 0
    for event in layout.paced(events):
        if event.action == ALLOC and mapped:
            asked.append(now.reserved - mapped + _segment_for(event, settings))
        mapped = mapped + event.size if event.action == SEGMENT_MAP else 0
        if event.action == OOM:
            wanted = _segment_for(event, settings)
            limited = limited or event.address >= wanted
            # Where enough was left on the device, what the process had is all that it could have.
            rooms.append(now.reserved + (event.address if 0 <= event.address < wanted else 0))
        reserved.append(now.reserved)
        now.apply(event)
    if capacity is None and rooms:
        capacity = max(asked) if limited and asked else max(*rooms, now.peak_reserved)
    recorded = Outcome(now.peak_allocated, now.peak_reserved, now.allocated, now.reserved, len(rooms))
    emptied = frozenset(_emptied(events, reserved, capacity, settings))
    return History(
        device, events, snapshot.settings, recorded, capacity, limited, before, before_blocks, tuple(segments), emptied
    )


def _segment_for(event: Event, settings: Settings) -> int:
    """Bytes that a request asks the driver for when no free block serves it."""
    return allocation_size(round_size(event.size, settings), settings)


def _emptied(events: list[Event], reserved: list[int], capacity: int | None, settings: Settings) -> Iterator[int]:
    """Yield where segments are returned though the next request would have had room: by the program, then."""
    gets = (SEGMENT_ALLOC, SEGMENT_MAP)
    request: Event | None = None  # the next one
    got = 0  # bytes that it gets from the driver
    found: list[int] = []
    for index in reversed(range(len(events))):
        event = events[index]
        if event.action in (ALLOC, OOM):
            request, got = event, 0
        elif event.action in gets:
            got += event.size
        elif event.action in RETURNS and (index == 0 or events[index - 1].action not in RETURNS):
            wanted = _segment_for(request, settings) if request is not None else 0
            full = capacity is not None and reserved[index] + max(got, wanted) > capacity
            if request is None or (request.action == ALLOC and not (got and full)):
                found.append(index)
    yield from reversed(found)


def _unsure(history: History) -> dict[int, int]:
    """Return requests, by number, before which segments were returned as if for them, and the number of the first."""
    found: dict[int, int] = {}
    returned: int | None = None  # since the last request, and before a known release
    known = False
    for index, event in enumerate(history.events):
        if index in history.emptied:
            known = True
        elif event.action in RETURNS and returned is None and not known:
            returned = index
        if event.action in (ALLOC, OOM):
            if event.action == ALLOC and returned is not None:
                found[index] = returned
            returned, known = None, False
    return found


def replay(history: History, conf: str, tie_break: str = "segment") -> Outcome:
    """Return what becomes of the same requests under settings as in PYTORCH_CUDA_ALLOC_CONF.

    Raises:
        ValueError: with torch's text, for settings that cannot be read.
    """
    if conf == history.conf:
        return history.outcomes[tie_break]
    return _replay(history, history.releases, conf, tie_break).outcome


class _Run(NamedTuple):
    """One replay: its outcome, before which events the cache was emptied, whether both rules take the same blocks."""

    outcome: Outcome
    emptied: frozenset[int]
    either_rule: bool


def _by_rule(
    history: History, releases: frozenset[int], rules: Iterable[str], unsure: Mapping[int, int] = NONE
) -> dict[str, _Run]:
    """Replay under the recorded settings by each rule; once, where the first run shows that they do not differ."""
    found: dict[str, _Run] = {}
    for rule in rules:
        same = next((run for run in found.values() if run.either_rule), None)
        found[rule] = same or _replay(history, releases, history.conf, rule, unsure)
    return found


def _replay(
    history: History, releases: frozenset[int], conf: str, tie_break: str, unsure: Mapping[int, int] = NONE
) -> _Run:
    """Replay, and tell before which events the cache was emptied, as far as it got.

    Of those are the ``unsure`` ones where segments were returned needlessly: by the program, too. The record does not
    say it, but the model does: brought to the same moment, it serves the next request and returns nothing. With one of
    them the outcome is not that of a replay, for the cache was emptied late.
    """
    card = _card(history, conf, tie_break)
    addresses: dict[int, int] = {}
    emptied: set[int] = set()
    index = ooms = saved = 0
    died = None
    try:
        for address, requested, stream in history.before_blocks:
            addresses[address] = card.malloc(requested, stream)
        card.reset_peak()
        for index, event in enumerate(layout.paced(history.events)):
            if index in releases:
                card.empty_cache()
                emptied.add(index)
            if event.action == ALLOC:
                frees = card.stats.num_device_free
                address = card.malloc(event.size, event.stream)
                if index in unsure and card.stats.num_device_free == frees:
                    card.free(address)
                    card.empty_cache()
                    address = card.malloc(event.size, event.stream)
                    emptied.add(unsure[index])
                addresses[event.address] = address
            elif event.action == FREE_COMPLETED:
                card.free(addresses.pop(event.address))
            elif event.action == OOM:
                if _fits(card, event):
                    saved += 1
                else:
                    ooms += 1
    except OutOfMemory:
        died = index
    outcome = Outcome(
        peak_allocated=card.peak_allocated,
        peak_reserved=card.peak_reserved,
        allocated=card.allocated,
        reserved=card.reserved,
        ooms=ooms,
        saved=saved,
        died=died,
        died_of=history.events[died].size if died is not None and history.events else 0,
    )
    return _Run(outcome, frozenset(emptied), card.ascends)


class _Placed(Allocator):
    """An allocator whose segments are in the order of recorded addresses where the lowest address is taken.

    The model's own addresses ascend; those of a driver do not, for what was returned is given again. As long as they
    do (``ascends``), the oldest segment is the one with the lowest address, and both rules take the same blocks.
    """

    def __init__(self, segments: tuple[tuple[int, int, int], ...], total: int, conf: str, tie_break: str) -> None:
        super().__init__(total=total, conf=conf, tie_break=tie_break, sets_reserve=True)
        self.recorded: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
        for address, size, stream in segments:
            self.recorded[size, stream].append(address)
        self.ascends, self.newest = True, 0

    def next_order(self, size: int, stream: int) -> int:
        addresses = self.recorded[size, stream]
        place = addresses.popleft() if addresses else LAST
        self.ascends = self.ascends and place >= self.newest
        self.newest = place
        return super().next_order(size, stream) if self.ties_by_segment else place


def _card(history: History, conf: str, tie_break: str) -> _Placed:
    card = _Placed(history.segments, history.capacity or UNLIMITED, conf, tie_break)
    if history.limited:
        card.device.total, card.allowed = UNLIMITED, history.capacity
    return card


def _fits(card: Allocator, event: Event) -> bool:
    try:
        card.free(card.malloc(event.size, event.stream))
    except OutOfMemory:
        return False
    return True


def closest(history: History) -> tuple[str, Outcome]:
    """Return the rule for blocks of equal size that comes closest to the record, and its outcome: torch changed it."""
    return min(history.outcomes.items(), key=lambda each: _distance(each[1], history.recorded))


def _distance(outcome: Outcome, recorded: Outcome) -> tuple[int, ...]:
    return (
        abs(outcome.peak_reserved - recorded.peak_reserved),
        abs(outcome.reserved - recorded.reserved),
        abs(outcome.peak_allocated - recorded.peak_allocated),
        abs(outcome.allocated - recorded.allocated),
    )


__all__ = ["TIE_BREAKS", "History", "Inconsistent", "Outcome", "closest", "history", "replay"]
