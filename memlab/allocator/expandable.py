"""expandable_segments:True: one range of addresses per stream and pool, which gets memory behind it page by page.

The chain of an expandable segment holds allocated, free and unmapped blocks. Memory comes and goes in whole pages:
2 MiB in the small pool, large_segment_size in the large one. Sizes and addresses are in bytes.

When a stream needs a second reservation, find_room goes by address, and which of the two comes first is the driver's
choice. The model's addresses ascend.
"""

from __future__ import annotations

from memlab.allocator.blocks import Block, BlockPool, ExpandableSegment, try_merge_blocks
from memlab.allocator.sizes import SMALL_BUFFER
from memlab.allocator.state import State


def try_allocate_expandable_block(card: State, pool: BlockPool, size: int, stream: int) -> Block | None:
    """A block of at least size bytes, in no free list; None if the device has no page left, or no segment is so large.

    What was mapped before a page failed stays mapped, as a free block.
    """
    block = find_expandable_block(card, pool, size, stream)
    if block is None:
        return None
    if not block.mapped and not map_block(card, block, min(block.size, size)):
        return None
    while block.size < size:
        unmapped = block.next
        assert unmapped is not None and not unmapped.mapped  # a mapped free neighbour would have been merged
        if not map_block(card, unmapped, min(size - block.size, unmapped.size)):
            return None
        block = unmapped  # it has swallowed the free block before it
    block.free_list.remove(block)
    return block


def find_expandable_block(card: State, pool: BlockPool, size: int, stream: int) -> Block | None:
    """Where to map: in the reservations of this stream, or else at the front of a new one, if that is large enough."""
    return find_room(pool, size, stream) or _reserve(card, pool, size, stream)


def find_room(pool: BlockPool, size: int, stream: int) -> Block | None:
    """The lowest address from which free and unmapped blocks make up size bytes."""
    for _, unmapped in pool.unmapped.get(stream, ()):
        before = unmapped.prev
        start = before if before is not None and not before.active else unmapped
        if _room_from(start) >= size:
            return start
    return None


def _room_from(block: Block | None) -> int:
    room = 0
    while block is not None and not block.active:
        room += block.size
        block = block.next
    return room


def _reserve(card: State, pool: BlockPool, wanted: int, stream: int) -> Block | None:
    """Whole pages of addresses, by default for 9/8 of the device."""
    page = SMALL_BUFFER if pool.is_small else card.settings.large_segment_size
    size = -(-card.settings.reserve_of(card.device.total) // page) * page
    if size < wanted:
        return None
    segment = ExpandableSegment(card.device.reserve(size), size, page)
    block = Block(segment.address, size, pool.free_list(stream), card.next_order(size, stream), segment, mapped=False)
    pool.insert_unmapped(block)
    return block


def map_block(card: State, block: Block, size: int) -> bool:
    """Put pages behind the first size bytes of an unmapped block, and make them a free block. False: no memory."""
    assert block.expandable is not None and not block.mapped
    _, mapped = block.expandable.pages_around(block.address, size)
    if not card.device.take(mapped):
        return False
    address, pool = block.address, block.pool
    pool.erase_unmapped(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(
            address + mapped, block.size - mapped, block.free_list, block.order, block.expandable, mapped=False
        )
        rest.splice(block, block.next)
        pool.insert_unmapped(rest)
        block.size = mapped
    try_merge_blocks(block, block.prev)
    try_merge_blocks(block, block.next)
    block.free_list.add(block)
    pool.stats.change("reserved_bytes", mapped)
    card.stats.num_device_alloc += 1
    if card.trace is not None:
        card.trace.record("segment_map", address, mapped, block.stream)
    return True


def unmap_block(card: State, block: Block) -> None:
    """Take the memory from all whole pages inside a free block; what sticks out at either end stays free."""
    segment, pool = block.expandable, block.pool
    assert segment is not None
    address, unmapped = segment.pages_inside(block.address, block.size)
    if unmapped == 0:
        return
    block.free_list.remove(block)
    for at, size in ((block.address, address - block.address), (address + unmapped, _end(block) - address - unmapped)):
        if size > 0:
            rest = Block(at, size, block.free_list, block.order, segment)
            rest.splice(*((block.prev, block) if at < address else (block, block.next)))
            rest.free_list.add(rest)
    block.address, block.size, block.mapped = address, unmapped, False
    try_merge_blocks(block, block.prev)
    try_merge_blocks(block, block.next)
    pool.insert_unmapped(block)
    card.device.give_back(unmapped)
    pool.stats.change("reserved_bytes", -unmapped)
    card.stats.num_device_free += 1
    if card.trace is not None:
        card.trace.record("segment_unmap", address, unmapped, block.stream)
    if not block.is_split():
        pool.erase_unmapped(block)  # nothing is mapped any more: the reservation ends (release_expandable_segment)


def _end(block: Block) -> int:
    return block.address + block.size
