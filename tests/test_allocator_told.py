"""What the allocator's model tells: statistics over time, snapshots, history; and of wrong use."""

from __future__ import annotations

import pytest
from allocations import GIB, KIB, MIB, stat

from memlab.allocator import Allocator, OutOfMemory


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
