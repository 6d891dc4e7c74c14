"""The live account of tensor storages: up when an operator creates one, down when its last reference goes.

A creation and a release are only appended to a deque, and settled, in their order, before the next reading.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from threading import RLock
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from memlab import node_names
from memlab.allocator import Allocator
from memlab.operators import CLONE, Here
from memlab.outputs import FRESH, is_fresh

MANY = 256  # events that may wait; more of these objects would let Python collect garbage more often


class Made(weakref.ref[torch.UntypedStorage]):
    """A storage that was created here; it is alive as long as this weak reference is."""

    __slots__ = ("address", "booked", "bytes", "counted", "key", "kind", "op", "origin", "sequence")

    address: int  # on the card
    booked: bool  # its creation is in the account; what is still to come is its end
    bytes: int
    counted: bool
    key: int
    kind: str | None
    op: Any
    origin: tuple[CodeType | None, int]
    sequence: int


class StorageLedger:
    """Tensor storages created here and still alive, in bytes."""

    card: Allocator | None = None

    def __init__(self) -> None:
        self.here = Here()
        self.recording = True
        self.blind: set[str] = set()
        self._current = 0
        self._peak = 0
        self._live: dict[int, Made] = {}  # and some that are dead, until they are settled
        self._events: deque[Made] = deque()  # each storage when it is created, and again when it is released
        self._note = self._events.append  # atomic; a finalizer that waited for a lock could wait for ever
        self._lock = RLock()

    def runs(self, operator: Any, sequence: int, grad: bool) -> None:
        """An operator is about to run; ``sequence`` is the number of the next node. Hot path."""
        if node_names.watched:
            node_names.learn()
        self.here.operators.runs(operator, sequence, grad)

    def has_run(self, operator: Any, args: tuple[Any, ...], out: Any, sequence: int, grad: bool, outputs: int) -> None:
        """It has returned ``out``; ``outputs`` is what `outputs_of` says of it, and not VIEW. Hot path."""
        operators = self.here.operators
        if grad and sequence != operators.sequence and operator is not CLONE:  # a node was made since the last one
            operators.sequence = sequence
            if id(operator) not in node_names.done:
                node_names.watch(operator, out, sequence)
        if outputs == FRESH and isinstance(out, Tensor):
            self.see(out, sequence, True, operator)
            return
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.see(each, sequence, is_fresh(each, outputs, args), operator)

    def see(self, tensor: Tensor, sequence: int, fresh: bool, op: Any = None) -> None:
        """Account for an output of the operator ``op``; ``fresh`` when it is a storage of its own. Hot path.

        Raises:
            torch.OutOfMemoryError: a simulated card cannot hold it; the text is the caching allocator's.
        """
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return
        key = storage._cdata
        made = self._live.get(key)
        if made is not None:
            if made() is not None:
                made.sequence = sequence
                if not fresh and made.bytes != storage.nbytes():
                    self._resize(made, storage.nbytes())
                return
            self._live.pop(key, None)  # its address is used again
        if fresh:
            self._enter(storage, key, sequence, op)

    def _enter(self, storage: torch.UntypedStorage, key: int, sequence: int, op: Any) -> None:
        made = Made(storage, self._note)
        made.key, made.bytes, made.sequence = key, storage.nbytes(), sequence
        made.kind, made.counted, made.booked = None, True, False
        self._live[key] = made
        self._note(made)
        if len(self._events) > MANY:
            self.settle()

    def _resize(self, made: Made, nbytes: int) -> None:
        with self._lock:
            self.settle()
            if made.counted:
                self._current += nbytes - made.bytes
                self._peak = max(self._peak, self._current)
            made.bytes = nbytes

    def settle(self) -> None:
        """Account for what was created and released since the last time, in that order."""
        with self._lock:
            self._book(self._waiting())

    def _waiting(self) -> list[Made]:
        take = self._events.popleft
        return [take() for _ in range(len(self._events))]

    def _book(self, events: list[Made]) -> None:
        live, current, peak = self._live, self._current, self._peak
        for made in events:
            if not made.booked:
                made.booked = True
                current += made.bytes
                if current > peak:
                    peak = current
                continue
            if live.get(made.key) is made:
                del live[made.key]
            if made.counted:
                current -= made.bytes
        self._current, self._peak = current, peak

    def seal(self) -> None:
        """Count what is alive now as there before: as given, and no longer in `bytes`."""
        self.settle()
        for made in self._live.values():
            made.kind, made.counted = made.kind or "input", False
        self._current = self._peak = 0

    def made(self, key: int) -> Made | None:
        """Return the record of the storage with this key if it was created here and is alive. Hot path."""
        made = self._live.get(key)
        return None if made is None or made() is None else made

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
        """What `peak` was made of, largest first: (bytes, operator, source line); empty where it is not kept."""
        return []

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
