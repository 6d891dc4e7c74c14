"""Memory that a kernel allocates for itself and frees before it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from memlab.as_cuda.gpu import Gpu
from memlab.card_ledger import CardLedger


class Scratch:
    """What one kernel has taken from the card so far; ``highest`` is the most that was allocated on it, in bytes."""

    def __init__(self, ledger: CardLedger) -> None:
        self._ledger = ledger
        self._held: list[int] = []
        self.highest = self._allocated()

    def take(self, *sizes: int) -> list[int]:
        """Allocate each size, in bytes; it stays until `drop`, or the end of the kernel."""
        taken = [self._ledger.take(size) for size in sizes]
        self._held += taken
        self.highest = max(self.highest, self._allocated())
        return taken

    def drop(self, taken: list[int]) -> None:
        for address in reversed(taken):  # as C++ destroys what a function holds
            self._ledger.give_back(address)
            self._held.remove(address)

    def use(self, *sizes: int) -> None:
        """Take and drop again."""
        self.drop(self.take(*sizes))

    def _allocated(self) -> int:
        return 0 if self._ledger.card is None else self._ledger.card.allocated

    def copy(self, *tensors: Tensor) -> None:
        """Take what ``contiguous()`` copies, which is nothing for tensors that are."""
        self.take(*(nbytes(each) for each in tensors if not each.is_contiguous()))


Kernel = Callable[[Scratch, Gpu, Sequence[Any], Any], None]
"""What an operator's kernel allocates inside, given its arguments in the order of its schema, and its outputs."""


def in_order(operator: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Sequence[Any]:
    """Return the arguments in the order of the operator's schema, with its defaults where others come by keyword."""
    if not kwargs:
        return args
    rest = operator._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(each.name, each.default_value) for each in rest)]


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
