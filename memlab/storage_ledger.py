"""The live account of tensor storages: up when an operator creates one, down when its last reference goes.

Works as `memlab.ledger` does: a release is only appended to a deque, and settled before the next entry and reading.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, deque
from threading import RLock
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor

from memlab import origins
from memlab.allocator import Allocator, OutOfMemory

CLONE = torch.ops.aten.clone.default


class Made(weakref.ref[torch.UntypedStorage]):
    """A storage that was created here; it is alive as long as this weak reference is."""

    __slots__ = ("address", "bytes", "counted", "key", "kind", "origin", "sequence")

    address: int
    bytes: int
    counted: bool
    key: int
    kind: str | None
    origin: tuple[Any, CodeType | None, int]
    sequence: int


class Names(Protocol):
    """An account that is told the operator which a tensor was saved for."""

    def name_op(self, token: int, op: Any) -> None: ...


class StorageLedger:
    """Tensor storages created here and still alive, in bytes; with a simulated ``card``, also allocated on it.

    With ``keep_peak`` it remembers which storages its peak was made of, and their source lines.
    """

    def __init__(self, card: Allocator | None = None, *, keep_peak: bool = False) -> None:
        self.card = card
        self._keep_peak = keep_peak
        self._at_peak: tuple[int, list[Made]] = (-1, [])
        self.running: Any = None  # the operator
        self.last_op: Any = None  # but no clone; None, if it ran with autograd off
        self.last_sequence = -1
        self.sequence = -1  # how many nodes there were at the last operator
        self.waiting: list[tuple[Names, int]] = []  # what was saved for the operator that runs next
        self._waits_at = -1
        self.blind: set[str] = set()
        self._current = 0
        self._peak = 0
        self._live: dict[int, Made] = {}
        self._released: deque[Made] = deque()
        self._lock = RLock()

    def name_waiting(self, op: Any, sequence: int) -> None:
        """An operator is about to run (None: with autograd off): what waits was saved for it. Hot path.

        A node takes the next sequence number when it is made, saves its inputs, lets its operator run, saves outputs.
        So what was saved since the last operator, at the number that holds now, was saved for this one. With autograd
        off it was not: a custom Function of C++ saved it, and runs its own operators.
        """
        if op is CLONE:  # runs between, where an in-place operator saves what it overwrites; it saves nothing itself
            self._waits_at = sequence
            return
        waiting, self.waiting = self.waiting, []
        if op is not None and sequence == self._waits_at:
            for ledger, token in waiting:
                ledger.name_op(token, op)

    def op_that_ran(self, sequence: int) -> Any:
        """Return the operator that has run since the newest node was made, None before it has. Hot path."""
        return self.last_op if self.last_sequence == sequence else None

    def wait(self, ledger: Names, token: int, sequence: int) -> None:
        """Let the operator that runs next tell ``ledger`` its name. Hot path."""
        if self.last_sequence == sequence:
            return  # others ran since the node was made: a custom Function of C++ saves it
        if self._waits_at != sequence:
            self.waiting.clear()
            self._waits_at = sequence
        self.waiting.append((ledger, token))

    def see(self, tensor: Tensor, sequence: int, fresh: bool) -> None:
        """Account for an operator's output; ``fresh`` when it is a storage of its own. Hot path.

        Raises:
            torch.OutOfMemoryError: a simulated card cannot hold it; the text is the caching allocator's.
        """
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return
        if self._released:
            self.settle()
        key = storage._cdata
        made = self._live.get(key)
        if made is not None:
            made.sequence = sequence
            if not fresh and made.bytes != storage.nbytes():
                with self._lock:
                    self._resize(made, storage.nbytes())
        elif fresh:
            with self._lock:
                self._enter(storage, key, sequence)

    def _enter(self, storage: torch.UntypedStorage, key: int, sequence: int) -> None:
        nbytes = storage.nbytes()
        address = self.take(nbytes)
        made = Made(storage, self._released.append)
        made.key, made.bytes, made.address = key, nbytes, address
        made.kind, made.sequence, made.counted = None, sequence, True
        if self._keep_peak:
            made.origin = (self.running, *origins.user_code(sys._getframe(3)))
        self._live[key] = made
        self._current += nbytes
        if self._current > self._peak:
            self._peak = self._current

    def _resize(self, made: Made, nbytes: int) -> None:
        # The real allocator gives the new block before it takes the old one back (resize_bytes_cuda).
        address = self.take(nbytes)
        self.give_back(made.address)
        if made.counted:
            self._current += nbytes - made.bytes
        self._peak = max(self._peak, self._current)
        made.bytes, made.address = nbytes, address

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
        """Account for the storages that were released since the last time."""
        released = self._released
        with self._lock:
            if self._keep_peak and released and self._at_peak[0] < self._current == self._peak:
                self._at_peak = self._current, list(self._live.values())
            while released:
                made = released.popleft()
                if self._live.get(made.key) is made:
                    del self._live[made.key]
                if made.counted:
                    self._current -= made.bytes
                self.give_back(made.address)

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
    def at_peak(self) -> list[tuple[int, str, str]]:
        """What `peak` was made of, largest first: (bytes, operator, source line); empty unless ``keep_peak``."""
        self.settle()
        if not self._keep_peak:
            return []
        peak, live = self._at_peak
        made = list(self._live.values()) if peak < self._peak else live
        told = [(m.bytes, origins.op_name(m.origin[0]), origins.describe(*m.origin[1:])) for m in made if m.counted]
        return sorted(told, key=lambda each: -each[0])

    @property
    def sizes(self) -> list[int]:
        """Bytes of each storage alive, in the order of creation."""
        self.settle()
        return [made.bytes for made in self._live.values() if made.counted]

    def live(self) -> dict[int, int]:
        """Return ``{storage key: bytes}`` of what is alive."""
        self.settle()
        return {key: made.bytes for key, made in list(self._live.items()) if made.counted}

    def by_device(self) -> dict[str, int]:
        """Return ``{device: bytes}`` of what is alive."""
        self.settle()
        totals: Counter[str] = Counter()
        for made in list(self._live.values()):
            storage = made()
            if made.counted and storage is not None:
                totals[str(storage.device)] += made.bytes
        return dict(totals)
