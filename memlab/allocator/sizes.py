"""Sizes in bytes: what a request is rounded to, and how much a segment brings (c10/core/AllocatorConfig.h)."""

from __future__ import annotations

from memlab.allocator.settings import MIN_LARGE_ALLOC, Settings

MIN_BLOCK_SIZE = 512  # kMinBlockSize: every block is a multiple of it, unless power-of-two rounding is finer
SMALL_SIZE = 1 << 20  # kSmallSize: the largest block of the small pool
SMALL_BUFFER = 2 << 20  # kSmallBuffer: a segment of the small pool
ROUND_LARGE = 2 << 20  # kRoundLarge: large segments are multiples of it
ONE_EXBIBYTE = 1 << 60  # requests from here on are refused unseen


def round_size(nbytes: int, settings: Settings) -> int:
    """The size of the block for a request of nbytes (DeviceCachingAllocator::round_size)."""
    if nbytes < MIN_BLOCK_SIZE:
        return MIN_BLOCK_SIZE
    if settings.rounds_up:
        divisions = settings.divisions(nbytes)
        if divisions > 1 and nbytes > MIN_BLOCK_SIZE * divisions:
            return next_power2_division(nbytes, divisions)
    return (nbytes + MIN_BLOCK_SIZE - 1) & -MIN_BLOCK_SIZE


def next_power2_division(nbytes: int, divisions: int) -> int:
    """Round up to one of the equal steps between two powers of two (roundup_power2_next_division).

    1200 with 4 divisions: the steps between 1024 and 2048 are 256 wide, so 1280.
    """
    floor = 1 << (nbytes.bit_length() - 1)
    if nbytes == floor:
        return nbytes
    step = floor >> (divisions.bit_length() - 1)
    if step == 0:
        return floor << 1
    return (nbytes + step - 1) & -step


def allocation_size(size: int, settings: Settings) -> int:
    """The size of the segment to ask the driver for when no free block of this size is left (get_allocation_size)."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE_ALLOC:
        return settings.large_segment_size
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE
