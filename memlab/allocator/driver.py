"""The device below the allocator: it has so many bytes and hands out addresses. It stands in for the CUDA driver."""

from __future__ import annotations

ALIGNMENT = 2 << 20  # addresses are multiples of it, and at least as much stays free between two ranges
FIRST_ADDRESS = 0x7000_0000_0000


class Device:
    """Bytes of one device. Addresses are never used twice, so one names the same memory for good."""

    __slots__ = ("next_address", "other", "total", "used")

    def __init__(self, total: int, other: int) -> None:
        self.total = total
        self.other = other  # what is not the allocator's: the CUDA context, libraries, other processes
        self.used = 0
        self.next_address = FIRST_ADDRESS

    @property
    def free(self) -> int:
        """Bytes that nobody uses: cudaMemGetInfo's first number."""
        return max(self.total - self.other - self.used, 0)

    def take(self, nbytes: int) -> bool:
        """Use nbytes of memory (cudaMalloc, cuMemCreate); return False, and use nothing, when they are not there."""
        if nbytes > self.free:
            return False
        self.used += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Stop using nbytes of memory (cudaFree, cuMemRelease)."""
        self.used -= nbytes

    def reserve(self, nbytes: int) -> int:
        """Return the first of nbytes addresses, which have no memory of their own (cuMemAddressReserve)."""
        address = self.next_address
        self.next_address += -(-nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        return address
