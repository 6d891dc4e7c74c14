"""No free block fits: get a new segment, if need be by returning old ones (the second half of malloc)."""

from __future__ import annotations

from memlab.allocator.blocks import Block, BlockPool
from memlab.allocator.expandable import try_allocate_expandable_block
from memlab.allocator.oom import out_of_memory, rejected
from memlab.allocator.release import (
    garbage_collect_cached_blocks,
    release_available_cached_blocks,
    release_cached_blocks,
)
from memlab.allocator.sizes import allocation_size
from memlab.allocator.state import State


class Want:
    """A request on its way to the driver (struct AllocParams). Sizes in bytes."""

    __slots__ = ("allocation", "pool", "rejected", "size", "stream")

    def __init__(self, pool: BlockPool, size: int, stream: int, allocation: int) -> None:
        self.pool = pool
        self.size = size  # of the block
        self.stream = stream
        self.allocation = allocation  # of the segment to get for it
        self.rejected = False  # by throw_on_cudamalloc_oom


def get_new_block(card: State, pool: BlockPool, size: int, stream: int, nbytes: int) -> Block:
    """Return a block of at least size bytes from the driver, in no free list.

    Up to three tries: at once; after returning just enough oversize blocks; after returning all that is unused.

    Raises:
        OutOfMemory: the third try failed, or throw_on_cudamalloc_oom rejected one.
    """
    want = Want(pool, size, stream, allocation_size(size, card.settings))
    garbage_collect_cached_blocks(card)
    block = alloc_block(card, want)
    if block is None and not want.rejected:
        if release_available_cached_blocks(card, pool, size, stream):
            block = alloc_block(card, want)
        if block is None:
            release_cached_blocks(card)
            card.stats.num_alloc_retries += 1  # counts the try, not its success
            block = alloc_block(card, want)
    if block is not None:
        return block
    if want.rejected:
        raise rejected(nbytes)
    if card.trace is not None:
        card.trace.record("oom", card.device.free, size, stream)
    card.stats.num_ooms += 1
    raise out_of_memory(card, want.allocation)


def alloc_block(card: State, want: Want) -> Block | None:
    """Try once (DeviceCachingAllocator::alloc_block); None if a limit or the device says no."""
    would_be = card.device.used + want.allocation
    if card.allowed is not None and would_be > card.allowed:
        return None
    settings = card.settings
    if settings.throw_on_cudamalloc_oom and would_be > int(settings.per_process_memory_fraction * card.device.total):
        card.stats.num_oom_rejections += 1
        want.rejected = True
        return None
    if settings.expandable_segments:
        return try_allocate_expandable_block(card, want.pool, want.size, want.stream)
    return _cuda_malloc(card, want)


def _cuda_malloc(card: State, want: Want) -> Block | None:
    """Return a new segment as one block; None if the device has no room."""
    if not card.device.take(want.allocation):
        return None
    address = card.device.reserve(want.allocation)
    order = card.next_order(want.allocation, want.stream)
    block = Block(address, want.allocation, want.pool.free_list(want.stream), order)
    want.pool.stats.change("segment", 1)
    want.pool.stats.change("reserved_bytes", block.size)
    if block.size >= card.settings.max_split_size:
        card.stats.oversize_segments.change(1)
    card.stats.num_device_alloc += 1
    if card.trace is not None:
        card.trace.record("segment_alloc", address, block.size, block.stream)
    return block
