"""The free blocks of one stream in one pool, in the order of best fit.

torch keeps a std::set in the order of size, age of the segment, address. Here the sizes are one sorted list, and each
has the list of its blocks: programs ask for the same sizes again and again, so most steps touch a short list only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memlab.allocator.blocks import Block, BlockPool


class FreeList:
    __slots__ = ("by_size", "is_small", "pool", "sizes", "stats", "stream")

    def __init__(self, pool: BlockPool, stream: int) -> None:
        self.pool = pool
        self.stream = stream
        self.is_small = pool.is_small
        self.stats = pool.stats
        self.sizes: list[int] = []  # ascending, each once
        # Best block last, where a list gives it up for nothing: hence the minus. No two addresses are equal.
        self.by_size: dict[int, list[tuple[int, int, Block]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.by_size.values()))

    def __iter__(self) -> Iterator[Block]:
        return self.at_least(0)

    def add(self, block: Block) -> None:
        block.born = self.pool.searches
        entry = (-block.order, -block.address, block)
        same_size = self.by_size.get(block.size)
        if same_size is None:
            self.by_size[block.size] = [entry]
            insort(self.sizes, block.size)
        else:
            insort(same_size, entry)

    def remove(self, block: Block) -> None:
        same_size = self.by_size[block.size]
        if len(same_size) > 1:
            del same_size[bisect_left(same_size, (-block.order, -block.address))]
        else:
            del self.by_size[block.size]
            del self.sizes[bisect_left(self.sizes, block.size)]

    def best(self, size: int) -> Block | None:
        """Return the first block that holds size bytes."""
        at = bisect_left(self.sizes, size)
        return self.by_size[self.sizes[at]][-1][2] if at < len(self.sizes) else None

    def at_least(self, size: int) -> Iterator[Block]:
        """Yield all blocks that hold size bytes, the best first."""
        for index in range(bisect_left(self.sizes, size), len(self.sizes)):
            for _, _, block in reversed(self.by_size[self.sizes[index]]):
                yield block

    def largest_first(self) -> Iterator[Block]:
        for size in reversed(self.sizes):
            for _, _, block in self.by_size[size]:
                yield block
