"""The live account of saved tensors: up when one is packed, down when it is released.

Nothing here installs a hook; `memlab.hooks` feeds this account. It keeps no tensor and no storage alive. Releases can
happen in any thread and in the middle of a garbage collection, so they are only appended to a deque (atomic) and
settled before the next entry and before every reading: a peak can only rise at an entry, so it is exact all the same.
A release takes no lock: a finalizer that waited for one could wait for ever.

There may be a million saved tensors, so each has but a number here, and no object of its own that Python's garbage
collector would have to visit: the storage's key, and with it the step and which `Origin` it shares.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from memlab import origins
from memlab.lines import GIVEN, Line, Origin, group_lines
from memlab.storage_ledger import Made, StorageLedger

NO_CODE = (None, -1)
_STEP_BITS = 32  # an entry is its step above these bits and its origin's index below
_INDEX_MASK = (1 << _STEP_BITS) - 1

_storage_use_count = torch._C._storage_Use_Count
_sequence_nr = torch._C._autograd._get_sequence_nr


class SavedLedger:
    """Storages that autograd keeps for backward, each counted once however many nodes or views save it.

    ``storages`` is the account of what was created meanwhile; with it a storage that it does not know was there before
    and is an input. Without it, a leaf counts as an input when Python code holds it.
    """

    def __init__(self, storages: StorageLedger | None = None, *, where: bool = True) -> None:
        self.recording = True
        self.step = 0
        self.blind: set[str] = set()
        self._storages = storages
        self._where = where
        self._current = 0
        self._peak = 0
        self._entries: dict[int, int] = {}
        self._more: dict[int, int] = {}  # how many saved tensors beyond the first share a storage
        self._origins: list[Origin] = []
        self._counted: list[int] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._named: dict[tuple[int, int], int] = {}
        self._released: deque[int] = deque()
        self._lock = RLock()  # several threads may save and read; a finalizer that runs inside may save, too
        self.release = self._released.append  # called once for each key that `add` has returned

    def add(self, tensor: Tensor, kind: str | None = None) -> int | None:
        """Count one more saved tensor; whoever keeps it calls ``release`` with the key when it goes. Hot path."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and opaque layouts have no storage of their own
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return None
        key: int = storage._cdata
        with self._lock:
            if self._released:
                self._settle()
            if key in self._entries:
                self._more[key] = self._more.get(key, 0) + 1
            else:
                self._enter(tensor, key, storage.nbytes(), kind)
        return key

    def _enter(self, tensor: Tensor, key: int, nbytes: int, kind: str | None) -> None:
        op = None
        if kind is None:
            kind, op = self._kind(tensor, key)
        code, instruction = origins.user_code(sys._getframe(2)) if self._where else NO_CODE
        # An operator's hash is Python code, and equal code may stand in two files: both are told apart by object.
        alike = (nbytes, kind, tensor.shape, tensor.dtype, tensor.device, id(op), id(code), instruction)
        index = self._known.get(alike)
        if index is None:
            origin = Origin(nbytes, kind, tensor.shape, tensor.dtype, tensor.device, op, code, instruction)
            index = self._known[alike] = self._new_index(origin)
        self._entries[key] = index | self.step << _STEP_BITS if self.step else index
        self._current += self._counted[index]
        if self._current > self._peak:
            self._peak = self._current

    def _new_index(self, origin: Origin) -> int:
        self._origins.append(origin)
        self._counted.append(origin.counted)
        return len(self._origins) - 1

    def name_op(self, key: int, op: Any) -> None:
        """Say which operator the storage with this key was saved for, now that it runs. Hot path."""
        entry = self._entries.get(key)
        if entry is None:
            return
        unnamed = entry & _INDEX_MASK
        index = self._named.get((unnamed, id(op)))
        if index is None:
            origin = self._origins[unnamed]
            if origin.op is not None:  # another storage has the address of one that went before its operator ran
                return
            index = self._named[unnamed, id(op)] = self._new_index(dataclasses.replace(origin, op=op))
        self._entries[key] = entry - unnamed + index

    def _kind(self, tensor: Tensor, key: int) -> tuple[str, Any]:
        """Return the class of the storage, and the operator that it is saved for where that has run already."""
        # tensor.grad_fn is not asked: from torch 2.13 on, a node that Python has seen is freed recursively, so a chain
        # of 50,000 such nodes overflows the stack when it goes.
        storages = self._storages
        made = None if storages is None else storages.made(key)
        just_made = made is not None and made.sequence == _sequence_nr()
        if made is not None and made.kind is not None:
            kind = made.kind
        elif tensor.is_leaf:
            kind = "parameter" if _is_parameter(tensor) else self._leaf_kind(tensor, key, made)
        elif tensor._is_view() and (base := tensor._base) is not None and (base.is_leaf or _is_parameter(base)):
            kind = self._view_kind(base, made)
        elif made is None and storages is not None:
            kind = "activation" if _is_compiled(tensor) else "input"
        else:
            kind = "own output" if just_made else "activation"
        if storages is None:
            return kind, None
        if just_made:  # saved after its op ran, before the next node was made
            return kind, storages.last_op
        storages.waiting.append((self, key))  # saved before its op runs: the next one dispatched names it
        return kind, None

    def _view_kind(self, base: Tensor, made: Made | None) -> str:
        if _is_parameter(base):
            return "parameter"
        return "input" if made is None else "activation"

    def _leaf_kind(self, tensor: Tensor, key: int, made: Made | None) -> str:
        # A tensor that neither Python nor another tensor shares was made by the op that saves it, seen or not: a mask,
        # a statistic, or what a compiled region keeps.
        if sys.getrefcount(tensor) <= origins.UNHELD_REFERENCES and _tensors_of(key, in_hand=True) == 1:
            return "mask or statistic"
        return "input" if made is None else "activation"

    def _settle(self) -> None:
        released, more = self._released, self._more
        with self._lock:
            while released:
                key = released.popleft()
                if key not in more:
                    self._current -= self._counted[self._entries.pop(key) & _INDEX_MASK]
                elif more[key] == 1:
                    del more[key]
                else:
                    more[key] -= 1

    @property
    def bytes(self) -> int:
        """Bytes saved for backward now: activations, own outputs, masks and statistics."""
        self._settle()
        return self._current

    @property
    def peak(self) -> int:
        """The most that `bytes` has been."""
        self._settle()
        return self._peak

    def reset_peak(self) -> None:
        """Let `peak` start again from the present `bytes`."""
        self._settle()
        self._peak = self._current

    @property
    def exclusive(self) -> int:
        """Bytes of `bytes` that would be freed if the graphs recorded here went away now.

        A storage is exclusive when every reference to it is a saved tensor's (``torch._C._storage_Use_Count``).
        """
        self._settle()
        counted = ((key, self._counted[entry & _INDEX_MASK]) for key, entry in list(self._entries.items()))
        return sum(nbytes for key, nbytes in counted if nbytes and self._is_exclusive(key))

    def _is_exclusive(self, key: int) -> bool:
        return _tensors_of(key) == self._count(key)

    def _count(self, key: int) -> int:
        return 1 + self._more.get(key, 0)

    @property
    def tensors(self) -> int:
        """How many saved tensors are kept now."""
        self._settle()
        return len(self._entries) + sum(self._more.values())

    @property
    def lines(self) -> list[Line]:
        """Every storage kept now, largest first, given ones (parameter, buffer, input) included."""
        self._settle()
        entries = list(self._entries.items())
        given: dict[int, str] = {}
        if any(self._origins[entry & _INDEX_MASK].kind == "input" for _, entry in entries):
            given = origins.module_storages()
        lines = [self._line(key, entry, given.get(key)) for key, entry in entries]
        return sorted(lines, key=lambda line: -line.bytes)

    def line(self, key: int, op: str) -> Line:
        """Return the `Line` of one storage kept now; ``op`` names what it was saved for."""
        self._settle()
        return self._line(key, self._entries[key], None, op)

    def _line(self, key: int, entry: int, given: str | None, op: str | None = None) -> Line:
        origin = self._origins[entry & _INDEX_MASK]
        return origin.line(
            kind=given if given and origin.kind == "input" else origin.kind,
            op=op,
            step=entry >> _STEP_BITS,
            saved=self._count(key),
            exclusive=self._is_exclusive(key),
        )

    def by(self, what: str) -> dict[str, int]:
        """Return the headline's bytes grouped by ``what``, largest first; they add up to `bytes`.

        Args:
            what: one of kind, line, op, step, dtype, device, shape.
        """
        return group_lines((line for line in self.lines if line.kind not in GIVEN), what)


def _is_parameter(tensor: Tensor) -> bool:
    kind = type(tensor)
    # isinstance runs Python code of Parameter's metaclass: not for the usual types.
    return kind is Parameter or (kind is not Tensor and isinstance(tensor, Parameter))


def _is_compiled(tensor: Tensor) -> bool:
    """Tell the output of a compiled region, which nobody saw being made, from a tensor that was there before."""
    return tensor.grad_fn is not None and tensor.grad_fn.name().startswith("CompiledFunction")


def _tensors_of(key: int, *, in_hand: bool = False) -> int:
    """How many tensors (C++ objects, not names) share the storage with this key."""
    wrapper = origins.WRAPPER_REFERENCES_IN_HAND if in_hand else origins.WRAPPER_REFERENCES
    return int(_storage_use_count(key)) - wrapper
