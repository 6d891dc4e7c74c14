"""Which free block is taken, how it is split and merged, and what max_split_size changes."""

from __future__ import annotations

import pytest
from allocations import GIB, MIB, stat

from memlab.allocator import Allocator, OutOfMemory, check


def ties(tie_break: str) -> bool:
    """Whether a free block of the older segment, at the higher address, is preferred."""
    card = Allocator(tie_break=tie_break)
    card.device.next_address = 1 << 45
    old = card.malloc(30 * MIB)
    card.device.next_address = 1 << 44
    young = card.malloc(30 * MIB)
    card.free(young)
    card.free(old)
    return card.malloc(30 * MIB) == old


def test_equal_sizes_go_to_the_oldest_segment_or_before_2_13_to_the_lowest_address() -> None:
    assert ties("segment")
    assert not ties("address")


def test_the_smallest_sufficient_block_is_taken() -> None:
    card = Allocator()
    blocks = [card.malloc(size * MIB) for size in (40, 30, 50)]
    for address in blocks:
        card.free(address)
    assert card.malloc(28 * MIB) == blocks[1]
    assert card.malloc(30 * MIB) == blocks[0]


def test_a_rest_of_one_mebibyte_stays_with_a_large_block() -> None:
    card = Allocator()
    address = card.malloc(19 * MIB)
    assert card.allocated == card.reserved == 19 * MIB + MIB
    card.free(address)
    card.malloc(19 * MIB - 512)
    assert card.allocated == 19 * MIB - 512


def test_neighbours_merge_and_the_block_freed_last_gives_its_request() -> None:
    card = Allocator()
    blocks = [card.malloc(n) for n in (100, 200, 300)]
    for address in (blocks[0], blocks[2], blocks[1]):
        card.free(address)
    assert card.snapshot()["segments"][0]["blocks"] == [
        {"address": blocks[0], "size": 2 * MIB, "requested_size": 200, "state": "inactive", "frames": []}
    ]


def test_streams_do_not_share_blocks() -> None:
    card = Allocator()
    first = card.malloc(100, stream=1)
    card.free(first)
    assert card.malloc(100, stream=2) != first
    assert card.malloc(100, stream=1) == first


def test_an_oversize_block_serves_no_small_request_and_no_wasteful_one() -> None:
    card = Allocator(conf="max_split_size_mb:100,max_non_split_rounding_mb:50")
    big = card.malloc(200 * MIB)
    assert stat(card, "oversize_allocations.current", "oversize_segments.current") == [1, 1]
    card.free(big)
    assert card.malloc(30 * MIB) != big
    assert card.malloc(150 * MIB) != big  # 200 >= 150 + 50
    assert card.malloc(150 * MIB + 512) == big
    assert card.allocated == (30 + 150 + 200) * MIB
    assert card.memory_stats()["max_split_size"] == 100 * MIB


def test_before_a_retry_just_enough_oversize_blocks_are_returned() -> None:
    card = Allocator(1 * GIB, "max_split_size_mb:100")
    blocks = [card.malloc(size * MIB) for size in (30, 120, 200, 300, 310)]
    for address in blocks:
        card.free(address)
    card.malloc(250 * MIB)  # 300 would waste too much, so the smallest that is large enough goes
    assert card.reserved == (30 + 120 + 200 + 310 + 250) * MIB
    card.malloc(400 * MIB)  # none is large enough: the largest go, 310 and 200
    assert card.reserved == (30 + 120 + 250 + 400) * MIB
    assert stat(card, "num_alloc_retries", "num_device_free", "num_sync_all_streams") == [0, 3, 0]
    check(card)


def test_blocks_below_the_limit_do_not_count_before_a_retry() -> None:
    card = Allocator(600 * MIB, "max_split_size_mb:100")
    card.malloc(100 * MIB)
    for address in [card.malloc(350 * MIB), card.malloc(60 * MIB)]:
        card.free(address)
    card.malloc(400 * MIB)  # 350 would do with the 60, but that is not oversize: the cache is emptied
    assert stat(card, "num_alloc_retries", "num_device_free", "num_sync_all_streams") == [1, 2, 1]


def test_expandable_blocks_are_not_returned_as_oversize() -> None:
    card = Allocator(600 * MIB, "expandable_segments:True")
    card.free(card.malloc(200 * MIB))
    card.configure("expandable_segments:False,max_split_size_mb:100")
    card.malloc(500 * MIB)
    assert stat(card, "num_alloc_retries", "oversize_segments.current", "oversize_segments.freed") == [1, 1, 0]
    check(card)


def test_a_request_below_the_limit_releases_a_block_at_or_above_it() -> None:
    card = Allocator(600 * MIB, "expandable_segments:True")
    card.free(card.malloc(70 * MIB))
    card.configure("max_split_size_mb:100,expandable_segments:False")
    unused = card.malloc(150 * MIB)
    card.malloc(350 * MIB)
    card.free(unused)
    card.malloc(60 * MIB)  # the expandable block is larger than 60, but cannot be returned
    assert stat(card, "num_alloc_retries", "num_device_free") == [0, 1] and card.reserved == (80 + 350 + 60) * MIB


def test_a_split_block_survives_a_limit_that_was_lowered_below_it() -> None:
    card = Allocator(500 * MIB)
    kept = card.malloc(20 * MIB)
    rest = card.malloc(200 * MIB)
    card.free(rest)
    card.malloc(20 * MIB)  # splits the 200
    card.configure("max_split_size_mb:100")
    with pytest.raises(OutOfMemory):
        card.malloc(400 * MIB)
    check(card)
    card.free(kept)
    check(card)
