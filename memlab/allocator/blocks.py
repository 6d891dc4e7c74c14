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
        "born",  # the pool's count of searches when it was last put among the free blocks: its age for the collector
        "event_count",  # for how many events it waits, freed but still active
        "expandable",
        "free_list",  # where it is when it is free: it says which stream and which pool the block belongs to
        "mapped",
        "next",
        "order",  # breaks ties between blocks of one size, before the address does
        "prev",
        "requested",  # by the last malloc that got it; a free block keeps the number
        "size",
        "stream_uses",  # other streams on which it was used (record_stream)
    )

    def __init__(
        self,
        address: int,
        size: int,
        free_list: FreeList,
        order: int,
        expandable: ExpandableSegment | None = None,
        mapped: bool = True,
    ) -> None:
        self.address = address
        self.size = size
        self.free_list = free_list
        self.order = order
        self.expandable = expandable
        self.mapped = mapped
        self.requested = self.event_count = self.born = 0
        self.active = False
        self.prev: Block | None = None
        self.next: Block | None = None
        self.stream_uses: set[int] | None = None

    @property
    def pool(self) -> BlockPool:
        return self.free_list.pool

    @property
    def stream(self) -> int:
        return self.free_list.stream

    @property
    def allocated(self) -> bool:
        """From malloc until free."""
        return self.active and self.event_count == 0

    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None

    def splice(self, before: Block | None, after: Block | None) -> None:
        """Enter the chain between two neighbours."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self

    def cut_front(self, size: int) -> Block:
        """Cut off the first size bytes as a block of their own. The rest keeps the old object."""
        front = Block(self.address, size, self.free_list, self.order, self.expandable)
        before = front.prev = self.prev  # as splice does, without a call: each malloc that splits comes by here
        if before is not None:
            before.next = front
        front.next = self
        self.prev = front
        self.address += size
        self.size -= size
        return front

    def swallow(self, neighbour: Block) -> None:
        """Grow over the block before or behind, which leaves the chain."""
        self.size += neighbour.size
        if self.prev is neighbour:
            self.address = neighbour.address
            before = self.prev = neighbour.prev
            if before is not None:
                before.next = self
        else:
            after = self.next = neighbour.next
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

    def free_list(self, stream: int) -> FreeList:
        """Where the free blocks of a stream are, now or later."""
        if stream not in self.free:
            self.free[stream] = FreeList(self, stream)
        return self.free[stream]

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
        neighbour.free_list.remove(neighbour)
    else:
        neighbour.pool.erase_unmapped(neighbour)
    block.swallow(neighbour)
    return neighbour.size
