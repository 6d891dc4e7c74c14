"""The allocator model against what torch's own allocator answered, and each of its rules by example."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import memlab
from memlab.allocator import Allocator, OutOfMemory, check
from memlab.allocator.oom import format_size
from memlab.allocator.settings import UNLIMITED, Settings
from memlab.allocator.sizes import allocation_size, next_power2_division, round_size
from memlab.allocator.snapshot import all_blocks

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
OPTION = "CachingAllocator option"
SCRIPTS = sorted((Path(__file__).parent / "data" / "allocator").glob("*.json"))


class Replay:
    """A script of operations with the answers of torch 2.13's libc10_cuda.so, replayed on the model."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.card = Allocator(
            script["device_total"], script["alloc_conf"], script["memory_fraction"], script["non_torch_used"]
        )
        self.steps = script["steps"]
        self.addresses: dict[int, int] = {}
        self.shifts: dict[int, int] = {}  # by segment: how far torch's addresses are from the model's
        self.compared: Counter[str] = Counter()

    def run(self) -> None:
        for step in self.steps:
            name, *arguments = step["op"]
            getattr(self, f"op_{name}")(step, *arguments)
            check(self.card)

    def op_a(self, step: dict[str, Any], name: int, nbytes: int, stream: int) -> None:
        if "oom" in step:
            with pytest.raises(OutOfMemory) as caught:
                self.card.malloc(nbytes, stream)
            assert str(caught.value) == step["oom"]
            self.compared["oom"] += 1
            return
        address = self.addresses[name] = self.card.malloc(nbytes, stream)
        shift = self.shifts.setdefault(self.card.live[address].order, step["addr"] - address)
        assert address + shift == step["addr"]
        self.compared["address"] += 1

    def op_f(self, step: dict[str, Any], name: int) -> None:
        self.card.free(self.addresses.pop(name, 0))  # 0: it was refused

    def op_r(self, step: dict[str, Any], name: int, stream: int) -> None:
        self.card.record_stream(self.addresses[name], stream)

    def op_q(self, step: dict[str, Any], done: int) -> None:
        self.card.events_done = bool(done)

    def op_e(self, step: dict[str, Any]) -> None:
        self.card.empty_cache()

    def op_p(self, step: dict[str, Any]) -> None:
        self.card.reset_peak()

    def op_z(self, step: dict[str, Any]) -> None:
        self.card.reset_accumulated()

    def op_c(self, step: dict[str, Any], conf: str) -> None:
        self.card.configure(conf)

    def op_s(self, step: dict[str, Any]) -> None:
        stats = self.card.memory_stats()
        expected = {}
        for key, value in step["stats"].items():
            if isinstance(value, list):
                parts = ("current", "peak", "allocated", "freed")
                expected |= {f"{key}.{part}": number for part, number in zip(parts, value, strict=True)}
            else:
                expected[key] = value
        assert stats == expected
        self.compared["stats"] += 1

    def op_b(self, step: dict[str, Any]) -> None:
        shifts = {block.address: self.shifts[block.order] for block in all_blocks(self.card)}
        found = [as_in_script(segment, shifts) for segment in self.card.snapshot()["segments"]]
        assert sorted(found, key=lambda segment: segment["address"]) == step["segments"]
        self.compared["snapshot"] += 1


def as_in_script(segment: dict[str, Any], shifts: dict[int, int]) -> dict[str, Any]:
    states = {"active_allocated": [1, 1], "active_pending_free": [0, 1], "inactive": [0, 0]}
    return {
        "address": segment["address"] + shifts[segment["address"]],
        **{key: segment[key] for key in ("total_size", "allocated_size", "active_size", "requested_size", "stream")},
        "is_large": int(segment["segment_type"] == "large"),
        "is_expandable": int(segment["is_expandable"]),
        "blocks": [[block["size"], block["requested_size"], *states[block["state"]]] for block in segment["blocks"]],
    }


def stat(card: Allocator, *keys: str) -> list[int]:
    stats = card.memory_stats()
    return [stats[key] for key in keys]


def test_the_scripts_are_there() -> None:
    assert len(SCRIPTS) == 19


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_answer_is_torchs(path: Path) -> None:
    replay = Replay(json.loads(path.read_text()))
    replay.run()
    answers = {"a": "address", "s": "stats", "b": "snapshot"}
    expected = Counter(answers[step["op"][0]] for step in replay.steps if step["op"][0] in answers)
    refused = sum("oom" in step for step in replay.steps)
    assert replay.compared == expected + Counter(oom=refused) - Counter(address=refused)


def test_a_small_a_medium_and_a_large_allocation() -> None:
    card = Allocator(80 * GIB)
    card.malloc(1_000)
    medium = card.malloc(3_000_000)
    card.malloc(20_000_000)
    card.free(medium)
    assert (card.allocated, card.peak_allocated, card.reserved) == (20_972_544, 23_972_864, 44_040_192)
    assert (card.peak_reserved, card.requested, card.active) == (44_040_192, 20_001_000, 20_972_544)
    assert stat(card, "inactive_split.all.current", "inactive_split_bytes.all.current") == [1, 2_096_128]
    assert stat(card, "inactive_split_bytes.all.peak", "segment.all.current", "active.all.current") == [
        20_067_328,
        3,
        2,
    ]


def test_the_cheap_properties_are_the_stats() -> None:
    card = Allocator()
    address = card.malloc(5 * MIB)
    card.malloc(700)
    card.record_stream(address, 7)
    card.events_done = False
    card.free(address)
    stats = card.memory_stats()
    assert card.allocated == stats["allocated_bytes.all.current"] == 1024
    assert card.peak_allocated == stats["allocated_bytes.all.peak"] == 5 * MIB + 1024
    assert card.reserved == stats["reserved_bytes.all.current"] == card.peak_reserved
    assert card.active == stats["active_bytes.all.current"] == 5 * MIB + 1024
    assert card.requested == stats["requested_bytes.all.current"] == 5 * MIB + 700


def test_a_peak_is_seen_at_once_and_outlives_what_made_it() -> None:
    card = Allocator()
    first = card.malloc(5 * MIB)
    assert card.peak_allocated == 5 * MIB
    card.record_stream(first, 1)
    card.events_done = False
    card.free(first)
    card.malloc(700)  # active: both
    card.events_done = True
    card.malloc(100)  # the first is done before this one rises
    peaks = ("active.all.peak", "active_bytes.all.peak", "requested_bytes.all.peak", "allocated_bytes.all.peak")
    assert stat(card, *peaks) == [2, 5 * MIB + 1024, 5 * MIB + 700, 5 * MIB]
    assert stat(card, "active_bytes.small_pool.peak", "active_bytes.large_pool.peak") == [1024 + 512, 5 * MIB]


def test_memory_stats_has_torchs_keys() -> None:
    keys = list(Allocator().memory_stats())
    assert len(keys) == 123 and keys == sorted(keys)
    assert {"allocation.all.current", "oversize_segments.peak", "num_ooms", "requested_bytes.large_pool.freed"} < {
        *keys
    }
    assert "reserved_bytes_by_private_pools.all.current" not in keys


# ---- sizes


@pytest.mark.parametrize(
    ("nbytes", "size", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (12 * MIB, 12 * MIB, 12 * MIB),
        (GIB + 1, GIB + 512, GIB + 2 * MIB),
    ],
)
def test_sizes(nbytes: int, size: int, segment: int) -> None:
    assert round_size(nbytes, Settings()) == size
    assert allocation_size(size, Settings()) == segment


@pytest.mark.parametrize(
    ("nbytes", "divisions", "size"),
    [(1200, 4, 1280), (1024, 4, 1024), (1025, 4, 1280), (1536, 2, 1536), (1537, 2, 2048), (2047, 8, 2048), (7, 16, 8)],
)
def test_power_of_two_divisions(nbytes: int, divisions: int, size: int) -> None:
    assert next_power2_division(nbytes, divisions) == size


def test_small_sizes_are_rounded_plainly_in_spite_of_divisions() -> None:
    settings = Settings()
    settings.update("roundup_power2_divisions:4")
    assert [round_size(n, settings) for n in (600, 2048, 2049, 2560)] == [1024, 2048, 2560, 2560]
    assert round_size(2561, settings) == 3072


# ---- settings


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        ("max_split_size_mb:19", f"{OPTION} max_split_size_mb too small, must be >= 20"),
        ("max_split_size_mb:30,large_segment_size_mb:40", f"{OPTION} max_split_size_mb too small, must be >= 40"),
        ("max_non_split_rounding_mb:5", f"{OPTION} max_non_split_rounding_mb too small, must be >= 20"),
        ("large_segment_size_mb:10", f"{OPTION} large_segment_size_mb must be > 10 MB"),
        ("garbage_collection_threshold:1.0", "garbage_collect_threshold is invalid, set it in (0.0, 1.0)"),
        ("garbage_collection_threshold:0", "garbage_collect_threshold is invalid, set it in (0.0, 1.0)"),
        ("roundup_power2_divisions:3", "For roundups, the divisions has to be power of 2 "),
        ("roundup_power2_divisions:0", "For roundups, the divisions has to be power of 2 "),
        ("roundup_power2_divisions:[4:3]", "For roundups, the divisions has to be power of 2 or 0 to disable roundup "),
        ("roundup_power2_divisions:[3:4]", "For roundups, the intervals have to be power of 2 "),
        ("roundup_power2_divisions:[64:8", "Index out of bounds in ConfigTokenizer"),
        ("expandable_segments:true", "Expected 'True' or 'False' at index 2 in ConfigTokenizer but got 'true'"),
        (
            "backend:native,throw_on_cudamalloc_oom:1",
            "Expected 'True' or 'False' at index 6 in ConfigTokenizer but got '1'",
        ),
        ("per_process_memory_fraction:2", "per_process_memory_fraction is invalid, set it in [0.0, 1.0]"),
        ("backend:[native", "Expected closing bracket ']' in ConfigTokenizer but reached end of config"),
        ("bogus:1", "Unrecognized key 'bogus' in Accelerator allocator config."),
        ("backend:bogus,max_split_size_mb:1", f"{OPTION} max_split_size_mb too small, must be >= 20"),
        ("backend:bogus", "Unknown allocator backend, options are native and cudaMallocAsync"),
        ("max_split_size_mb=30", "Unrecognized key 'max_split_size_mb=30' in Accelerator allocator config."),
        (",", "Unrecognized key ',' in Accelerator allocator config."),
        ("max_split_size_mb", "Index out of bounds in ConfigTokenizer"),
        ("max_split_size_mb:x", "stoull"),
        ("max_split_size_mb:99999999999999999999", "stoull"),
        ("garbage_collection_threshold:x", "stod"),
        ("pinned_num_register_threads:3", "Number of register threads has to be power of 2, got 3"),
        ("pinned_num_register_threads:256", "Number of register threads should be less than or equal to 128, got 256"),
        ("pinned_reserve_segment_size_mb:0", "Pinned reserve segment size has to be greater than 0"),
    ],
)
def test_wrong_settings_are_refused_with_torchs_text(conf: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Allocator(conf=conf)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("conf", "table"),
    [
        ("[64:8,256:4,>:2]", [8, 8, 8, 8, 8, 8, 8, 0, 4, 2, 2, 2, 2, 2, 2, 2]),
        ("[256:1,512:2,1024:4,>:8]", [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 8, 8, 8, 8, 8]),
        ("[>:4]", [0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]),
        ("[1:0,131072:4]", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
        ("[4:2,1:8]", [8, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("[]", [0] * 16),
        ("1", [1] * 16),
        ("16", [16] * 16),
    ],
)
def test_both_forms_of_roundup_fill_the_table_as_torch_does(conf: str, table: list[int]) -> None:
    card = Allocator(conf=f"roundup_power2_divisions:{conf}")
    assert card.snapshot()["allocator_settings"]["roundup_power2_divisions"] == {
        str(1 << i): table[i] for i in range(16)
    }


def test_a_size_reads_the_entry_of_its_own_interval() -> None:
    settings = Settings()
    settings.update("roundup_power2_divisions:[1:2,2:4,4:8,>:16]")
    assert [settings.divisions(n) for n in (600, MIB, 2 * MIB - 1, 2 * MIB, 5 * MIB, 8 * MIB, 64 * GIB, 1 << 50)] == [
        2, 2, 2, 4, 8, 16, 16, 16,
    ]  # fmt: skip


def test_odd_but_accepted_settings() -> None:
    settings = Settings()
    settings.update(" max_split_size_mb : 30x : garbage_collection_threshold:.5abc , large_segment_size_mb:25,")
    assert (settings.max_split_size, settings.garbage_collection_threshold) == (30 * MIB, 0.5)
    assert settings.large_segment_size == settings.max_non_split_rounding == 25 * MIB
    settings.update("max_split_size_mb:-1")
    assert settings.max_split_size == UNLIMITED // MIB * MIB


def test_what_settings_keep_and_forget() -> None:
    card = Allocator(
        conf="max_split_size_mb:64,garbage_collection_threshold:0.5,roundup_power2_divisions:4,expandable_segments:True,"
        "large_segment_size_mb:40,max_non_split_rounding_mb:50,throw_on_cudamalloc_oom:True,per_process_memory_fraction:0.5"
    )
    card.configure("")
    settings = card.settings
    assert (settings.max_split_size, settings.garbage_collection_threshold, settings.divisions(1200)) == (
        UNLIMITED,
        0,
        0,
    )
    assert (settings.large_segment_size, settings.max_non_split_rounding) == (40 * MIB, 40 * MIB)
    assert settings.expandable_segments and settings.throw_on_cudamalloc_oom
    assert settings.per_process_memory_fraction == 0.5
    assert card.memory_stats()["max_split_size"] == 64 * MIB  # torch reads it once


def test_a_wrong_setting_leaves_what_stood_before_it() -> None:
    card = Allocator()
    with pytest.raises(ValueError):
        card.configure("max_split_size_mb:30,bogus:1")
    assert card.settings.max_split_size == 30 * MIB
    assert card.snapshot()["allocator_settings"]["max_split_size"] == 30 * MIB


# ---- best fit, splitting, merging


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


# ---- max_split_size


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


# ---- out of memory


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


# ---- the collector


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


# ---- expandable segments


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


# ---- other streams


def test_a_block_in_use_elsewhere_stays_active_until_the_events_are_done() -> None:
    card = Allocator()
    address = card.malloc(5 * MIB)
    card.record_stream(address, 1)
    card.record_stream(address, 2)
    card.events_done = False
    card.free(address)
    assert card.snapshot()["segments"][0]["blocks"][0]["state"] == "active_pending_free"
    assert (card.allocated, card.active, card.requested) == (0, 5 * MIB, 5 * MIB)
    assert card.malloc(5 * MIB) != address
    card.events_done = True
    assert card.active == 10 * MIB  # nobody looks before the next malloc
    assert card.malloc(4 * MIB) == address
    check(card)


def test_use_on_its_own_stream_does_not_count() -> None:
    card = Allocator()
    address = card.malloc(5 * MIB, stream=3)
    card.record_stream(address, 3)
    card.events_done = False
    card.free(address)
    assert card.active == 0


def test_emptying_the_cache_waits_for_other_streams() -> None:
    card = Allocator()
    address = card.malloc(5 * MIB)
    card.record_stream(address, 1)
    card.events_done = False
    card.free(address)
    card.empty_cache()
    assert (card.active, card.reserved) == (0, 0)
    assert stat(card, "num_sync_all_streams") == [1]


# ---- statistics over time


def test_resets() -> None:
    card = Allocator()
    address = card.malloc(5 * MIB)
    card.malloc(100)
    card.free(address)
    card.empty_cache()
    card.reset_peak()
    card.reset_accumulated()
    stats = card.memory_stats()
    for key, value in stats.items():
        if key.endswith((".allocated", ".freed")) or key.startswith("num_"):
            assert value == 0, key
        if key.endswith(".peak"):
            assert value == stats[key.replace(".peak", ".current")], key
    card.malloc(5 * MIB)
    assert stat(card, "allocation.all.allocated", "allocation.all.freed") == [1, 0]
    card.free(next(iter(card.live)))
    assert stat(card, "allocation.small_pool.freed", "allocated_bytes.small_pool.freed") == [1, 512]


# ---- snapshots and history


def test_a_snapshot_has_torchs_form() -> None:
    card = Allocator()
    address = card.malloc(3_000_000, stream=7)
    snapshot = card.snapshot()
    assert list(snapshot) == ["segments", "device_traces", "allocator_settings", "external_annotations"]
    assert snapshot["device_traces"] == [[]]
    assert snapshot["segments"] == [
        {
            "device": 0,
            "address": address,
            "total_size": 20 * MIB,
            "allocated_size": 3_000_320,
            "active_size": 3_000_320,
            "requested_size": 3_000_000,
            "stream": 7,
            "segment_type": "large",
            "segment_pool_id": (0, 0),
            "is_expandable": False,
            "frames": [],
            "blocks": [
                {
                    "address": address,
                    "size": 3_000_320,
                    "requested_size": 3_000_000,
                    "state": "active_allocated",
                    "frames": [],
                },
                {
                    "address": address + 3_000_320,
                    "size": 17_971_200,
                    "requested_size": 0,
                    "state": "inactive",
                    "frames": [],
                },
            ],
        }
    ]


def test_history_is_recorded_in_torchs_order() -> None:
    card = Allocator(GIB)
    card.record_history()
    address = card.malloc(3_000_000)
    card.record_stream(address, 1)
    card.free(address)
    with pytest.raises(OutOfMemory):
        card.malloc(2 * GIB)
    card.snapshot()
    entries = card.snapshot()["device_traces"][0]
    assert [entry["action"] for entry in entries] == [
        "segment_alloc", "alloc", "free_requested", "free_completed", "segment_free", "oom", "snapshot",
    ]  # fmt: skip
    assert [entry["size"] for entry in entries] == [20 * MIB, 3_000_000, 3_000_000, 3_000_000, 20 * MIB, 2 * GIB, 0]
    assert entries[5]["device_free"] == GIB and "addr" not in entries[5]
    assert [entry["time_us"] for entry in entries] == list(range(7))
    card.record_history(None)
    assert card.snapshot()["device_traces"] == [[]]


def test_what_is_released_goes_by_pool_stream_and_size() -> None:
    card = Allocator()
    for size, stream in ((1, 1), (1, 0), (30 * MIB, 1), (40 * MIB, 0), (20 * MIB, 0)):
        card.malloc(size, stream)
    for address in list(card.live):
        card.free(address)
    card.record_history()
    card.empty_cache()
    assert [(entry["stream"], entry["size"] // MIB) for entry in card.snapshot()["device_traces"][0]] == [
        (0, 20), (0, 40), (1, 30), (0, 2), (1, 2),
    ]  # fmt: skip


def test_history_is_bounded() -> None:
    card = Allocator()
    card.record_history(max_entries=10)
    for _ in range(100):
        card.free(card.malloc(100))
    assert [entry["time_us"] for entry in card.snapshot()["device_traces"][0]] == list(range(291, 301))


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_history_replayed_gives_the_segments(conf: str) -> None:
    card = Allocator(GIB, conf)
    card.record_history()
    held = [card.malloc(size * 300 * KIB) for size in range(1, 40)]
    for address in held[::2]:
        card.free(address)
    card.empty_cache()
    held[::2] = [card.malloc(size * MIB) for size in range(20)][:20]
    memory, blocks = 0, {}
    for entry in card.snapshot()["device_traces"][0]:
        memory += {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}.get(
            entry["action"], 0
        ) * entry["size"]
        if entry["action"] == "alloc":
            blocks[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert blocks.pop(entry["addr"]) == entry["size"]
    snapshot = card.snapshot()
    assert memory == sum(segment["total_size"] for segment in snapshot["segments"]) == card.reserved
    assert blocks == {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }  # fmt: skip


def test_torchs_own_tools_read_the_snapshot() -> None:
    viz = pytest.importorskip("torch.cuda._memory_viz")
    card = Allocator(conf="expandable_segments:True")
    card.record_history()
    card.malloc(3_000_000)
    card.free(card.malloc(100))
    snapshot = card.snapshot()
    assert "20.0MiB" in viz.segsum(snapshot)
    assert ":100.0B]" in viz.trace(snapshot)


# ---- wrong use


def test_wrong_use_is_said_in_a_sentence() -> None:
    card = Allocator()
    with pytest.raises(ValueError, match=r"malloc\(-1\): a size cannot be negative"):
        card.malloc(-1)
    address = card.malloc(10)
    card.free(address)
    for wrong in (address, 12345):
        with pytest.raises(ValueError, match=rf"free\({wrong:#x}\): nothing is allocated at this address"):
            card.free(wrong)
        with pytest.raises(ValueError, match=rf"record_stream\({wrong:#x}\): nothing is allocated"):
            card.record_stream(wrong, 1)
    with pytest.raises(ValueError, match="tie_break is 'segment' or 'address', not 'age'"):
        Allocator(tie_break="age")
    with pytest.raises(ValueError, match="total=0"):
        Allocator(0)
    with pytest.raises(TypeError):
        card.malloc(2000.5)  # type: ignore[arg-type]
    assert card.allocated == 0


def test_nothing_costs_nothing() -> None:
    card = Allocator()
    before = card.memory_stats()
    assert card.malloc(0) == 0
    card.free(0)
    card.record_stream(0, 1)
    assert card.memory_stats() == before


# ---- the module


def test_the_model_needs_no_torch() -> None:
    code = "import sys, memlab.allocator; assert 'torch' not in sys.modules; memlab.allocator.Allocator().malloc(1)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_kept_is_bounded_by_what_is_live() -> None:
    card = Allocator(conf="max_split_size_mb:64")
    for round_ in range(50):
        held = [card.malloc(1000 + 7919 * (i * round_ % 97), stream=i % 2) for i in range(200)]
        for address in held:
            card.record_stream(address, 5)
            card.free(address)
    card.malloc(1)
    card.empty_cache()
    assert len(list(all_blocks(card))) == 2 and len(card.live) == 1 and not card.events


def test_what_is_kept_does_not_grow_with_what_was_done() -> None:
    card = Allocator()

    def work() -> int:
        for _ in range(1000):
            card.free(card.malloc(5000))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = work()
        assert max(work() for _ in range(5)) < before + 10 * KIB
    finally:
        tracemalloc.stop()


def test_thousands_of_free_blocks_stay_in_order() -> None:
    card = Allocator(1 << 40)
    held = [card.malloc(512 * (1 + i % 1900)) for i in range(6000)]
    for address in held[::2]:
        card.free(address)
    (free,) = card.small_blocks.free.values()
    blocks = [(block.size, block.order, block.address) for block in free]
    assert len(free) == len(blocks) > 2000 and blocks == sorted(blocks)
    assert [block.size for block in free.largest_first()] == [size for size, _, _ in reversed(blocks)]
    check(card)
    for address in held[1::2]:
        card.free(address)
    card.empty_cache()
    assert (len(free), free.sizes, free.by_size, card.reserved) == (0, [], {}, 0)
