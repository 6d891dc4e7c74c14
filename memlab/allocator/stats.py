"""The counters behind torch.cuda.memory_stats() (c10/core/CachingDeviceAllocator.h, struct DeviceStats).

Nine families of numbers are kept for all blocks, for the small pool and for the large pool. Each has a current value,
its peak, and two totals since the last reset: allocated, what was added, and freed, what was taken away.

Every malloc and every free moves seven of them. For speed they only write down by how much, one line each; the lines
are added up, in their order, when someone reads or when there are many. What is active moves with what is allocated,
except where a block waits for another stream.
"""

from __future__ import annotations

FAMILIES = (
    "allocation",  # blocks from malloc to free
    "allocated_bytes",
    "active",  # blocks from malloc until the last stream is done with them
    "active_bytes",
    "requested_bytes",  # what was asked for, before rounding; of active blocks
    "inactive_split",  # free blocks that share their segment: empty_cache cannot return them
    "inactive_split_bytes",
    "segment",  # cudaMallocs not yet freed; expandable segments are not counted
    "reserved_bytes",  # of all segments, and of mapped pages
)
COUNTERS = (
    "num_alloc_retries",  # last tries after all cached segments were returned, successful or not
    "num_ooms",
    "num_sync_all_streams",
    "num_device_alloc",  # cudaMalloc and map
    "num_device_free",  # cudaFree and unmap
    "num_oom_rejections",  # refused by throw_on_cudamalloc_oom
)
# By how much these rise, or fall: allocation, allocated_bytes, requested_bytes, inactive_split, inactive_split_bytes.
Line = tuple[int, int, int, int, int]
Sums = tuple[tuple[int, int, int], ...]  # of each number of a line: in all, the highest on the way, what rose
MANY = 100  # lines: enough to make the adding up cheap, few enough to stay in the processor's cache


class Stat:
    """One number over time. freed follows from the others, so nobody need count it."""

    __slots__ = ("allocated", "at_reset", "current", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.at_reset = 0

    @property
    def freed(self) -> int:
        return self.at_reset + self.allocated - self.current

    def change(self, net: int) -> None:
        """Rise or fall by the net amount, so that the peak sees no step between."""
        self.current += net
        if net > 0:
            self.allocated += net
            self.peak = max(self.peak, self.current)

    def moved(self, net: int, highest: int, risen: int) -> None:
        """Several changes add up to this, were at most so high above their start, and rose by so much in all."""
        self.peak = max(self.peak, self.current + highest)
        self.current += net
        self.allocated += risen

    def reset_peak(self) -> None:
        self.peak = self.current

    def reset_accumulated(self) -> None:
        self.allocated, self.at_reset = 0, self.current


class Scope:
    """The nine families, of one pool or of both. Sizes in bytes."""

    def __init__(self) -> None:
        self.families = {family: Stat() for family in FAMILIES}

    def moved(self, sums: Sums) -> None:
        """Book what lines add up to. What is active moves with what is allocated, from wherever it stands."""
        blocks, nbytes, requested, splits, split_bytes = sums
        stats = self.families
        stats["allocation"].moved(*blocks)
        stats["active"].moved(*blocks)
        stats["allocated_bytes"].moved(*nbytes)
        stats["active_bytes"].moved(*nbytes)
        stats["requested_bytes"].moved(*requested)
        stats["inactive_split"].moved(*splits)
        stats["inactive_split_bytes"].moved(*split_bytes)


def add_up(lines: list[Line]) -> Sums:
    """Add up lines, in their order. In local variables: this is part of the price of every malloc and free."""
    blocks = most_blocks = nbytes = most_bytes = requested = most_requested = 0
    splits = most_splits = split_bytes = most_split_bytes = 0
    mallocs = malloc_bytes = malloc_requested = risen_splits = risen_split_bytes = 0
    for more_blocks, more_bytes, more_requested, more_splits, more_split_bytes in lines:
        blocks += more_blocks
        nbytes += more_bytes
        requested += more_requested
        if more_blocks > 0:
            mallocs += 1
            malloc_bytes += more_bytes
            malloc_requested += more_requested
            if blocks > most_blocks:
                most_blocks = blocks
            if nbytes > most_bytes:
                most_bytes = nbytes
            if requested > most_requested:
                most_requested = requested
        if more_splits:
            splits += more_splits
            if more_splits > 0:
                risen_splits += more_splits
                if splits > most_splits:
                    most_splits = splits
        split_bytes += more_split_bytes
        if more_split_bytes > 0:
            risen_split_bytes += more_split_bytes
            if split_bytes > most_split_bytes:
                most_split_bytes = split_bytes
    return (
        (blocks, most_blocks, mallocs),
        (nbytes, most_bytes, malloc_bytes),
        (requested, most_requested, malloc_requested),
        (splits, most_splits, risen_splits),
        (split_bytes, most_split_bytes, risen_split_bytes),
    )


class PoolStats(Scope):
    """What the blocks of one pool add up to."""

    def __init__(self, device: DeviceStats) -> None:
        super().__init__()
        self.device = device
        self.lines: list[Line] = []
        self.lines_of_both = device.lines

    def write(self, line: Line) -> None:
        """Note what a malloc or a free changes."""
        self.lines.append(line)
        self.lines_of_both.append(line)
        if len(self.lines_of_both) == MANY:
            self.device.settle()

    def wait(self, blocks: int, nbytes: int) -> None:
        """A free block begins to wait for another stream: no longer allocated, still active. Negative: it has waited.

        A line lowers both, so what has waited is taken back here, after its line and with no peak between.
        """
        self.device.settle()
        for scope in (self, self.device.both):
            scope.families["allocation"].current -= blocks
            scope.families["allocated_bytes"].current -= nbytes

    def change(self, family: str, net: int) -> None:
        """Change one of the families that are in no line."""
        self.families[family].change(net)
        self.device.both.families[family].change(net)


class DeviceStats:
    def __init__(self, max_split_size: int) -> None:
        self.both = Scope()
        self.lines: list[Line] = []  # of both pools, in their order
        self.small_pool = PoolStats(self)
        self.large_pool = PoolStats(self)
        self.scopes = {"all": self.both, "small_pool": self.small_pool, "large_pool": self.large_pool}
        self.oversize_allocations = Stat()
        self.oversize_segments = Stat()
        self.num_alloc_retries = self.num_ooms = self.num_sync_all_streams = 0
        self.num_device_alloc = self.num_device_free = self.num_oom_rejections = 0
        # An int64 of a size_t, and never updated: later settings do not change what memory_stats() shows.
        self.max_split_size = max_split_size - (1 << 64) if max_split_size >= 1 << 63 else max_split_size

    def settle(self) -> None:
        """Book the lines: of each pool, and of both. Where only one pool has any, these are the same."""
        for pool in (self.small_pool, self.large_pool):
            if pool.lines:
                sums = add_up(pool.lines)
                pool.moved(sums)
                if len(pool.lines) == len(self.lines):
                    self.both.moved(sums)
                    self.lines.clear()
                pool.lines.clear()
        if self.lines:
            self.both.moved(add_up(self.lines))
            self.lines.clear()

    def total(self, family: str) -> Stat:
        """Return a family for both pools together, as it is now."""
        self.settle()
        return self.both.families[family]

    def named(self) -> dict[str, Stat]:
        """Return every number by its name in memory_stats()."""
        self.settle()
        stats = {"oversize_allocations": self.oversize_allocations, "oversize_segments": self.oversize_segments}
        for name, scope in self.scopes.items():
            stats |= {f"{family}.{name}": stat for family, stat in scope.families.items()}
        return stats

    def reset_peak(self) -> None:
        for stat in self.named().values():
            stat.reset_peak()

    def reset_accumulated(self) -> None:
        for stat in self.named().values():
            stat.reset_accumulated()
        for name in COUNTERS:
            setattr(self, name, 0)

    def flat(self) -> dict[str, int]:
        """Return torch.cuda.memory_stats(): 123 keys in sorted order."""
        found = {name: getattr(self, name) for name in (*COUNTERS, "max_split_size")}
        for name, stat in self.named().items():
            for part in ("allocated", "current", "freed", "peak"):
                found[f"{name}.{part}"] = getattr(stat, part)
        return dict(sorted(found.items()))
