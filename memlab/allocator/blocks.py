"""Blocks and the two pools they belong to (struct Block, struct BlockPool). Sizes and addresses are in bytes.

A segment is what one cudaMalloc brought: a chain of blocks in address order, linked by prev and next. An expandable
segment is a chain too, and some of its blocks have no memory behind them (mapped is false).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from memlab.allocator.freelist import FreeList
from memlab.allocator.stats import PoolStats


class ExpandableSegment:
    """A range of addresses that gets memory page by page (struct ExpandableSegment)."""

    __slots__ = ("address", "page", "size")

    def __init__(self, address: int, size: int, page: int) -> None:
        self.address = address
        self.size = size
        self.page = page

    def pages_around(self, address: int, size: int) -> tuple[int, int]:
        """Address and size of the whole pages that cover a range."""
        begin = (address - self.address) // self.page * self.page
        end = -(-(address + size - self.address) // self.page) * self.page
        return self.address + begin, end - begin

    def pages_inside(self, address: int, size: int) -> tuple[int, int]:
        """Address and size of the whole pages inside a range; the size is 0 where there is none."""
        begin = -(-(address - self.address) // self.page) * self.page
        end = (address + size - self.address) // self.page * self.page
        return self.address + begin, max(end - begin, 0)


class Block:
    __slots__ = (
        "active",  # from malloc until no stream can use it any more: allocated, or waiting for events
        "address",
        "allocated",  # from malloc until free
        "born",  # the pool's count of searches when it was last put among the free blocks: its age for the collector
        "event_count",
        "expandable",
        "mapped",
        "next",
        "order",  # breaks ties between blocks of one size, before the address does
        "pool",
        "prev",
        "requested",  # by the last malloc that got it; a free block keeps the number
        "size",
        "stream",
        "stream_uses",  # other streams on which it was used (record_stream)
    )

    def __init__(
        self,
        address: int,
        size: int,
        stream: int,
        pool: BlockPool,
        order: int,
        expandable: ExpandableSegment | None = None,
        mapped: bool = True,
    ) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.pool = pool
        self.order = order
        self.expandable = expandable
        self.mapped = mapped
        self.requested = 0
        self.allocated = self.active = False
        self.prev: Block | None = None
        self.next: Block | None = None
        self.stream_uses: set[int] | None = None
        self.event_count = 0
        self.born = 0

    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None

    def splice(self, before: Block | None, after: Block | None) -> None:
        """Enter the chain between two neighbours."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self


class BlockPool:
    """The free blocks of 1 MiB and less, or the larger ones. Streams share a pool, never a block."""

    __slots__ = ("free", "is_small", "searches", "stats", "unmapped")

    def __init__(self, is_small: bool, stats: PoolStats) -> None:
        self.is_small = is_small
        self.stats = stats
        self.free: dict[int, FreeList] = {}  # by stream
        self.unmapped: dict[int, list[tuple[int, Block]]] = {}  # by stream: expandable address space, by address
        self.searches = 0  # get_free_blocks_call_count: the collector's clock

    def insert(self, block: Block) -> None:
        block.born = self.searches
        free = self.free.get(block.stream)
        if free is None:
            free = self.free[block.stream] = FreeList()
        free.add(block)

    def erase(self, block: Block) -> None:
        self.free[block.stream].remove(block)

    def insert_unmapped(self, block: Block) -> None:
        insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def erase_unmapped(self, block: Block) -> None:
        blocks = self.unmapped[block.stream]
        index = bisect_left(blocks, (block.address,))
        assert blocks[index][1] is block
        del blocks[index]

    def blocks(self) -> Iterator[Block]:
        """All free blocks, in torch's order: by stream, size, age of the segment, address."""
        for stream in sorted(self.free):
            yield from self.free[stream]


def try_merge_blocks(block: Block, neighbour: Block | None) -> int:
    """Let a block swallow its neighbour, if that is free and just as mapped; return the bytes gained, or 0."""
    if neighbour is None or neighbour.active or neighbour.mapped is not block.mapped:
        return 0
    if neighbour.mapped:
        block.pool.erase(neighbour)
    else:
        block.pool.erase_unmapped(neighbour)
    if block.prev is neighbour:
        block.address = neighbour.address
        block.prev = neighbour.prev
        if block.prev is not None:
            block.prev.next = block
    else:
        block.next = neighbour.next
        if block.next is not None:
            block.next.prev = block
    block.size += neighbour.size
    return neighbour.size
