"""Memory that a kernel allocates for itself and frees before it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from memlab.card_ledger import CardLedger


class Scratch:
    """What one kernel has taken from the card so far."""

    def __init__(self, ledger: CardLedger) -> None:
        self._ledger = ledger
        self._held: list[int] = []

    def take(self, *sizes: int) -> list[int]:
        """Allocate each size, in bytes; it stays until `drop`, or the end of the kernel."""
        taken = [self._ledger.take(size) for size in sizes]
        self._held += taken
        return taken

    def drop(self, taken: list[int]) -> None:
        for address in taken:
            self._ledger.give_back(address)
            self._held.remove(address)

    def use(self, *sizes: int) -> None:
        """Take and drop again."""
        self.drop(self.take(*sizes))

    def copy(self, *tensors: Tensor) -> None:
        """Take what ``contiguous()`` copies, which is nothing for tensors that are."""
        self.take(*(nbytes(each) for each in tensors if not each.is_contiguous()))


@contextmanager
def scratch(ledger: CardLedger) -> Iterator[Scratch]:
    """Yield a kernel's scratch memory; all of it is free afterwards, also after an OutOfMemoryError."""
    used = Scratch(ledger)
    try:
        yield used
    finally:
        used.drop(list(used._held))


def nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
