"""The allocator as one calls it. Begin at Allocator.malloc."""

from __future__ import annotations

from typing import Any

from memlab.allocator.grow import get_new_block
from memlab.allocator.oom import TOO_LARGE, OutOfMemory
from memlab.allocator.release import release_cached_blocks
from memlab.allocator.reuse import alloc_found_block, free_block, get_free_block
from memlab.allocator.settings import Settings
from memlab.allocator.sizes import ONE_EXBIBYTE, SMALL_SIZE, round_size
from memlab.allocator.snapshot import snapshot
from memlab.allocator.state import State
from memlab.allocator.streams import insert_events, process_events
from memlab.allocator.trace import Trace


class Allocator(State):
    """torch's native CUDACachingAllocator on a card that needs no GPU: same decisions, same numbers, same texts.

    Streams are integers; 0 is the default stream. `events_done` says whether other streams have finished their work on
    what was freed (see `record_stream`). Not in the model: CUDA graphs and private pools (MemPool), several devices,
    free-memory callbacks, and NVML's sentence in the out-of-memory text.

    Args:
        total: bytes of the card (cudaDeviceProp::totalGlobalMem).
        conf: settings as in PYTORCH_CUDA_ALLOC_CONF.
        fraction: as torch.cuda.set_per_process_memory_fraction() sets it; 1.0: not called.
        other: bytes that the allocator cannot have: CUDA context, libraries, other processes. May be changed any time.
        tie_break: which of several free blocks of one size is taken: "segment", that of the oldest segment (from
            torch 2.13 on), or "address", that with the lowest address (up to 2.12).
        sets_reserve: whether settings say what expandable segments reserve, and the out-of-memory text speaks of it
            (from torch 2.15 on).

    Raises:
        ValueError: with torch's text for wrong settings, in a sentence for other arguments.
    """

    def __init__(
        self,
        total: int = 24 << 30,
        conf: str = "",
        fraction: float = 1.0,
        other: int = 0,
        tie_break: str = "segment",
        sets_reserve: bool = False,
    ) -> None:
        if total <= 0 or other < 0:
            raise ValueError(f"a card has a positive number of bytes, and others use 0 or more: {total=}, {other=}")
        if tie_break not in ("segment", "address"):
            raise ValueError(f"tie_break is 'segment' or 'address', not {tie_break!r}")
        settings = Settings(sets_reserve=sets_reserve)
        settings.update(conf)
        super().__init__(settings, total, other, tie_break)
        self.set_memory_fraction(settings.per_process_memory_fraction)
        if fraction != 1.0:
            self.set_memory_fraction(fraction)

    def malloc(self, nbytes: int, stream: int = 0) -> int:
        """Return the address of ``nbytes`` bytes for a stream; 0 for 0 bytes, which touch nothing.

        Raises:
            OutOfMemory: the card is full, or a limit is reached; with torch's text.
            ValueError: the size is negative.
        """
        if not 0 < nbytes < ONE_EXBIBYTE:
            return _malloc_of_no_size(nbytes)
        if self.events:
            process_events(self)
        size = round_size(nbytes, self.settings)
        pool = self.small_blocks if size <= SMALL_SIZE else self.large_blocks
        block = get_free_block(self, pool, size, stream)
        if block is None:
            block = get_new_block(self, pool, size, stream, nbytes)
        return alloc_found_block(self, block, size, nbytes)

    def free(self, address: int) -> None:
        """Give an allocation back; address 0 is nothing.

        Raises:
            ValueError: nothing is allocated at this address, or not any more.
        """
        block = self.live.pop(address, None)
        if block is None:
            return _free_of_no_block(address)
        if self.trace is not None:
            self.trace.record("free_requested", address, block.requested, block.stream)
        if block.size >= self.settings.max_split_size:
            self.stats.oversize_allocations.change(-1)
        if block.stream_uses:
            insert_events(self, block)
        else:
            free_block(self, block)

    def record_stream(self, address: int, stream: int) -> None:
        """Say that another stream uses an allocation: freed, it is not handed out again before that stream is done.

        It then stays active, though no longer allocated, until `events_done` is true at a later malloc, or the cache is
        emptied. Its own stream does not count.

        Raises:
            ValueError: nothing is allocated at this address.
        """
        block = self.live.get(address)
        if block is None:
            if address != 0:
                raise ValueError(f"record_stream({address:#x}): nothing is allocated at this address")
        elif stream != block.stream:
            if block.stream_uses is None:
                block.stream_uses = set()
            block.stream_uses.add(stream)

    def empty_cache(self) -> None:
        """Wait for all streams, then return every segment with nothing in it: torch.cuda.empty_cache()."""
        release_cached_blocks(self)

    def configure(self, conf: str) -> None:
        """Change settings while running: torch.cuda.memory._set_allocator_settings().

        What is not named goes back to its default for max_split_size_mb, max_non_split_rounding_mb,
        roundup_power2_divisions and garbage_collection_threshold, and stays as it is for all else. As in torch, a new
        per_process_memory_fraction only moves the limit of throw_on_cudamalloc_oom.

        Raises:
            ValueError: with torch's text; what stood before the error is set.
        """
        self.settings.update(conf)

    def set_memory_fraction(self, fraction: float) -> None:
        """Limit the share of the card that may be reserved: torch.cuda.set_per_process_memory_fraction()."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        # std::round: a half goes up.
        self.allowed = int(fraction * self.device.total + 0.5) if fraction < 1.0 else None

    @property
    def other(self) -> int:
        """Bytes in use beside this allocator."""
        return self.device.other

    @other.setter
    def other(self, nbytes: int) -> None:
        self.device.other = nbytes

    def memory_stats(self) -> dict[str, int]:
        """Return torch.cuda.memory_stats(): its 123 flat keys, sorted."""
        return self.stats.flat()

    def reset_peak(self) -> None:
        """Let every peak be the current value: torch.cuda.reset_peak_memory_stats()."""
        self.stats.reset_peak()

    def reset_accumulated(self) -> None:
        """Let every total and counter be 0: torch.cuda.reset_accumulated_memory_stats()."""
        self.stats.reset_accumulated()

    def record_history(self, max_entries: int | None = 100_000) -> None:
        """Record the newest events for snapshot(), as torch.cuda.memory._record_memory_history(); None stops it."""
        self.trace = None if max_entries is None else Trace(max_entries)

    def snapshot(self) -> dict[str, Any]:
        """Return torch.cuda.memory._snapshot(), as plain data: segments by address, and the recorded events."""
        return snapshot(self)


def _malloc_of_no_size(nbytes: int) -> int:
    if nbytes < 0:
        raise ValueError(f"malloc({nbytes}): a size cannot be negative")
    if nbytes > 0:
        raise OutOfMemory(TOO_LARGE)
    return 0


def _free_of_no_block(address: int) -> None:
    if address != 0:
        raise ValueError(f"free({address:#x}): nothing is allocated at this address; freed before, or never handed out")
