"""What holds for every sequence of calls: the invariants, and a naive best fit that looks at snapshots alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memlab.allocator import Allocator, OutOfMemory, check
from memlab.allocator.settings import Settings
from memlab.allocator.sizes import MIN_BLOCK_SIZE, SMALL_SIZE, allocation_size, round_size

MIB, GIB = 1 << 20, 1 << 30
CONFS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:32,max_non_split_rounding_mb:24",
    "roundup_power2_divisions:[1:4,8:2,>:8]",
    "garbage_collection_threshold:0.4",
    "large_segment_size_mb:12,expandable_segments:True,garbage_collection_threshold:0.3",
    "throw_on_cudamalloc_oom:True,per_process_memory_fraction:0.7,max_split_size_mb:64",
)
SIZES = st.one_of(
    st.integers(1, 2048),
    st.integers(1, 40 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 10 * MIB, 10 * MIB + 1, 19 * MIB, 64 * MIB, 200 * MIB]),
)
STREAMS = st.integers(0, 2)


class AnyCalls(RuleBasedStateMachine):
    """Every public call in any order, on a card small enough to run out of memory."""

    @initialize(conf=st.sampled_from(CONFS), fraction=st.sampled_from([1.0, 0.5]), tie_break=st.booleans())
    def start(self, conf: str, fraction: float, tie_break: bool) -> None:
        self.card = Allocator(GIB // 2, conf, fraction, 5 * MIB, "segment" if tie_break else "address")
        self.live: dict[int, int] = {}

    @rule(nbytes=SIZES, stream=STREAMS)
    def malloc(self, nbytes: int, stream: int) -> None:
        before = self.card.memory_stats()
        try:
            address = self.card.malloc(nbytes, stream)
        except OutOfMemory as error:
            assert str(error).startswith("CUDA out of memory. ")
            after = self.card.memory_stats()
            refused = ("num_ooms", "num_oom_rejections")
            assert sum(after[key] - before[key] for key in refused) >= 1
            assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
            return
        assert address % MIN_BLOCK_SIZE == 0
        for other, size in self.live.items():
            assert address + nbytes <= other or other + size <= address, "two allocations overlap"
        self.live[address] = nbytes

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.live)))
        self.card.free(address)
        del self.live[address]
        with pytest.raises(ValueError):
            self.card.free(address)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=STREAMS)
    def record_stream(self, data: st.DataObject, stream: int) -> None:
        self.card.record_stream(data.draw(st.sampled_from(sorted(self.live))), stream)

    @rule(done=st.booleans())
    def events(self, done: bool) -> None:
        self.card.events_done = done

    @rule()
    def empty_cache(self) -> None:
        self.card.empty_cache()
        for segment in self.card.snapshot()["segments"]:
            assert segment["active_size"] > 0 or segment["is_expandable"], "a whole free segment was kept"

    @rule()
    def reset_peak(self) -> None:
        self.card.reset_peak()
        assert (self.card.peak_allocated, self.card.peak_reserved) == (self.card.allocated, self.card.reserved)

    @rule()
    def reset_accumulated(self) -> None:
        self.card.reset_accumulated()

    @rule(conf=st.sampled_from(CONFS))
    def configure(self, conf: str) -> None:
        self.card.configure(conf)

    @rule(nbytes=st.integers(0, 64 * MIB))
    def others_come_and_go(self, nbytes: int) -> None:
        self.card.other = nbytes

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "card"):
            check(self.card)
            assert self.card.live.keys() == self.live.keys()
            assert self.card.allocated >= sum(self.live.values())


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def naive_best_fit(card: Allocator, nbytes: int, stream: int) -> tuple[int | None, bool]:
    """Return the address that best fit takes, None for a new segment, and whether the block is split there."""
    size = round_size(nbytes, card.settings)
    kind = "small" if size <= SMALL_SIZE else "large"
    fits = [
        (block["size"], block["address"])  # in the model, addresses ascend with the age of segments
        for segment in card.snapshot()["segments"]
        for block in segment["blocks"]
        if (segment["segment_type"], segment["stream"]) == (kind, stream)
        and block["state"] == "inactive"
        and block["size"] >= size
    ]
    if not fits:
        return None, split_leaves_rest(kind, allocation_size(size, card.settings) - size)
    found = min(fits)
    return found[1], split_leaves_rest(kind, found[0] - size)


def split_leaves_rest(kind: str, rest: int) -> bool:
    return rest >= 512 if kind == "small" else rest > MIB


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SIZES, STREAMS, st.integers(0, 1 << 20)), min_size=5, max_size=60))
def test_malloc_is_best_fit(calls: list[tuple[int, int, int]]) -> None:
    card, live = Allocator(1 << 45), []
    for nbytes, stream, pick in calls:
        expected, splits = naive_best_fit(card, nbytes, stream)
        segments = card.memory_stats()["segment.all.allocated"]
        before = card.allocated
        address = card.malloc(nbytes, stream)
        live.append(address)
        new = card.memory_stats()["segment.all.allocated"] - segments
        assert (new, address if expected else None) == ((0, expected) if expected else (1, None))
        size = round_size(nbytes, card.settings)
        assert card.allocated - before == size if splits else card.allocated - before >= size
        if pick % 3:
            card.free(live.pop(pick % len(live)))


def in_use(card: Allocator) -> dict[str, int]:
    """The current values of what malloc raises, from the blocks alone."""
    waiting = {id(block): block for queue in card.events.values() for block in queue}
    pools = {"small_pool": (card.small_blocks,), "large_pool": (card.large_blocks,)}
    pools["all"] = pools["small_pool"] + pools["large_pool"]
    found = {}
    for scope, members in pools.items():
        allocated = [block for block in card.live.values() if block.pool in members]
        active = allocated + [block for block in waiting.values() if block.pool in members]
        found |= {
            f"allocation.{scope}": len(allocated),
            f"allocated_bytes.{scope}": sum(block.size for block in allocated),
            f"active.{scope}": len(active),
            f"active_bytes.{scope}": sum(block.size for block in active),
            f"requested_bytes.{scope}": sum(block.requested for block in active),
        }
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), SIZES, STREAMS, st.integers(0, 1 << 20)), max_size=80))
def test_peaks_are_the_highest_of_all_moments(calls: list[tuple[int, int, int, int]]) -> None:
    card, live = Allocator(1 << 40), []
    peaks = in_use(card)
    for kind, nbytes, stream, pick in calls:
        if kind < 5 or not live:
            live.append(card.malloc(nbytes, stream))
        elif kind < 8:
            card.free(live.pop(pick % len(live)))
        elif kind == 8:
            card.record_stream(live[pick % len(live)], 7)
            card.events_done = bool(pick % 2)
        elif pick % 4 == 0:
            card.reset_peak()
            peaks = in_use(card)
        peaks = {key: max(peaks[key], value) for key, value in in_use(card).items()}
    stats = card.memory_stats()
    assert {key: stats[f"{key}.peak"] for key in peaks} == peaks
    assert card.peak_allocated == peaks["allocated_bytes.all"]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1 << 50), st.sampled_from(["", "1", "2", "4", "8", "16", "[1:2,16:8,>:4]"]))
def test_rounding_never_loses_a_byte_and_wastes_less_than_a_step(nbytes: int, divisions: str) -> None:
    rounding = Settings()
    rounding.update(f"roundup_power2_divisions:{divisions}" if divisions else "")
    size = round_size(nbytes, rounding)
    assert size >= nbytes and size % MIN_BLOCK_SIZE == 0
    steps = max(rounding.divisions(nbytes), 1)
    floor = 1 << (nbytes.bit_length() - 1)
    assert size - nbytes < max(512, floor // steps if steps > 1 else 0)
    assert round_size(size, rounding) == size or rounding.divisions(size) != rounding.divisions(nbytes)
    segment = allocation_size(size, rounding)
    assert segment >= size and segment % (2 * MIB) == 0


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("max_split_size_mb:20,[]>expandable_segments True:0.5:roundup"), max_size=40))
def test_any_settings_string_is_read_or_refused_in_words(conf: str) -> None:
    try:
        Settings().update(conf)
    except ValueError as error:
        assert str(error)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SIZES, STREAMS), min_size=1, max_size=40), st.sampled_from(CONFS))
def test_all_freed_and_emptied_is_all_returned(sizes: list[tuple[int, int]], conf: str) -> None:
    card = Allocator(1 << 40, conf)
    addresses = [card.malloc(nbytes, stream) for nbytes, stream in sizes]
    for address in sorted(addresses, key=lambda address: address % 1021):
        card.record_stream(address, 9)
        card.free(address)
    card.empty_cache()
    assert (card.allocated, card.active, card.requested, card.reserved, card.device.used) == (0, 0, 0, 0, 0)
    assert card.snapshot()["segments"] == []
    stats = card.memory_stats()
    for key, value in stats.items():
        if key.endswith(".freed"):
            assert value == stats[key.replace(".freed", ".allocated")], key
