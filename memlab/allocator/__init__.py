"""The native CUDACachingAllocator of torch 2.13 to 2.15 as an exact model: pure Python, no torch, no GPU.

    card = Allocator(total=24 << 30)
    address = card.malloc(20_000_000)
    card.memory_stats()["allocated_bytes.all.current"]      # 20_971_520: the rest was not worth a split

Read it to learn how the allocator works; the functions have torch's names (c10/cuda/CUDACachingAllocator.cpp).

    card.py        malloc, free and the other calls, step by step; begin here
    sizes.py       what a size is rounded to, which pool, how large a segment
    reuse.py       best fit among the free blocks, splitting, merging
    grow.py        a new segment: limits, tries, retries, out of memory
    expandable.py  expandable_segments
    release.py     empty_cache, the release before a retry, garbage collection
    streams.py     record_stream
    settings.py    PYTORCH_CUDA_ALLOC_CONF
    stats.py       memory_stats()
    snapshot.py, trace.py, oom.py   what the outside sees: snapshots, history, error texts
    blocks.py, freelist.py, state.py, driver.py   the data: blocks and pools, the order of best fit, the device
    check.py       what always holds
"""

from memlab.allocator.card import Allocator
from memlab.allocator.check import check
from memlab.allocator.oom import OutOfMemory

__all__ = ["Allocator", "OutOfMemory", "check"]
