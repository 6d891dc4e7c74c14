"""How the allocator's model reads settings and rounds sizes by them: as torch, or with torch's text."""

from __future__ import annotations

import pytest
from allocations import GIB, MIB

from memlab.allocator import Allocator
from memlab.allocator.settings import UNLIMITED, Settings
from memlab.allocator.sizes import allocation_size, next_power2_division, round_size

OPTION = "CachingAllocator option"


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


KEY, BY_CLASS = "expandable_segments_reserve", "expandable_segments_reserve_by_class"


@pytest.mark.parametrize(
    ("value", "expected"),
    [  # as torch 2.15 reads them: a share of the card, or GiB; what it only warns of leaves the 3 GiB as they were
        ("0.5G", GIB // 2),
        ("5g", 5 * GIB),
        (" 0.5 ", 40 * GIB),
        ("+1", 80 * GIB),
        ("1e3G", 90 * GIB),
        ("1e20", 90 * GIB),
        (".25", 20 * GIB),
        *[(wrong, 3 * GIB) for wrong in ("x", "-1", "0", "inf", "nan", "1.125G2", "0x10", "1e400", "5GG", "40M", "G")],
    ],
)
def test_what_expandable_segments_reserve_is_read_as_torch_2_15_does(value: str, expected: int) -> None:
    settings = Settings(sets_reserve=True)
    settings.update(f"{KEY}:3G")
    settings.update(f"{KEY}:{value},{BY_CLASS}:[a:0.5,b:x]")
    settings.update("max_split_size_mb:30")
    assert settings.reserve_of(80 * GIB) == expected


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        (KEY, "Index out of bounds in ConfigTokenizer"),
        (f"{KEY}:", "Index out of bounds in ConfigTokenizer"),
        (f"{KEY}:[1]", "Unrecognized key ']' in CUDA allocator config."),
        (f"{KEY}=0.5", f"Unrecognized key '{KEY}=0.5' in Accelerator allocator config."),
        (f"{BY_CLASS}:0.5", "Index out of bounds in ConfigTokenizer"),
        (f"{BY_CLASS}:[a:0.5", "Expected closing bracket ']' in ConfigTokenizer but reached end of config"),
        (f"{BY_CLASS}:[a]", "Index out of bounds in ConfigTokenizer"),
        (f"{BY_CLASS}:[:0.5]", "Index out of bounds in ConfigTokenizer"),
        (f"{BY_CLASS}:[a:0.5 b:0.5]", "Index out of bounds in ConfigTokenizer"),
        (f"{BY_CLASS}:[a:0.5,,b:0.5]", "Index out of bounds in ConfigTokenizer"),
        (f"{BY_CLASS}:[],max_split_size_mb:10", f"{OPTION} max_split_size_mb too small, must be >= 20"),
    ],
)
def test_wrong_reserves_are_refused_with_torchs_text(conf: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Allocator(conf=conf, sets_reserve=True)
    assert str(caught.value) == text


@pytest.mark.parametrize("key", [KEY, BY_CLASS])
def test_before_2_15_there_is_no_such_setting(key: str) -> None:
    with pytest.raises(ValueError, match=f"Unrecognized key '{key}' in Accelerator allocator config."):
        Allocator(conf=f"{key}:0.5")


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
