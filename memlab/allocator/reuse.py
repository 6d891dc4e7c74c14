"""The cache: a free block is found, split and handed out; it comes back, merges with its neighbours and waits."""

from __future__ import annotations

from collections.abc import Iterator

from memlab.allocator.blocks import Block, BlockPool, try_merge_blocks
from memlab.allocator.sizes import MIN_BLOCK_SIZE, SMALL_SIZE
from memlab.allocator.state import State


def get_free_block(card: State, pool: BlockPool, size: int, stream: int) -> Block | None:
    """Best fit: the smallest free block of this stream that holds size bytes, out of the pool.

    Among equal sizes the block of the oldest segment is taken, then the lowest address; until torch 2.12 the lowest
    address alone decided. None if there is no such block or max_split_size forbids it: with a limit, a block at or
    above it serves only requests at or above it, and of these none that would waste max_non_split_rounding bytes.
    """
    if card.allowed is not None and card.settings.garbage_collection_threshold > 0.0:
        pool.searches += 1
    free = pool.free.get(stream)
    if free is None:
        return None
    block = free.best(size)
    if block is not None and block.expandable is not None:
        candidates = free.at_least(size)
        block = _best_expandable(candidates) if card.settings.expandable_segments else _first_ordinary(candidates)
    if block is None:
        return None
    limit = card.settings.max_split_size
    if size < limit:
        if block.size >= limit:
            return None
    elif block.size >= size + card.settings.max_non_split_rounding:
        return None
    free.remove(block)
    return block


def _best_expandable(candidates: Iterator[Block]) -> Block:
    """An expandable block counts with the size it can grow to: go on while the next one would be the tighter fit."""
    block = next(candidates)
    for after in candidates:
        if block.expandable is None or _size_it_can_grow_to(after) >= _size_it_can_grow_to(block):
            break
        block = after
    return block


def _size_it_can_grow_to(block: Block) -> int:
    return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)


def _first_ordinary(candidates: Iterator[Block]) -> Block | None:
    """Expandable segments were turned off: what is left of them serves nobody."""
    return next((block for block in candidates if block.expandable is None), None)


def should_split(card: State, block: Block, size: int) -> bool:
    """Whether the rest of the block is worth keeping apart (DeviceCachingAllocator::should_split).

    Where it is not, the block is handed out whole and counts whole as allocated.
    """
    remaining = block.size - size
    if block.free_list.is_small or card.settings.expandable_segments:
        return remaining >= MIN_BLOCK_SIZE
    return remaining > SMALL_SIZE and size < card.settings.max_split_size


def alloc_found_block(card: State, block: Block, size: int, requested: int) -> int:
    """Hand out the front of a block that is in no free list (DeviceCachingAllocator::alloc_found_block)."""
    was_split = block.prev is not None or block.next is not None
    inactive_split = inactive_split_bytes = 0  # what changes of the free blocks that share their segment
    if should_split(card, block, size):
        rest = block  # it keeps the old object, and with it the old requested size
        block = rest.cut_front(size)
        rest.free_list.add(rest)
        if block.expandable is not None:
            pass  # never inactive_split: whole pages of an expandable segment can always be returned
        elif was_split:
            inactive_split_bytes = -size
        else:
            inactive_split, inactive_split_bytes = 1, rest.size
    else:
        size = block.size
        if was_split and block.expandable is None:
            inactive_split, inactive_split_bytes = -1, -size

    block.active = True
    block.requested = requested
    card.live[block.address] = block
    if card.trace is not None:
        card.trace.record("alloc", block.address, requested, block.stream)
    block.free_list.stats.write((1, size, requested, inactive_split, inactive_split_bytes))
    if size >= card.settings.max_split_size:
        card.stats.oversize_allocations.change(1)
    return block.address


def free_block(card: State, block: Block) -> None:
    """No stream uses the block any more: merge it with its free neighbours (DeviceCachingAllocator::free_block)."""
    if card.trace is not None:
        card.trace.record("free_completed", block.address, block.requested, block.stream)
    size = block.size
    merged = merged_bytes = 0
    for neighbour in (block.prev, block.next):
        if neighbour is not None and not neighbour.active:  # most are active: the call is saved
            gained = try_merge_blocks(block, neighbour)
            if gained:
                merged += 1
                merged_bytes += gained
    block.active = False
    block.free_list.add(block)
    inactive_split = inactive_split_bytes = 0
    if block.expandable is None:
        inactive_split, inactive_split_bytes = -merged, -merged_bytes
        if block.prev is not None or block.next is not None:
            inactive_split += 1
            inactive_split_bytes += block.size
    block.free_list.stats.write((-1, -size, -block.requested, inactive_split, inactive_split_bytes))
