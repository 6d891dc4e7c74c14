"""The live account of saved tensors: up when one is packed, down when it is released.

Nothing here installs a hook; `memlab.hooks` feeds this account. It keeps no tensor and no storage alive. Releases can
happen in any thread and in the middle of a garbage collection, so they are only appended to a deque (atomic) and
settled before the next entry and before every reading: a peak can only rise at an entry, so it is exact all the same.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from memlab import origins
from memlab.storage_ledger import Made, StorageLedger

KINDS = ("parameter", "buffer", "input", "activation", "own output", "mask or statistic")
UNKNOWN_SITE = (None, -1)
GIVEN = frozenset(KINDS[:3])  # not caused by the computation, so not in the headline

_storage_use_count = torch._C._storage_Use_Count
_sequence_nr = torch._C._autograd._get_sequence_nr


@dataclass(frozen=True, slots=True)
class Line:
    """One storage that autograd keeps: what it is, where it was first saved, how much it holds.

    ``shape``, ``dtype``, ``op`` and ``where`` are those of its first saving; ``saved`` says how many saved tensors
    share it now; ``exclusive`` whether it would be freed if the graphs recorded here went away now.
    """

    bytes: int
    kind: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    op: str
    where: str
    step: int
    saved: int = 1
    exclusive: bool = False


class Entry:
    """One storage in a `SavedLedger`, while at least one saved tensor refers to it. There may be a million."""

    __slots__ = ("bytes", "count", "key", "kind", "like", "op", "release", "site", "step")

    bytes: int
    count: int
    key: int
    kind: str
    like: tuple[torch.Size, torch.dtype, torch.device]
    op: Any
    release: Callable[[Entry], None]
    site: tuple[CodeType | None, int]
    step: int


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
        self._entries: dict[int, Entry] = {}
        self._released: deque[Entry] = deque()
        self._release = self._released.append
        self._shared: dict[Any, Any] = {}  # one object for all entries alike

    def add(self, tensor: Tensor, kind: str | None = None) -> Entry | None:
        """Count one more saved tensor; whoever keeps it calls ``entry.release(entry)`` when it goes. Hot path."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and opaque layouts have no storage of their own
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return None
        key = storage._cdata
        if self._released:
            self._settle()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._enter(tensor, key, storage.nbytes(), kind)
        entry.count += 1
        return entry

    def _enter(self, tensor: Tensor, key: int, nbytes: int, kind: str | None) -> Entry:
        entry, share = Entry(), self._shared.setdefault
        entry.key, entry.bytes, entry.count, entry.step = key, share(nbytes, nbytes), 0, self.step
        like = (tensor.shape, tensor.dtype, tensor.device)
        entry.like = share(like, like)
        entry.op, entry.release = None, self._release
        entry.kind = kind = kind or self._kind(tensor, key, entry)
        entry.site = UNKNOWN_SITE
        if self._where:
            site = origins.user_code(sys._getframe(2))
            entry.site = share((id(site[0]), site[1]), site)  # equal code may stand in two files
        self._entries[key] = entry
        if kind not in GIVEN:
            self._current += nbytes
            if self._current > self._peak:
                self._peak = self._current
        return entry

    def _kind(self, tensor: Tensor, key: int, entry: Entry) -> str:
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
            return kind
        if just_made:  # saved after its op ran, before the next node was made
            entry.op = storages.last_op
        else:  # saved before its op runs: the next one dispatched names it
            storages.waiting.append(entry)
        return kind

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
        released = self._released
        while released:
            try:
                entry = released.popleft()
            except IndexError:  # another thread settled it
                return
            entry.count -= 1
            if entry.count == 0:
                self._entries.pop(entry.key, None)
                if entry.kind not in GIVEN:
                    self._current -= entry.bytes

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
        return sum(e.bytes for e in self._entries.values() if e.kind not in GIVEN and _is_exclusive(e))

    @property
    def tensors(self) -> int:
        """How many saved tensors are kept now."""
        self._settle()
        return sum(entry.count for entry in self._entries.values())

    @property
    def lines(self) -> list[Line]:
        """Every storage kept now, largest first, given ones (parameter, buffer, input) included."""
        self._settle()
        entries = list(self._entries.values())
        if any(entry.kind == "input" for entry in entries):
            given = origins.module_storages()
            for entry in entries:
                if entry.kind == "input":
                    entry.kind = given.get(entry.key, "input")
        return sorted(map(line_of, entries), key=lambda line: -line.bytes)

    def by(self, what: str) -> dict[str, int]:
        """Return the headline's bytes grouped by ``what``, largest first; they add up to `bytes`.

        Args:
            what: one of kind, line, op, step, dtype, device, shape.
        """
        return group_lines((line for line in self.lines if line.kind not in GIVEN), what)


GROUPS: dict[str, Callable[[Line], str]] = {
    "kind": lambda line: line.kind,
    "line": lambda line: line.where,
    "op": lambda line: line.op,
    "step": lambda line: str(line.step),
    "dtype": lambda line: line.dtype,
    "device": lambda line: line.device,
    "shape": lambda line: str(line.shape),
}


def group_lines(lines: Iterable[Line], what: str) -> dict[str, int]:
    """Return ``{group: bytes}`` of ``lines``, largest first. Raises ValueError for an unknown grouping."""
    if what not in GROUPS:
        raise ValueError(f"cannot group by {what!r}; known: {', '.join(GROUPS)}")
    totals: Counter[str] = Counter()
    for line in lines:
        totals[GROUPS[what](line)] += line.bytes
    return dict(totals.most_common())


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


def _is_exclusive(entry: Entry) -> bool:
    return _tensors_of(entry.key) == entry.count


def line_of(entry: Entry, op: str | None = None) -> Line:
    """Return the public `Line` of an entry; ``op`` names the operator where the caller knows it better."""
    shape, dtype, device = entry.like
    return Line(
        bytes=entry.bytes,
        kind=entry.kind,
        shape=tuple(shape),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        op=op or origins.op_name(entry.op),
        where=origins.describe(*entry.site),
        step=entry.step,
        saved=entry.count,
        exclusive=_is_exclusive(entry),
    )
