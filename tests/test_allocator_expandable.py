"""Expandable segments grow and shrink by whole pages."""

from __future__ import annotations

import pytest
from allocations import GIB, MIB, stat

from memlab.allocator import Allocator, OutOfMemory, check


def test_expandable_segments_grow_page_by_page() -> None:
    card = Allocator(80 * GIB, "expandable_segments:True")
    card.malloc(1_000)
    middle = card.malloc(3 * MIB)
    card.malloc(50 * MIB)
    card.free(middle)
    assert card.reserved == 65_011_712
    assert stat(card, "segment.all.peak", "inactive_split.all.peak", "num_device_alloc") == [0, 0, 3]


def test_a_reservation_is_nine_eighths_of_the_card_in_whole_pages() -> None:
    card = Allocator(GIB, "expandable_segments:True")
    card.malloc(30 * MIB)
    card.malloc(1)
    ((_, large),) = card.large_blocks.unmapped[0]
    ((_, small),) = card.small_blocks.unmapped[0]
    assert (large.size, small.size) == ((1160 - 40) * MIB, (1152 - 2) * MIB)


def test_the_block_that_can_grow_least_is_taken_and_of_equal_ones_the_smaller() -> None:
    card = Allocator(GIB, "expandable_segments:True")
    blocks = [card.malloc(size * MIB) for size in (10, 30, 10, 30, 10, 25, 25)]
    card.free(blocks[1])
    card.empty_cache()  # free from 10 to 20, and 20 more could be mapped behind
    card.free(blocks[3])  # free: 30
    assert card.malloc(8 * MIB) == blocks[1]
    card.free(blocks[1])
    card.free(blocks[5])  # free: 25
    assert card.malloc(8 * MIB) == blocks[5]


def test_while_expandable_is_on_every_block_is_split() -> None:
    card = Allocator()
    card.free(card.malloc(20 * MIB))
    card.configure("expandable_segments:True")
    card.malloc(20 * MIB - 512)
    assert card.allocated == 20 * MIB - 512


def test_expandable_memory_comes_back_in_whole_pages() -> None:
    card = Allocator(GIB, "expandable_segments:True")
    blocks = [card.malloc(15 * MIB) for _ in range(4)]  # three pages of 20 MiB
    assert card.reserved == 60 * MIB
    card.free(blocks[1])
    card.free(blocks[2])
    card.empty_cache()  # free from 15 to 45: only the page from 20 to 40 is whole
    assert card.reserved == 40 * MIB and stat(card, "num_device_free") == [1]
    assert [segment["total_size"] for segment in card.snapshot()["segments"]] == [20 * MIB, 20 * MIB]
    assert card.malloc(30 * MIB) == blocks[1]
    assert card.reserved == 60 * MIB
    for address in (blocks[0], blocks[1], blocks[3]):
        card.free(address)
    card.empty_cache()
    assert card.reserved == 0 and not card.large_blocks.unmapped[0]
    check(card)


def test_a_failed_page_leaves_what_was_mapped() -> None:
    card = Allocator(80 * MIB, "expandable_segments:True", other=10 * MIB)
    blocks = [card.malloc(15 * MIB) for _ in range(4)]  # 3 pages
    card.free(blocks[0])
    card.free(blocks[1])
    card.empty_cache()  # the first page goes
    card.free(blocks[2])
    card.free(blocks[3])
    with pytest.raises(OutOfMemory):
        card.malloc(65 * MIB)  # the first page comes back, a fourth is not there, and at last all go
    assert stat(card, "num_device_alloc", "num_device_free") == [4, 2] and card.reserved == 0
    check(card)


def test_expandable_blocks_rest_while_expandable_is_off() -> None:
    card = Allocator(GIB, "expandable_segments:True")
    first = card.malloc(30 * MIB)
    card.free(first)
    card.configure("expandable_segments:False")
    assert card.malloc(30 * MIB) != first
    assert stat(card, "segment.all.current") == [1]
    card.configure("expandable_segments:True")
    assert card.malloc(30 * MIB) == first


H100 = 85_017_100_288  # bytes, of which 2.15's own allocator was asked on an emulated device
RESERVED = "expandable_segments:True,expandable_segments_reserve:"


def test_what_a_segment_reserves_is_set_from_2_15_on() -> None:
    card = Allocator(H100, RESERVED + "1G", sets_reserve=True)
    card.malloc(100 * MIB)
    card.malloc(GIB)  # 940 MiB are left in the first
    assert card.reserved == (100 + 1040) * MIB
    assert [segment["total_size"] // MIB for segment in card.snapshot()["segments"]] == [100, 1040]
    ((_, rest),) = card.large_blocks.unmapped[0]
    assert rest.size == (1040 - 100) * MIB
    card.configure(RESERVED + "1.125")
    card.malloc(2 * GIB)  # one that is larger may come later
    card.configure(RESERVED + "1G")
    card.malloc(2 * GIB)
    assert [segment["total_size"] // MIB for segment in card.snapshot()["segments"]] == [100, 1040, 4100]


@pytest.mark.parametrize(
    ("reserve", "nbytes", "told", "needed"),
    [
        ("1G", 2 * GIB, "1024.00 MiB", "2.00 GiB"),
        ("1G", 1040 * MIB + 1, "1024.00 MiB", "1.02 GiB"),
        ("0.0000001", 20 * MIB + 1, "8.30 KiB", "22.00 MiB"),
        ("1e-13", 1, "0 bytes", "2.00 MiB"),
        ("0.5", 78 * GIB, "39.59 GiB", "78.00 GiB"),
    ],
)
def test_an_allocation_larger_than_what_a_segment_reserves_is_refused(
    reserve: str, nbytes: int, told: str, needed: str
) -> None:
    card = Allocator(H100, RESERVED + reserve, other=512 * MIB, sets_reserve=True)
    with pytest.raises(OutOfMemory) as caught:
        card.malloc(nbytes)
    assert str(caught.value).endswith(
        f" is reserved by PyTorch but unallocated. This allocation exceeds the expandable-segment reserve of {told} for"
        " this stream, and a single allocation cannot span expandable segments. Raise PYTORCH_CUDA_ALLOC_CONF"
        " expandable_segments_reserve or expandable_segments_reserve_by_class (or unset it) so that a segment is at"
        f" least {needed}."
    )
    assert card.reserved == 0 and not card.snapshot()["segments"]
    assert stat(card, "num_ooms", "num_alloc_retries", "num_device_alloc") == [1, 1, 0]


@pytest.mark.parametrize(
    ("conf", "nbytes", "sets_reserve", "said"),
    [
        ("expandable_segments:True", 80 * GIB, True, "over-reserving VA (each segment reserves ~9/8 of device memory"),
        ("expandable_segments:True", 80 * GIB, False, "try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        ("expandable_segments_reserve:1G", 80 * GIB, True, "try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments"),
        (RESERVED + "1G", H100, True, "over-reserving VA"),  # rounded, it is more than the card
        (RESERVED + "1G", 1024 * MIB, True, "over-reserving VA"),
        (RESERVED + "1G", 1024 * MIB + 1, True, "exceeds the expandable-segment reserve"),
        (RESERVED + "50", 1030 * MIB, True, "over-reserving VA"),
    ],
)
def test_the_out_of_memory_text_speaks_of_the_reserve_from_2_15_on(
    conf: str, nbytes: int, sets_reserve: bool, said: str
) -> None:
    card = Allocator(H100, conf, fraction=512 * MIB / H100, sets_reserve=sets_reserve)
    with pytest.raises(OutOfMemory) as caught:
        card.malloc(nbytes)
    assert said in str(caught.value)
