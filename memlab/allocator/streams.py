"""A block that another stream may still use stays active after free, until the events of those streams are done.

Where several streams finish at once, torch goes through them in the order of a hash table, the model in the order of
their first event. The same blocks become free; only inactive_split peaks and the order of recorded events may differ.
"""

from __future__ import annotations

from collections import deque

from memlab.allocator.blocks import Block
from memlab.allocator.reuse import free_block
from memlab.allocator.state import State


def insert_events(card: State, block: Block) -> None:
    """One event per stream that used the block (DeviceCachingAllocator::insert_events)."""
    assert block.stream_uses
    for stream in block.stream_uses:
        card.events.setdefault(stream, deque()).append(block)
        block.event_count += 1
    block.stream_uses = None
    block.free_list.stats.wait(1, block.size)


def process_events(card: State) -> None:
    """Before each malloc: what no stream uses any more becomes free, if the events are done."""
    if card.events_done:
        finish_events(card)


def synchronize_and_free_events(card: State) -> None:
    """Wait for all events."""
    card.stats.num_sync_all_streams += 1
    finish_events(card)


def finish_events(card: State) -> None:
    for stream in list(card.events):
        for block in card.events.pop(stream):
            block.event_count -= 1
            if block.event_count == 0:
                size = block.size
                free_block(card, block)
                block.free_list.stats.wait(-1, -size)
