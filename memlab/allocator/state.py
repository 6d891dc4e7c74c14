"""All that the allocator knows: plain data, which the functions of the other files read and change."""

from __future__ import annotations

from collections import deque

from memlab.allocator.blocks import Block, BlockPool
from memlab.allocator.driver import Device
from memlab.allocator.settings import Settings
from memlab.allocator.stats import DeviceStats
from memlab.allocator.trace import Trace


class State:
    """One device's DeviceCachingAllocator. total and other are bytes; tie_break is "segment" or "address"."""

    def __init__(self, settings: Settings, total: int, other: int, tie_break: str) -> None:
        self.settings = settings
        self.device = Device(total, other)
        self.stats = DeviceStats(settings.max_split_size)
        self.small_blocks = BlockPool(True, self.stats.small_pool)
        self.large_blocks = BlockPool(False, self.stats.large_pool)
        self.live: dict[int, Block] = {}  # what malloc gave and free has not got back, by address
        self.events: dict[int, deque[Block]] = {}  # by stream: freed blocks that this stream may still use, in order
        self.events_done = True
        self.allowed: int | None = None  # bytes; None where no memory fraction below 1 is set
        self.trace: Trace | None = None
        self.ties_by_segment = tie_break == "segment"
        self.segments_made = 0

    def next_order(self, size: int, stream: int) -> int:
        """The place of a new segment, of so many bytes, among blocks of equal size (registration_counter)."""
        self.segments_made += 1
        return self.segments_made if self.ties_by_segment else 0

    @property
    def allocated(self) -> int:
        """Bytes of the blocks in use: torch.cuda.memory_allocated()."""
        return self.stats.total("allocated_bytes").current

    @property
    def peak_allocated(self) -> int:
        """torch.cuda.max_memory_allocated()."""
        return self.stats.total("allocated_bytes").peak

    @property
    def reserved(self) -> int:
        """Bytes of all segments: torch.cuda.memory_reserved()."""
        return self.stats.total("reserved_bytes").current

    @property
    def peak_reserved(self) -> int:
        """torch.cuda.max_memory_reserved()."""
        return self.stats.total("reserved_bytes").peak

    @property
    def active(self) -> int:
        """Bytes in use or still waiting for another stream."""
        return self.stats.total("active_bytes").current

    @property
    def requested(self) -> int:
        """Bytes that were asked for, before rounding, in active blocks."""
        return self.stats.total("requested_bytes").current
