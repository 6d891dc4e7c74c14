"""Giving memory back to the device: what is unused, just enough of it, or what has been idle for long."""

from __future__ import annotations

from memlab.allocator.blocks import Block, BlockPool
from memlab.allocator.expandable import unmap_block
from memlab.allocator.settings import UNLIMITED
from memlab.allocator.state import State
from memlab.allocator.streams import synchronize_and_free_events


def release_cached_blocks(card: State) -> None:
    """Return all that can be returned: torch.cuda.empty_cache(), and the last resort of malloc."""
    synchronize_and_free_events(card)
    _release_blocks(card, card.large_blocks)
    _release_blocks(card, card.small_blocks)


def _release_blocks(card: State, pool: BlockPool) -> None:
    free = list(pool.blocks())
    for block in free:
        if block.expandable is None and not block.is_split():
            release_block(card, block)
    for block in free:
        if block.expandable is not None:
            unmap_block(card, block)


def release_block(card: State, block: Block) -> None:
    """Return a segment that is one free block (cudaFree)."""
    card.stats.num_device_free += 1
    if card.trace is not None:
        card.trace.record("segment_free", block.address, block.size, block.stream)
    card.device.give_back(block.size)
    block.pool.stats.change("segment", -1)
    block.pool.stats.change("reserved_bytes", -block.size)
    if block.size >= card.settings.max_split_size:
        card.stats.oversize_segments.change(-1)
    block.free_list.remove(block)


def release_available_cached_blocks(card: State, pool: BlockPool, size: int, stream: int) -> bool:
    """With max_split_size: return oversize blocks of the stream, just enough for size bytes. False if too few.

    One that is large enough by itself is returned alone, the smallest such; else the largest ones, one by one.
    """
    free = pool.free.get(stream)
    limit = card.settings.max_split_size
    if free is None or limit == UNLIMITED:
        return False
    wanted = max(size, limit)
    block = free.best(wanted)
    if block is not None and _is_returnable(block):
        release_block(card, block)
        return True
    released = 0
    for block in [block for block in free.largest_first() if limit <= block.size < wanted]:
        if released >= wanted:
            break
        if _is_returnable(block):
            released += block.size
            release_block(card, block)
    return released >= wanted


def _is_returnable(block: Block) -> bool:
    # Expandable blocks are always split: more addresses are reserved than the device has memory. Other oversize blocks
    # are split only if max_split_size was lowered later; torch hands such a one to cudaFree and gets an error.
    return not block.is_split()


def garbage_collect_cached_blocks(card: State) -> None:
    """garbage_collection_threshold: return the large segments that were idle for longest.

    An age is the number of searches in the pool since the block was freed. Each pass returns what is at least of
    average age; passes follow until reserved memory is below the threshold or there is nothing to return. Only where a
    memory fraction is set.
    """
    if card.allowed is None or card.settings.garbage_collection_threshold <= 0.0:
        return
    # Expandable segments are never whole (see _is_returnable), so none is among the idle.
    threshold = int(card.settings.garbage_collection_threshold * card.allowed)
    target = card.device.used - threshold
    if target <= 0:
        return
    clock = card.large_blocks.searches
    idle = [block for block in card.large_blocks.blocks() if not block.is_split()]
    reclaimed = 0
    while reclaimed < target and idle:
        average = sum(clock - block.born for block in idle) / len(idle)
        for block in idle:
            if clock - block.born >= average:
                reclaimed += block.size
                release_block(card, block)
        idle = [block for block in idle if clock - block.born < average]
