"""The counters behind torch.cuda.memory_stats() (c10/core/CachingDeviceAllocator.h, struct DeviceStats).

Nine families of numbers are kept for all blocks, for the small pool and for the large pool. Each has a current value,
its peak, and two totals since the last reset: allocated, what was added, and freed, what was taken away.

Four families move now and then; each is a Stat. The other five, of blocks in use, rise in every malloc and fall in
every free. For speed they are kept as totals that only grow: a current value is a difference. Their peaks are looked at
when a rise ends, in the first free after a malloc or before anyone reads; there can be none elsewhere.
"""

from __future__ import annotations

from itertools import chain

IN_USE = {  # the totals that raise a family, and those that lower it
    "allocation": ("mallocs", "frees"),  # blocks from malloc to free
    "allocated_bytes": ("malloc_bytes", "free_bytes"),
    "active": ("mallocs", "done"),  # blocks from malloc until the last stream is done with them
    "active_bytes": ("malloc_bytes", "done_bytes"),
    "requested_bytes": ("requested", "done_requested"),  # what was asked for, before rounding; of active blocks
}
STATS = (
    "segment",  # cudaMallocs not yet freed; expandable segments are not counted
    "reserved_bytes",  # of all segments, and of mapped pages
    "inactive_split",  # free blocks that share their segment: empty_cache cannot return them
    "inactive_split_bytes",
)
COUNTERS = (
    "num_alloc_retries",  # last tries after all cached segments were returned, successful or not
    "num_ooms",
    "num_sync_all_streams",
    "num_device_alloc",  # cudaMalloc and map
    "num_device_free",  # cudaFree and unmap
    "num_oom_rejections",  # refused by throw_on_cudamalloc_oom
)
TOTALS = tuple(dict.fromkeys(chain(*IN_USE.values())))
SCOPES = ("all", "small_pool", "large_pool")


class Stat:
    """One number over time. freed follows from the others, so nobody need count it."""

    __slots__ = ("allocated", "at_reset", "current", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.at_reset = 0

    @property
    def freed(self) -> int:
        return self.at_reset + self.allocated - self.current

    def increase(self, amount: int) -> None:
        self.current += amount
        self.peak = max(self.peak, self.current)
        self.allocated += amount

    def decrease(self, amount: int) -> None:
        self.current -= amount

    def reset_peak(self) -> None:
        self.peak = self.current

    def reset_accumulated(self) -> None:
        self.allocated, self.at_reset = 0, self.current


Pair = tuple[Stat, Stat]  # the Stat of all blocks and the Stat of one pool, which always move together


def increase(pair: Pair, amount: int) -> None:
    # Stat.increase twice, written out: malloc and free come here all the time.
    everything, pool = pair
    current = everything.current = everything.current + amount
    if current > everything.peak:
        everything.peak = current
    everything.allocated += amount
    current = pool.current = pool.current + amount
    if current > pool.peak:
        pool.peak = current
    pool.allocated += amount


def decrease(pair: Pair, amount: int) -> None:
    everything, pool = pair
    everything.current -= amount
    pool.current -= amount


def change(pair: Pair, net: int) -> None:
    """One increase or one decrease by the net amount, so that the peak sees no step between."""
    if net > 0:
        increase(pair, net)
    elif net < 0:
        decrease(pair, -net)


class Peaks:
    __slots__ = tuple(IN_USE)

    def __init__(self) -> None:
        self.allocation = self.allocated_bytes = self.active = self.active_bytes = self.requested_bytes = 0


class PoolStats:
    """What the blocks of one pool add up to. Sizes in bytes."""

    __slots__ = (*STATS, *TOTALS, "device", "other", "peaks")

    other: PoolStats  # that of the other pool

    def __init__(self, device: DeviceStats, pairs: dict[str, Pair]) -> None:
        self.device = device
        self.segment, self.reserved_bytes = pairs["segment"], pairs["reserved_bytes"]
        self.inactive_split, self.inactive_split_bytes = pairs["inactive_split"], pairs["inactive_split_bytes"]
        self.mallocs = self.malloc_bytes = self.requested = 0
        self.frees = self.free_bytes = 0
        self.done = self.done_bytes = self.done_requested = 0
        self.peaks = Peaks()

    def malloced(self, size: int, requested: int) -> None:
        """A block of this size was handed out: all five families rise."""
        device = self.device
        if device.rising is not self:
            device.settle()
            device.rising = self
        self.mallocs += 1
        self.malloc_bytes += size
        self.requested += requested

    def freed(self, size: int) -> None:
        """It came back: no longer allocated."""
        if self.device.rising is not None:
            self.device.settle()
        self.frees += 1
        self.free_bytes += size

    def completed(self, size: int, requested: int) -> None:
        """No stream uses it any more: no longer active."""
        if self.device.rising is not None:
            self.device.settle()
        self.done += 1
        self.done_bytes += size
        self.done_requested += requested


class DeviceStats:
    def __init__(self, max_split_size: int) -> None:
        self.stats = {family: (Stat(), Stat(), Stat()) for family in STATS}  # all, small pool, large pool
        self.small_pool = PoolStats(self, {family: (stat[0], stat[1]) for family, stat in self.stats.items()})
        self.large_pool = PoolStats(self, {family: (stat[0], stat[2]) for family, stat in self.stats.items()})
        self.small_pool.other, self.large_pool.other = self.large_pool, self.small_pool
        self.peaks = Peaks()  # of both pools together
        self.rising: PoolStats | None = None  # where malloc came last, if nothing fell since
        self.at_reset = {total: [0, 0, 0] for total in TOTALS}  # their values when they were last reset, by scope
        self.oversize_allocations = Stat()
        self.oversize_segments = Stat()
        self.num_alloc_retries = self.num_ooms = self.num_sync_all_streams = 0
        self.num_device_alloc = self.num_device_free = self.num_oom_rejections = 0
        # An int64 of a size_t, and never updated: later settings do not change what memory_stats() shows.
        self.max_split_size = max_split_size - (1 << 64) if max_split_size >= 1 << 63 else max_split_size

    def settle(self) -> None:
        """A rise ends: what it reached may be a peak. Written out, as malloc and free come here all the time."""
        pool, self.rising = self.rising, None
        if pool is None:
            return
        other, peaks, of_all = pool.other, pool.peaks, self.peaks
        now = pool.mallocs - pool.frees
        if now > peaks.allocation:
            peaks.allocation = now
        now += other.mallocs - other.frees
        if now > of_all.allocation:
            of_all.allocation = now
        now = pool.malloc_bytes - pool.free_bytes
        if now > peaks.allocated_bytes:
            peaks.allocated_bytes = now
        now += other.malloc_bytes - other.free_bytes
        if now > of_all.allocated_bytes:
            of_all.allocated_bytes = now
        now = pool.requested - pool.done_requested
        if now > peaks.requested_bytes:
            peaks.requested_bytes = now
        now += other.requested - other.done_requested
        if now > of_all.requested_bytes:
            of_all.requested_bytes = now
        if pool.frees != pool.done or other.frees != other.done:
            self._settle_active(pool)

    def _settle_active(self, pool: PoolStats) -> None:
        """Some blocks wait for events. While none does, active is what is allocated, peaks included (_peaks_of)."""
        other = pool.other
        for peaks, pools in ((pool.peaks, (pool,)), (self.peaks, (pool, other))):
            peaks.active = max(peaks.active, sum(each.mallocs - each.done for each in pools))
            peaks.active_bytes = max(peaks.active_bytes, sum(each.malloc_bytes - each.done_bytes for each in pools))

    def _totals(self, name: str) -> list[int]:
        small, large = getattr(self.small_pool, name), getattr(self.large_pool, name)
        return [small + large, small, large]

    def _peaks(self) -> list[Peaks]:
        return [self.peaks, self.small_pool.peaks, self.large_pool.peaks]

    def _peaks_of(self, family: str) -> list[int]:
        at_least = {"active": "allocation", "active_bytes": "allocated_bytes"}.get(family, family)
        return [max(getattr(peaks, family), getattr(peaks, at_least)) for peaks in self._peaks()]

    def _stats(self) -> list[Stat]:
        return [*chain(*self.stats.values()), self.oversize_allocations, self.oversize_segments]

    def reset_peak(self) -> None:
        for stat in self._stats():
            stat.reset_peak()
        for family, (up, down) in IN_USE.items():
            for peaks, risen, fallen in zip(self._peaks(), self._totals(up), self._totals(down), strict=True):
                setattr(peaks, family, risen - fallen)

    def reset_accumulated(self) -> None:
        for stat in self._stats():
            stat.reset_accumulated()
        self.at_reset = {total: self._totals(total) for total in TOTALS}
        for name in COUNTERS:
            setattr(self, name, 0)

    def flat(self) -> dict[str, int]:
        """Return torch.cuda.memory_stats(): 123 keys in sorted order."""
        self.settle()
        found = {name: getattr(self, name) for name in (*COUNTERS, "max_split_size")}
        stats = {"oversize_allocations": self.oversize_allocations, "oversize_segments": self.oversize_segments}
        for family, scopes in self.stats.items():
            stats |= {f"{family}.{scope}": stat for scope, stat in zip(SCOPES, scopes, strict=True)}
        for name, stat in stats.items():
            found |= _parts(name, stat.allocated, stat.freed, stat.current, stat.peak)
        for family, (up, down) in IN_USE.items():
            rows = (
                self._totals(up),
                self.at_reset[up],
                self._totals(down),
                self.at_reset[down],
                self._peaks_of(family),
            )
            for scope, risen, risen_before, fallen, fallen_before, peak in zip(SCOPES, *rows, strict=True):
                name = f"{family}.{scope}"
                found |= _parts(name, risen - risen_before, fallen - fallen_before, risen - fallen, peak)
        return dict(sorted(found.items()))


def _parts(name: str, allocated: int, freed: int, current: int, peak: int) -> dict[str, int]:
    return {
        f"{name}.allocated": allocated,
        f"{name}.freed": freed,
        f"{name}.current": current,
        f"{name}.peak": peak,
    }
