"""The storages' ledger that settles at every operator: on a simulated card, or to know what the peak was made of."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from memlab import origins
from memlab.allocator import Allocator, OutOfMemory
from memlab.storage_ledger import Made, StorageLedger


class CardLedger(StorageLedger):
    """A `StorageLedger` whose storages are also allocated on a card, when one is given.

    With ``births`` it remembers their source lines, with ``keep_peak`` also which of them its peak was made of.
    """

    def __init__(self, card: Allocator | None, *, keep_peak: bool = False, births: bool = False) -> None:
        super().__init__()
        self.card = card
        self._keep_peak, self._keep_births = keep_peak, births or keep_peak
        self._at_peak: tuple[int, list[Made]] = (-1, [])

    def see(self, tensor: Tensor, sequence: int, fresh: bool, op: Any = None) -> None:
        with self._lock:  # a card has one account for all threads
            if self._events:  # what was released makes room for what comes
                self.settle()
            super().see(tensor, sequence, fresh, op)

    def _enter(self, storage: torch.UntypedStorage, key: int, sequence: int, op: Any) -> None:
        nbytes = storage.nbytes()
        address = self.take(nbytes)
        made = Made(storage, self._note)
        made.key, made.bytes, made.sequence = key, nbytes, sequence
        made.kind, made.counted, made.booked = None, True, True
        made.address = address
        if self._keep_births:
            made.op, made.origin = op, origins.user_code(sys._getframe(3))
        self._live[key] = made
        self._current += nbytes
        self._peak = max(self._peak, self._current)

    def _resize(self, made: Made, nbytes: int) -> None:
        # The real allocator gives the new block before it takes the old one back (resize_bytes_cuda).
        address = self.take(nbytes)
        self.give_back(made.address)
        made.address = address
        super()._resize(made, nbytes)

    @property
    def alone(self) -> AbstractContextManager[Any]:
        """Holds off other threads while several allocations belong together."""
        return self._lock

    def take(self, nbytes: int) -> int:
        """Allocate on the card and return the address; without a card, 0.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        if self.card is None:
            return 0
        try:
            return self.card.malloc(nbytes)
        except OutOfMemory as error:
            raise torch.OutOfMemoryError(str(error)) from None

    def give_back(self, address: int) -> None:
        """Free on the card what `take` has returned."""
        if self.card is not None and address:
            self.card.free(address)

    def settle(self) -> None:
        with self._lock:
            if self._keep_peak and self._events and self._at_peak[0] < self._current == self._peak:
                self._at_peak = self._current, list(self._live.values())
            released = self._waiting()
            self._book(released)
            for made in released:
                self.give_back(made.address)

    @property
    def at_peak(self) -> list[tuple[int, str, str]]:
        self.settle()
        if not self._keep_peak:
            return []
        peak, live = self._at_peak
        made = list(self._live.values()) if peak < self._peak else live
        told = [(m.bytes, origins.op_name(m.op), origins.describe(*m.origin)) for m in made if m.counted]
        return sorted(told, key=lambda each: -each[0])
