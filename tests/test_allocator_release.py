"""What is given back: before an out-of-memory error and with its text, and by the collector."""

from __future__ import annotations

import pytest
from allocations import GIB, MIB, stat

import memlab
from memlab.allocator import Allocator, OutOfMemory
from memlab.allocator.oom import format_size


def test_cached_segments_are_returned_before_giving_up() -> None:
    card = Allocator(GIB)
    first = card.malloc(400 * MIB)
    card.malloc(400 * MIB)
    card.free(first)
    card.malloc(500 * MIB)
    assert stat(card, "num_alloc_retries", "num_device_free", "num_ooms") == [1, 1, 0] and card.reserved == 943_718_400
    with pytest.raises(
        OutOfMemory, match=r"^CUDA out of memory. Tried to allocate 200.00 MiB. GPU 0 has a total"
    ) as caught:
        card.malloc(200 * MIB)
    assert "of which 124.00 MiB is free. Of the allocated memory 900.00 MiB" in str(caught.value)
    assert stat(card, "num_alloc_retries", "num_ooms") == [2, 1]
    assert isinstance(caught.value, RuntimeError) and memlab.OutOfMemory is OutOfMemory


def test_the_message_names_the_segment_that_was_not_to_be_had() -> None:
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 20.00 MiB.*free. 8.00 MiB allowed; Of the"):
        Allocator(16 * MIB, fraction=0.5).malloc(2 * MIB)


def test_what_others_use_is_not_there() -> None:
    card = Allocator(100 * MIB, other=40 * MIB)
    with pytest.raises(OutOfMemory, match=r"total capacity of 100.00 MiB of which 60.00 MiB is free"):
        card.malloc(61 * MIB)
    card.other = 10 * MIB
    card.malloc(61 * MIB)
    assert card.other == 10 * MIB


def test_limits_may_be_reached_exactly() -> None:
    Allocator(20 * MIB).malloc(20 * MIB)
    Allocator(40 * MIB, fraction=0.5).malloc(20 * MIB)
    card = Allocator(40 * MIB, "throw_on_cudamalloc_oom:True,per_process_memory_fraction:0.5")
    card.set_memory_fraction(1.0)
    card.malloc(20 * MIB)
    with pytest.raises(OutOfMemory, match=r"Requested size: 1000 bytes$"):
        card.malloc(1000)


def test_a_fraction_rounds_and_can_be_changed() -> None:
    assert Allocator(1001, fraction=0.5).allowed == 501  # std::round: half goes up
    card = Allocator(100 * MIB, "per_process_memory_fraction:0.3")
    assert card.allowed == 30 * MIB
    card.configure("per_process_memory_fraction:0.9")
    assert card.allowed == 30 * MIB
    card.set_memory_fraction(1.0)
    assert card.allowed is None
    with pytest.raises(ValueError, match=r"Invalid fraction value: 1\.5\. Allowed range: 0~1"):
        card.set_memory_fraction(1.5)


def test_rejections_come_before_any_retry() -> None:
    card = Allocator(100 * MIB, "throw_on_cudamalloc_oom:True,per_process_memory_fraction:0.5")
    card.set_memory_fraction(1.0)
    card.free(card.malloc(30 * MIB))
    with pytest.raises(OutOfMemory) as caught:
        card.malloc(40_000_001)
    assert str(caught.value) == (
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
        "per_process_memory_fraction limit. Requested size: 38.15 MiB"
    )
    assert stat(card, "num_oom_rejections", "num_ooms", "num_alloc_retries") == [1, 0, 0] and card.reserved == 30 * MIB


def test_an_exbibyte_is_refused_unseen() -> None:
    card = Allocator()
    before = card.memory_stats()
    with pytest.raises(OutOfMemory, match=r"^CUDA out of memory. Tried to allocate more than 1EB memory.$"):
        card.malloc(1 << 60)
    assert card.memory_stats() == before
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 1073741824.00 GiB"):
        card.malloc((1 << 60) - 1)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1024, "1024 bytes"),
        (1025, "1.00 KiB"),
        (MIB, "1024.00 KiB"),
        (MIB + 1, "1.00 MiB"),
        (GIB, "1024.00 MiB"),
        (GIB + 1, "1.00 GiB"),
        (90_000_000_000, "83.82 GiB"),
    ],
)
def test_torchs_way_to_write_bytes(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


def test_the_collector_returns_what_was_idle_for_longest() -> None:
    card = Allocator(GIB, "garbage_collection_threshold:0.62", fraction=0.9)
    old, young, kept = (card.malloc(size * MIB) for size in (100, 110, 300))
    card.free(old)
    for _ in range(5):
        card.free(card.malloc(110 * MIB, stream=1))  # the clock goes on
    card.free(young)
    card.malloc(150 * MIB)
    assert old not in {segment["address"] for segment in card.snapshot()["segments"]}
    assert young in {segment["address"] for segment in card.snapshot()["segments"]}
    assert stat(card, "num_device_free", "num_alloc_retries") == [1, 0]
    assert kept in card.live


def test_the_collector_goes_on_with_the_younger_until_it_has_enough() -> None:
    card = Allocator(GIB, "garbage_collection_threshold:0.5", fraction=0.9)
    blocks = [card.malloc(size * MIB) for size in (100, 110, 120, 400)]
    card.free(card.malloc(2 * MIB, stream=1))
    for address, ticks in zip(blocks[:3], (12, 3, 1), strict=True):
        card.free(address)
        for _ in range(ticks):
            card.free(card.malloc(2 * MIB, stream=1))
    card.record_history()
    card.malloc(130 * MIB)  # 750 are reserved and 460 the threshold: the three must go, one by one, the fourth stays
    freed = [entry["addr"] for entry in card.snapshot()["device_traces"][0] if entry["action"] == "segment_free"]
    assert freed == blocks[:3]


def test_the_collector_takes_a_single_block() -> None:
    card = Allocator(GIB, "garbage_collection_threshold:0.1", fraction=0.9)
    card.free(card.malloc(300 * MIB))
    card.malloc(310 * MIB)
    assert card.reserved == 310 * MIB


def test_without_a_fraction_nothing_is_collected() -> None:
    card = Allocator(GIB, "garbage_collection_threshold:0.1")
    card.free(card.malloc(300 * MIB))
    card.malloc(310 * MIB)
    assert card.reserved == 610 * MIB
