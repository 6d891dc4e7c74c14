"""The live account of tensor storages: up when an operator creates one, down when its last reference goes.

Works as `memlab.ledger` does: a release is only appended to a deque, and settled before the next entry and reading.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor

from memlab.allocator import Allocator, OutOfMemory

_sequence_nr = torch._C._autograd._get_sequence_nr


class Made(weakref.ref[torch.UntypedStorage]):
    """A storage that was created here; it is alive as long as this weak reference is."""

    __slots__ = ("address", "bytes", "counted", "device", "key", "kind", "sequence")

    address: int
    bytes: int
    counted: bool
    device: torch.device
    key: int
    kind: str | None
    sequence: int


class Names(Protocol):
    """An account that is told the operator which a storage was saved for."""

    def name_op(self, key: int, op: Any) -> None: ...


class StorageLedger:
    """Tensor storages created here and still alive, in bytes; with a simulated ``card``, also allocated on it."""

    def __init__(self, card: Allocator | None = None) -> None:
        self.card = card
        self.last_op: Any = None
        self.waiting: list[tuple[Names, int]] = []  # keys of what was saved for the operator that runs next
        self.blind: set[str] = set()
        self._current = 0
        self._peak = 0
        self._live: dict[int, Made] = {}
        self._released: deque[Made] = deque()
        self._lock = RLock()

    def name_waiting(self, op: Any) -> None:
        """An operator is about to run: what was saved since the last one was saved for it."""
        waiting, self.waiting = self.waiting, []
        for ledger, key in waiting:
            ledger.name_op(key, op)

    def see(self, tensor: Tensor, op: Any, *, fresh: bool) -> None:
        """Account for an operator's output; ``fresh`` when it is a storage of its own. Hot path.

        Raises:
            torch.OutOfMemoryError: a simulated card cannot hold it; the text is the caching allocator's.
        """
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return
        self.last_op = op
        if self._released:
            self.settle()
        key = storage._cdata
        made = self._live.get(key)
        if made is not None:
            made.sequence = _sequence_nr()
            if not fresh and made.bytes != storage.nbytes():
                with self._lock:
                    self._resize(made, storage.nbytes())
        elif fresh:
            with self._lock:
                self._enter(storage, key)

    def _enter(self, storage: torch.UntypedStorage, key: int) -> None:
        nbytes = storage.nbytes()
        address = self._malloc(nbytes) if self.card is not None else 0
        made = Made(storage, self._released.append)
        made.key, made.bytes, made.device, made.address = key, nbytes, storage.device, address
        made.kind, made.sequence, made.counted = None, _sequence_nr(), True
        self._live[key] = made
        self._current += nbytes
        if self._current > self._peak:
            self._peak = self._current

    def _resize(self, made: Made, nbytes: int) -> None:
        # The real allocator gives the new block before it takes the old one back (resize_bytes_cuda).
        address = self._malloc(nbytes) if self.card is not None else 0
        if self.card is not None and made.address:
            self.card.free(made.address)
        if made.counted:
            self._current += nbytes - made.bytes
        self._peak = max(self._peak, self._current)
        made.bytes, made.address = nbytes, address

    def _malloc(self, nbytes: int) -> int:
        assert self.card is not None
        try:
            return self.card.malloc(nbytes)
        except OutOfMemory as error:
            raise torch.OutOfMemoryError(str(error)) from None

    def settle(self) -> None:
        """Account for the storages that were released since the last time."""
        released = self._released
        with self._lock:
            while released:
                made = released.popleft()
                if self._live.get(made.key) is made:
                    del self._live[made.key]
                if made.counted:
                    self._current -= made.bytes
                if self.card is not None and made.address:
                    self.card.free(made.address)

    def seal(self) -> None:
        """Count what is alive now as there before: as given, and no longer in `bytes`."""
        self.settle()
        for made in self._live.values():
            made.kind, made.counted = made.kind or "input", False
        self._current = self._peak = 0

    def made(self, key: int) -> Made | None:
        """Return the record of the storage with this key if it was created here and is alive."""
        if self._released:
            self.settle()
        return self._live.get(key)

    def mark(self, tensor: Tensor, kind: str) -> None:
        """Remember that ``tensor``'s storage is a parameter or a buffer."""
        made = self.made(tensor.untyped_storage()._cdata)
        if made is not None:
            made.kind = kind

    @property
    def bytes(self) -> int:
        """Bytes of storages created here and alive now."""
        self.settle()
        return self._current

    @property
    def peak(self) -> int:
        """The most that `bytes` has been."""
        self.settle()
        return self._peak

    def reset_peak(self) -> None:
        """Let `peak` start again from the present `bytes`."""
        self.settle()
        self._peak = self._current

    @property
    def sizes(self) -> list[int]:
        """Bytes of each storage alive, in the order of creation."""
        self.settle()
        return [made.bytes for made in self._live.values() if made.counted]

    def by_device(self) -> dict[str, int]:
        """Return ``{device: bytes}`` of what is alive."""
        self.settle()
        totals: Counter[str] = Counter()
        for made in self._live.values():
            if made.counted:
                totals[str(made.device)] += made.bytes
        return dict(totals)
