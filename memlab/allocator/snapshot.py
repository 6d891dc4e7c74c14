"""torch.cuda.memory._snapshot() of the model (DeviceCachingAllocator::snapshot, torch/csrc/cuda/Module.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memlab.allocator.blocks import Block
from memlab.allocator.settings import INTERVALS, UNLIMITED, Settings
from memlab.allocator.state import State
from memlab.allocator.trace import Context


def snapshot(card: State) -> dict[str, Any]:
    traces = card.trace.dicts() if card.trace is not None else []
    contexts = card.trace.live if card.trace is not None else {}
    segments = sorted((_segment(head, contexts) for head in _heads(card)), key=lambda segment: segment["address"])
    if card.trace is not None:
        card.trace.record("snapshot", 0, sum(segment["active_size"] for segment in segments), 0)
    return {
        "segments": segments,
        "device_traces": [traces],
        "allocator_settings": allocator_settings(card.settings),
        "external_annotations": [],
    }


def all_blocks(card: State) -> Iterator[Block]:
    """Every mapped block: free, allocated, and waiting for events; the latter once per event."""
    yield from card.small_blocks.blocks()
    yield from card.large_blocks.blocks()
    yield from card.live.values()
    for blocks in card.events.values():
        yield from blocks


def _heads(card: State) -> list[Block]:
    """The first blocks of what snapshot() calls segments: cudaMallocs, and mapped runs of expandable ones."""
    heads = (block for block in all_blocks(card) if block.prev is None or not block.prev.mapped)
    return list({block.address: block for block in heads}.values())


def _segment(head: Block, contexts: dict[int, Context]) -> dict[str, Any]:
    blocks: list[Block] = []
    block: Block | None = head
    while block is not None and block.mapped:
        blocks.append(block)
        block = block.next
    return {
        "device": 0,
        "address": head.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": sum(block.size for block in blocks if block.allocated),
        "active_size": sum(block.size for block in blocks if block.active),
        "requested_size": sum(block.requested for block in blocks if block.active),
        "stream": head.stream,
        "segment_type": "small" if head.pool.is_small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": head.expandable is not None,
        "frames": [],
        "blocks": [_block(block, contexts.get(block.address)) for block in blocks],
    }


def _block(block: Block, context: Context | None) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": block.requested,
        "state": "active_allocated" if block.allocated else "active_pending_free" if block.active else "inactive",
        "frames": context.describe()["frames"] if context is not None else [],
    }


def allocator_settings(settings: Settings) -> dict[str, Any]:
    """snapshot()["allocator_settings"]; sizes are int64 there, so that no limit shows as -1."""

    def signed(size: int) -> int:
        return size - UNLIMITED - 1 if size > UNLIMITED >> 1 else size

    return {
        "PYTORCH_CUDA_ALLOC_CONF": settings.last,
        "expandable_segments": settings.expandable_segments,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "graph_capture_record_stream_reuse": settings.graph_capture_record_stream_reuse,
        "max_cached_size": signed(settings.pinned_max_cached_size),
        "max_round_threshold": signed(settings.pinned_max_round_threshold),
        "max_split_size": signed(settings.max_split_size),
        "pinned_num_register_threads": settings.pinned_num_register_threads,
        "pinned_use_cuda_host_register": settings.pinned_use_cuda_host_register,
        "release_lock_on_cudamalloc": settings.release_lock_on_cudamalloc,
        "roundup_power2_divisions": {str(1 << i): settings.roundup_power2_divisions[i] for i in range(INTERVALS)},
    }
