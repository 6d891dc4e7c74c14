"""What holds after every call, whatever was called: the allocator's invariants, checked from scratch."""

from __future__ import annotations

from itertools import pairwise

from memlab.allocator.blocks import Block, BlockPool
from memlab.allocator.sizes import MIN_BLOCK_SIZE, SMALL_SIZE
from memlab.allocator.snapshot import all_blocks
from memlab.allocator.state import State
from memlab.allocator.stats import FAMILIES


def check(card: State) -> None:
    """Raise AssertionError, with a sentence, on the first thing that does not hold. It looks at every block: slow."""
    known = {block.address: block for block in all_blocks(card)}
    for pool in (card.small_blocks, card.large_blocks):
        known |= {block.address: block for blocks in pool.unmapped.values() for _, block in blocks}
    chains = [_chain(block) for block in known.values() if block.prev is None]
    blocks = [block for chain in chains for block in chain]
    listed = {id(block) for block in known.values()}
    assert {id(block) for block in blocks} == listed, "a block is in a chain and in no list, or the other way round"
    for chain in chains:
        _check_chain(chain)
    _check_ranges(chains)
    for block in blocks:
        _check_block(card, block)
    for pool in (card.small_blocks, card.large_blocks):
        _check_lists(pool, [block for block in blocks if block.pool is pool])
        _check_sums(card, pool, [block for block in blocks if block.pool is pool])
    _check_stats(card)


def _chain(head: Block) -> list[Block]:
    chain = [head]
    while chain[-1].next is not None:
        chain.append(chain[-1].next)
    return chain


def _check_chain(chain: list[Block]) -> None:
    for block, after in pairwise(chain):
        assert after.prev is block, "prev and next disagree"
        assert after.address == block.address + block.size, "blocks do not tile their segment"
        assert block.active or after.active or block.mapped is not after.mapped, "two free neighbours are not merged"
        assert (block.stream, block.pool, block.order) == (after.stream, after.pool, after.order), "a segment is mixed"
        assert block.expandable is after.expandable, "a segment is half expandable"
    segment = chain[0].expandable
    if segment is not None:
        assert chain[0].address == segment.address, "an expandable segment does not begin with its first block"
        assert sum(block.size for block in chain) == segment.size, "blocks do not tile their expandable segment"


def _check_ranges(chains: list[list[Block]]) -> None:
    ranges = sorted((chain[0].address, chain[-1].address + chain[-1].size) for chain in chains)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "segments overlap"


def _check_block(card: State, block: Block) -> None:
    assert block.size > 0 and block.size % MIN_BLOCK_SIZE == 0, "a block is no multiple of 512 bytes"
    assert (card.live.get(block.address) is block) is block.allocated, "live and allocated disagree"
    waiting = sum(queue.count(block) for queue in card.events.values())
    assert waiting == block.event_count, "events are counted wrong"
    assert block.active is (block.allocated or waiting > 0), "active is neither allocated nor waiting"
    assert block.allocated or not block.stream_uses, "a block that is not allocated has stream uses"
    if block.active:
        assert block.mapped, "an active block has no memory"
        assert 0 < block.requested <= block.size, "a block is smaller than its request"
        assert (block.size <= SMALL_SIZE) or not block.pool.is_small, "the small pool serves a large block"


def _check_lists(pool: BlockPool, blocks: list[Block]) -> None:
    free = {id(block) for block in blocks if block.mapped and not block.active}
    listed = [block for stream in pool.free.values() for block in stream]
    assert len(listed) == len(free) and set(map(id, listed)) == free, "free lists and free blocks differ"
    for stream, entries in pool.free.items():
        assert {block.stream for block in entries} <= {stream}, "a block is in another stream's free list"
        assert entries.sizes == sorted(entries.by_size), "a free list has a size without blocks, or the reverse"
        for size, same_size in entries.by_size.items():
            expected = sorted((-block.order, -block.address, block) for _, _, block in same_size)
            assert same_size == expected, "blocks of one size are out of order"
            assert {block.size for _, _, block in same_size} == {size}, "a free list is out of date"
    unmapped = [(block.address, id(block)) for block in blocks if not block.mapped]
    listed_unmapped = [(at, id(block)) for stream in pool.unmapped.values() for at, block in stream]
    assert sorted(unmapped) == sorted(listed_unmapped), "unmapped lists and unmapped blocks differ"


def _check_sums(card: State, pool: BlockPool, blocks: list[Block]) -> None:
    mapped = [block for block in blocks if block.mapped]
    allocated = [block for block in blocks if block.allocated]
    active = [block for block in blocks if block.active]
    split = [block for block in mapped if not block.active and block.is_split() and block.expandable is None]
    expected = {
        "allocation": len(allocated),
        "allocated_bytes": sum(block.size for block in allocated),
        "active": len(active),
        "active_bytes": sum(block.size for block in active),
        "requested_bytes": sum(block.requested for block in active),
        "inactive_split": len(split),
        "inactive_split_bytes": sum(block.size for block in split),
        "reserved_bytes": sum(block.size for block in mapped),
        "segment": sum(block.prev is None and block.expandable is None for block in blocks),
    }
    stats, scope = card.stats.flat(), "small_pool" if pool.is_small else "large_pool"
    for family, total in expected.items():
        counted = stats[f"{family}.{scope}.current"]
        assert counted == total, f"{family} counts {counted}, the blocks make {total}"


def _check_stats(card: State) -> None:
    stats, scopes = card.stats.flat(), tuple(card.stats.scopes)
    for family in FAMILIES:
        for part in ("current", "allocated", "freed"):
            whole, small, large = (stats[f"{family}.{scope}.{part}"] for scope in scopes)
            assert whole == small + large, f"{family}.{part}: all is {whole}, the pools make {small + large}"
        for scope in scopes:
            peak, current = stats[f"{family}.{scope}.peak"], stats[f"{family}.{scope}.current"]
            assert peak >= current >= 0, f"{family}.{scope}: peak {peak}, current {current}"
        whole, small, large = (stats[f"{family}.{scope}.peak"] for scope in scopes)
        assert max(small, large) <= whole <= small + large, f"{family}: peaks disagree"
    assert stats["active_bytes.all.peak"] >= stats["allocated_bytes.all.peak"], "more was allocated than active"
    assert card.device.used == card.reserved, "the device and the allocator disagree on what is reserved"
    properties = {"allocated": card.allocated, "active": card.active, "reserved": card.reserved}
    properties["requested"] = card.requested
    for name, value in properties.items():
        assert value == stats[f"{name}_bytes.all.current"], f"the property {name} is not what the stats say"
