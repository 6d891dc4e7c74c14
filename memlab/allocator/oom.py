"""What torch says when the memory is gone. The texts are torch's to the letter, its own byte format included."""

from __future__ import annotations

from memlab.allocator.state import State


class OutOfMemory(RuntimeError):
    """The card is full: torch.OutOfMemoryError's text without NVML's sentence about this process."""


HINT = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid"
    " fragmentation.  See documentation for Memory Management "
    " (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)
SETS_RESERVE = (
    " expandable_segments is enabled. If instead the process is running out of virtual address space (VSZ), expandable"
    " segments may be over-reserving VA (each segment reserves ~9/8 of device memory, times the number of streams);"
    " reduce it via PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve / expandable_segments_reserve_by_class."
)
TOO_LARGE = "CUDA out of memory. Tried to allocate more than 1EB memory."


def format_size(nbytes: int) -> str:
    """c10::CachingAllocator::format_size: a unit is used up to and including one of the next."""
    if nbytes <= 1 << 10:
        return f"{nbytes} bytes"
    if nbytes <= 1 << 20:
        return f"{nbytes / (1 << 10):.2f} KiB"
    if nbytes <= 1 << 30:
        return f"{nbytes / (1 << 20):.2f} MiB"
    return f"{nbytes / (1 << 30):.2f} GiB"


def out_of_memory(card: State, allocation: int) -> OutOfMemory:
    """The end of DeviceCachingAllocator::malloc. allocation is the size of the segment that was not to be had."""
    allowed = "" if card.allowed is None else f"{format_size(card.allowed)} allowed; "
    allocated, reserved = card.allocated, card.reserved
    return OutOfMemory(
        f"CUDA out of memory. Tried to allocate {format_size(allocation)}. "
        f"GPU 0 has a total capacity of {format_size(card.device.total)} "
        f"of which {format_size(card.device.free)} is free. {allowed}"
        f"Of the allocated memory {format_size(allocated)} is allocated by PyTorch, "
        f"and {format_size(reserved - allocated)} is reserved by PyTorch but unallocated.{_hint(card, allocation)}"
    )


def _hint(card: State, allocation: int) -> str:
    settings, total = card.settings, card.device.total
    if not (settings.sets_reserve and settings.expandable_segments):
        return HINT
    reserve = settings.reserve_of(total)
    if not reserve < allocation <= total:
        return SETS_RESERVE
    return (
        f" This allocation exceeds the expandable-segment reserve of {format_size(reserve)} for this stream,"
        " and a single allocation cannot span expandable segments. Raise PYTORCH_CUDA_ALLOC_CONF"
        " expandable_segments_reserve or expandable_segments_reserve_by_class (or unset it)"
        f" so that a segment is at least {format_size(allocation)}."
    )


def rejected(nbytes: int) -> OutOfMemory:
    """throw_on_cudamalloc_oom said no. nbytes is the request, not rounded."""
    return OutOfMemory(
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed "
        f"per_process_memory_fraction limit. Requested size: {format_size(nbytes)}"
    )
