"""The allocator model against what torch's own allocator answered, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from allocations import GIB, KIB, MIB, stat

from memlab.allocator import Allocator, OutOfMemory, check
from memlab.allocator.snapshot import all_blocks

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
