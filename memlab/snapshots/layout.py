"""The blocks where a history says they were: no best fit, no model; only addresses, and the rule of splitting.

An alloc at an address takes the front of the free bytes there; how much of them follows from the size that was asked
for. Going backwards from the segments at the end gives what there was before the first recorded event.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import TypeVar

from memlab.allocator.settings import Settings
from memlab.allocator.sizes import MIN_BLOCK_SIZE, SMALL_BUFFER, SMALL_SIZE, round_size
from memlab.snapshots.content import (
    ALLOC,
    ALLOCATED,
    FREE_COMPLETED,
    FREE_REQUESTED,
    INACTIVE,
    PENDING,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
    Block,
    Event,
    Segment,
)

SECONDS = 120.0
"""How long going through one history may take."""
_OFTEN = 1 << 10
T = TypeVar("T")


class Inconsistent(ValueError):
    """An event that cannot have happened where the history has it; the text says which."""


def paced(things: Iterable[T], seconds: float = SECONDS) -> Iterator[T]:
    """Yield all of them, as long as there is time. Raises `Inconsistent` afterwards."""
    end = time.monotonic() + seconds
    for index, thing in enumerate(things):
        if not index % _OFTEN and time.monotonic() > end:
            raise Inconsistent(f"it takes longer than {seconds:g} s to go through it")
        yield thing


class Placed:
    """An active block."""

    __slots__ = ("address", "pending", "requested", "size", "stream")

    def __init__(self, address: int, size: int, requested: int, stream: int, pending: bool = False) -> None:
        self.address = address
        self.size = size  # 0: not known yet
        self.requested = requested
        self.stream = stream
        self.pending = pending  # freed, but another stream may still use it


class Range:
    """Memory from the driver: a segment, or a run of mapped pages."""

    __slots__ = ("address", "expandable", "size", "small", "stream")

    def __init__(self, address: int, size: int, stream: int, small: bool, expandable: bool) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.small = small
        self.expandable = expandable

    @property
    def end(self) -> int:
        return self.address + self.size


class Layout:
    """Ranges and active blocks at one moment. All sizes are bytes.

    Attributes:
        reserved, allocated, requested: sums of now; allocated and requested count what was not asked to be freed.
        peak_reserved, peak_allocated: the most that they have been.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.live: dict[int, Placed] = {}
        self._addresses: list[int] = []  # of live, sorted
        self._ranges: dict[int, Range] = {}
        self._starts: list[int] = []
        self.reserved = self.allocated = self.requested = 0
        self.peak_reserved = self.peak_allocated = 0

    def apply(self, event: Event) -> None:
        """Do what a recorded event did. Raises `Inconsistent`."""
        action, address, size = event.action, event.address, event.size
        if action == ALLOC:
            self._alloc(address, size, event.stream)
        elif action == FREE_REQUESTED:
            self._free_requested(address)
        elif action == FREE_COMPLETED:
            self._free_completed(address)
        elif action == SEGMENT_ALLOC:
            self.add(Range(address, size, event.stream, size <= SMALL_BUFFER, False))
        elif action == SEGMENT_MAP:
            self.map(Range(address, size, event.stream, size <= SMALL_BUFFER, True))
        elif action == SEGMENT_FREE:
            self.remove(address, size)
        elif action == SEGMENT_UNMAP:
            self.unmap(address, size)

    def _alloc(self, address: int, requested: int, stream: int) -> None:
        found = self.range_at(address)
        if found is None or address in self.live:
            raise Inconsistent(f"it allocates at {address:#x}, where nothing is free")
        size = self.block_size(found, address, requested)
        self._place(Placed(address, size, requested, stream))
        self.allocated += size
        self.requested += requested
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def block_size(self, found: Range, address: int, requested: int) -> int:
        """Bytes of the block at an address: the rounded size, or all that is free there if the rest is not kept."""
        at = bisect_right(self._addresses, address)
        end = self._addresses[at] if at < len(self._addresses) else found.end
        room = min(end, found.end) - address
        size = round_size(requested, self.settings)
        rest = room - size
        if rest < 0:
            raise Inconsistent(f"it allocates {requested:,} B at {address:#x}, where {room:,} B are free")
        if found.small or found.expandable:
            return size if rest >= MIN_BLOCK_SIZE else room
        return size if rest > SMALL_SIZE and size < self.settings.max_split_size else room

    def _place(self, block: Placed) -> None:
        self.live[block.address] = block
        insort(self._addresses, block.address)

    def _free_requested(self, address: int) -> None:
        block = self.live.get(address)
        if block is None or block.pending:
            raise Inconsistent(f"it frees at {address:#x}, where nothing is allocated")
        block.pending = True
        self.allocated -= block.size
        self.requested -= block.requested

    def _free_completed(self, address: int) -> None:
        if address in self.live and not self.live[address].pending:
            self._free_requested(address)
        if self.live.pop(address, None) is None:
            raise Inconsistent(f"it frees at {address:#x}, where nothing is allocated")
        del self._addresses[bisect_left(self._addresses, address)]

    def range_at(self, address: int) -> Range | None:
        """The range that an address lies in."""
        at = bisect_right(self._starts, address) - 1
        found = self._ranges[self._starts[at]] if at >= 0 else None
        return found if found is not None and address < found.end else None

    def add(self, new: Range) -> None:
        """Get memory from the driver."""
        after = bisect_left(self._starts, new.address)
        overlaps = after < len(self._starts) and self._starts[after] < new.end
        if overlaps or self.range_at(new.address) is not None or new.size == 0:
            raise Inconsistent(f"it gets a segment at {new.address:#x}, where one is already")
        self._ranges[new.address] = new
        insort(self._starts, new.address)
        self.reserved += new.size
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def remove(self, address: int, size: int) -> None:
        """Give a whole range back to the driver."""
        found = self._ranges.get(address)
        if found is None or found.size != size or self._active_in(address, size):
            raise Inconsistent(f"it returns a segment of {size:,} B at {address:#x}, which is not there or in use")
        self._drop(found)
        self.reserved -= size

    def _drop(self, found: Range) -> None:
        del self._ranges[found.address]
        del self._starts[bisect_left(self._starts, found.address)]

    def map(self, new: Range) -> None:
        """Put pages behind addresses; neighbours of one stream and pool become one."""
        self.add(new)
        before, after = self.range_at(new.address - 1), self._ranges.get(new.end)
        if after is not None and _alike(new, after):
            self._drop(after)
            new.size += after.size
        if before is not None and _alike(before, new):
            self._drop(new)
            before.size += new.size

    def unmap(self, address: int, size: int) -> None:
        """Take pages away from addresses."""
        found = self.range_at(address)
        if found is None or not found.expandable or address + size > found.end or self._active_in(address, size):
            raise Inconsistent(f"it unmaps {size:,} B at {address:#x}, which are not mapped or in use")
        self._drop(found)
        self.reserved -= found.size
        peak = self.peak_reserved
        for start, end in ((found.address, address), (address + size, found.end)):
            if start < end:
                self.add(Range(start, end - start, found.stream, found.small, True))
        self.peak_reserved = peak

    def _active_in(self, address: int, size: int) -> bool:
        at = bisect_left(self._addresses, address)
        return at < len(self._addresses) and self._addresses[at] < address + size

    def segments(self, device: int = 0) -> list[Segment]:
        """The layout as a snapshot has it, without frames; a free block's requested size is 0."""
        return [self._segment(self._ranges[start], device) for start in self._starts]

    def _segment(self, found: Range, device: int) -> Segment:
        blocks: list[tuple[int, int, int, str]] = []
        at = found.address
        first = bisect_left(self._addresses, at)
        for address in self._addresses[first : bisect_left(self._addresses, found.end)]:
            block = self.live[address]
            if address > at:
                blocks.append((at, address - at, 0, INACTIVE))
            blocks.append((address, block.size, block.requested, PENDING if block.pending else ALLOCATED))
            at = address + block.size
        if at < found.end:
            blocks.append((at, found.end - at, 0, INACTIVE))
        made = [_block(*each) for each in blocks]
        return Segment(device, found.address, found.size, found.stream, found.small, found.expandable, made)


def _block(address: int, size: int, requested: int, state: str) -> Block:
    return Block(address, size, requested, state, None)


def _alike(low: Range, high: Range) -> bool:
    return (low.stream, low.small, low.expandable) == (high.stream, high.small, high.expandable)


def start(segments: Iterable[Segment], history: list[Event], settings: Settings) -> Layout:
    """Return the layout before the first event of a history that ended in these segments.

    Raises:
        Inconsistent: the history cannot have ended so.
    """
    layout = Layout(settings)
    for segment in paced(segments):
        layout.add(Range(segment.address, segment.size, segment.stream, segment.small, segment.expandable))
        for block in segment.blocks:
            if block.active:
                pending = block.state == PENDING
                layout._place(Placed(block.address, block.size, block.requested, segment.stream, pending))
    for event in paced(reversed(history)):
        _take_back(layout, event)
    _measure(layout)
    return layout


def _take_back(layout: Layout, event: Event) -> None:
    action, address, size = event.action, event.address, event.size
    if action == ALLOC:
        if layout.live.pop(address, None) is None:
            raise Inconsistent(f"it allocates at {address:#x}, where no block is at the end")
        del layout._addresses[bisect_left(layout._addresses, address)]
    elif action == FREE_REQUESTED:
        if address not in layout.live:
            raise Inconsistent(f"it frees at {address:#x}, where no block can have been")
        layout.live[address].pending = False
    elif action == FREE_COMPLETED:
        if address in layout.live:
            raise Inconsistent(f"it frees at {address:#x}, where a block stays")
        layout._place(Placed(address, 0, size, event.stream, pending=True))
    elif action == SEGMENT_ALLOC:
        layout.remove(address, size)
    elif action == SEGMENT_MAP:
        layout.unmap(address, size)
    elif action == SEGMENT_FREE:
        layout.add(Range(address, size, event.stream, size <= SMALL_BUFFER, False))
    elif action == SEGMENT_UNMAP:
        # Several small pages can go at once; pages of the large pool are large_segment_size each.
        layout.map(Range(address, size, event.stream, size % layout.settings.large_segment_size != 0, True))


def _measure(layout: Layout) -> None:
    """Find out the sizes that nobody recorded, and begin to count."""
    layout.allocated = layout.requested = 0
    for block in layout.live.values():
        found = layout.range_at(block.address)
        if found is None:
            raise Inconsistent(f"a block at {block.address:#x} is in no segment")
        if block.size == 0:
            block.size = layout.block_size(found, block.address, block.requested)
        if not block.pending:
            layout.allocated += block.size
            layout.requested += block.requested
    layout.peak_reserved, layout.peak_allocated = layout.reserved, layout.allocated
