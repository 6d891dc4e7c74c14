"""Blocks that other streams use."""

from __future__ import annotations

from allocations import MIB, stat

from memlab.allocator import Allocator, check


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
