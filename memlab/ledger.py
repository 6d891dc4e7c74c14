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
from collections.abc import Iterable
from threading import RLock
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from memlab import origins
from memlab.in_place import LEAF, VIEW
from memlab.lines import GIVEN, Line, Origin, group_lines
from memlab.modules import ModuleNames, Places
from memlab.reading import INDEX_MASK, KEY_BITS, KEY_MASK, STEP_BITS, Reading
from memlab.storage_ledger import Made, StorageLedger

NO_CODE = (None, -1)

_storage_use_count = torch._C._storage_Use_Count
_sequence_nr = torch._C._autograd._get_sequence_nr


class SavedLedger:
    """Storages that autograd keeps for backward, each counted once however many nodes or views save it.

    ``storages`` is the account of what was created meanwhile; with it a storage that it does not know was there before
    and is an input. Without it, a leaf counts as an input when Python code holds it.
    """

    def __init__(
        self,
        storages: StorageLedger | None = None,
        *,
        where: bool = True,
        modules: bool = False,
        ignore: Iterable[str] = (),
    ) -> None:
        self.recording = True
        self.step = 0
        self.blind: set[str] = set()
        self.on_ctx: dict[str, str] = {}  # custom Functions with the first attribute that keeps tensors, uncounted
        self._storages = storages
        self._where = where
        self._attributes = where or storages is not None  # else only bytes are asked for, and bytes are cheap
        self._places = Places() if modules else None
        self._asks_frames = self._attributes or modules
        self._files = origins.UserFiles(ignore) if ignore else origins.USER_FILES
        self._current = 0
        self._peak = 0
        self._entries: dict[int, int] = {}
        self._more: dict[int, int] = {}  # how many saved tensors beyond the first share a storage
        self._shares: dict[int, int] = {}  # each of these: the storage's key and, above it, a number of its own
        self._serial = 0
        self._first_gone: set[int] = set()
        self._origins: list[Origin] = []
        self._counted: list[int] = []
        self._alive: list[int] = []  # how many storages of each origin are kept now
        self._highest = 0
        self._alive_then: list[int] = []  # the same when most was kept, read where it first falls
        self._known: dict[tuple[Any, ...], int] = {}
        self._named: dict[tuple[int, int], int] = {}
        self._released: deque[int] = deque()
        self._lock = RLock()  # several threads may save and read; a finalizer that runs inside may save, too
        self.release = self._released.append  # called once for each key that `add` has returned

    def add(self, tensor: Tensor, output: int, kind: str | None = None) -> int | None:
        """Count one more saved tensor; whoever keeps it calls ``release`` with what this returns. Hot path.

        ``output`` is which output of its node it is, or `LEAF`, or `VIEW` (of `memlab.in_place`).
        Returns the storage's key for the first saved tensor on it, the key and a number above it for others.
        """
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and opaque layouts have no storage of their own
            self.blind.add(f"tensors of layout {tensor.layout} have no single storage and are not counted")
            return None
        key: int = storage._cdata
        frame = _frame_outside() if self._asks_frames else None
        with self._lock:
            if self._released:
                self._settle()
            if key in self._entries:
                return self._share(tensor, key, frame)
            op, sequence = None, 0
            if self._attributes:
                sequence = _sequence_nr()
                op = self._op(frame, sequence, key)
            kind = kind or self._kind(tensor, key, output, sequence, op)
            index = self._origin(storage.nbytes(), kind, tensor, op, frame)
            self._entries[key] = index | self.step << STEP_BITS if self.step else index
            self._alive[index] += 1
            self._current += self._counted[index]
            if self._current > self._peak:
                self._peak = self._current
        return key

    def has_made(self, tensor: Tensor) -> bool:
        """Whether the ledger of storages beside this one has seen the tensor's storage being made."""
        key = origins.storage_key(tensor)
        return self._storages is not None and key is not None and self._storages.made(key) is not None

    def _share(self, tensor: Tensor, key: int, frame: FrameType | None) -> int:
        index = self._entries[key] & INDEX_MASK
        self._serial += 1
        token = key | self._serial << KEY_BITS
        self._more[key] = self._more.get(key, 0) + 1
        if not self._attributes:
            self._shares[token] = index
            return token
        first = self._origins[index]
        op = self._op(frame, _sequence_nr(), token)
        self._shares[token] = self._origin(first.bytes, first.kind, tensor, op, frame)
        return token

    def _op(self, frame: FrameType | None, sequence: int, token: int) -> Any:
        """Return what the tensor is saved for: an operator that has run, or who saves it if none does.

        None if that is not known; the operator that runs next will tell, if it was for that.
        """
        name = origins.saver(frame)
        if name is not None:
            if name == "CompiledFunctionBackward":
                self.blind.add("what a compiled region keeps has the line and module of its call, not those inside it")
            return name
        if self._storages is None:
            return None
        operators = self._storages.here.operators
        if operators.last_sequence == sequence:  # None if it ran with autograd off: a custom Function of C++ saves it
            return operators.last_op
        operators.wait(self, token, sequence)
        return None

    def _origin(self, nbytes: int, kind: str, tensor: Tensor, op: Any, frame: FrameType | None) -> int:
        code, instruction = origins.user_code(frame, self._files) if self._where else NO_CODE
        place = None
        if self._places is not None and (call := origins.module_call(frame)) is not None:
            place = self._places.of(call)
        # An operator's hash is Python code, and equal code may stand in two files: both are told apart by object.
        alike = (nbytes, kind, tensor.shape, tensor.dtype, tensor.device, id(op), id(code), instruction, id(place))
        index = self._known.get(alike)
        if index is None:
            origin = Origin(nbytes, kind, tensor.shape, tensor.dtype, tensor.device, op, code, instruction, place)
            index = self._known[alike] = self._new_index(origin)
        return index

    def _new_index(self, origin: Origin) -> int:
        self._origins.append(origin)
        self._counted.append(origin.counted)
        self._alive.append(0)
        return len(self._origins) - 1

    def name_op(self, token: int, op: Any) -> None:
        """Say which operator a tensor was saved for, now that it runs. Hot path."""
        accounts = self._shares if token > KEY_MASK else self._entries
        entry = accounts.get(token)
        if entry is None:
            return
        unnamed = entry & INDEX_MASK
        index = self._named.get((unnamed, id(op)))
        if index is None:
            origin = self._origins[unnamed]
            if origin.op is not None:  # another storage has the address of one that went before its operator ran
                return
            index = self._named[unnamed, id(op)] = self._new_index(dataclasses.replace(origin, op=op))
        accounts[token] = entry - unnamed + index
        if accounts is self._entries:
            self._alive[unnamed] -= 1
            self._alive[index] += 1

    def _kind(self, tensor: Tensor, key: int, output: int, sequence: int, op: Any) -> str:
        """Return the class of the storage."""
        # tensor.grad_fn is not asked: from torch 2.13 on, a node that Python has seen is freed recursively, so a chain
        # of 50,000 such nodes overflows the stack when it goes.
        storages = self._storages
        made = None if storages is None else storages.made(key)
        if made is not None and made.kind is not None:
            return made.kind
        if output == LEAF:
            return "parameter" if is_parameter(tensor) else self._leaf_kind(tensor, key, made)
        if output == VIEW and (base := tensor._base) is not None and (base.is_leaf or is_parameter(base)):
            return self._view_kind(base, made)
        if made is None and storages is not None:
            return "activation" if _is_compiled(tensor) else "input"
        just_made = op is not None and made is not None and made.sequence == sequence
        return "own output" if just_made else "activation"

    def _view_kind(self, base: Tensor, made: Made | None) -> str:
        if is_parameter(base):
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
            if self._current > self._highest:
                self._highest, self._alive_then = self._current, self._alive.copy()
            while released:
                token = released.popleft()
                if token <= KEY_MASK:
                    if token in more:
                        self._first_gone.add(token)
                    else:
                        self._leave(token)
                    continue
                del self._shares[token]
                key = token & KEY_MASK
                more[key] -= 1
                if not more[key]:
                    del more[key]
                    if key in self._first_gone:
                        self._first_gone.discard(key)
                        self._leave(key)

    def _leave(self, key: int) -> None:
        index = self._entries.pop(key) & INDEX_MASK
        self._current -= self._counted[index]
        self._alive[index] -= 1

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

    def at_highest(self) -> list[tuple[Line, int]]:
        """Return what was kept when most was, ever: lines, each with the number of storages alike; given ones, too.

        A storage whose operator was not known at that time has no node. Less is told of each than by `lines`.
        """
        self._settle()
        return self._tally(self._alive if self._current == self._highest else self._alive_then)

    def now(self) -> list[tuple[Line, int]]:
        """Return what is kept now in the same, cheap, way."""
        self._settle()
        return self._tally(self._alive)

    def _tally(self, alive: list[int]) -> list[tuple[Line, int]]:
        names = ModuleNames(origin.place for origin in list(self._origins))
        counted = [(self._origins[index], count) for index, count in enumerate(alive) if count]
        return [(origin.line(names, step=0), count) for origin, count in counted]

    @property
    def kinds(self) -> dict[int, str]:
        """Return ``{storage key: class}`` of all storages kept now."""
        self._settle()
        return {key: self._origins[entry & INDEX_MASK].kind for key, entry in list(self._entries.items())}

    @property
    def exclusive(self) -> int:
        """Bytes of `bytes` that would be freed if the graphs recorded here went away now.

        A storage is exclusive when every reference to it is a saved tensor's (``torch._C._storage_Use_Count``).
        """
        self._settle()
        counted = ((key, self._counted[entry & INDEX_MASK]) for key, entry in list(self._entries.items()))
        return sum(nbytes for key, nbytes in counted if nbytes and self._is_exclusive(key))

    def _is_exclusive(self, key: int) -> bool:
        return _tensors_of(key) == self._count(key)

    def _count(self, key: int) -> int:
        return (key not in self._first_gone) + self._more.get(key, 0)

    @property
    def tensors(self) -> int:
        """How many saved tensors are kept now."""
        self._settle()
        return len(self._entries) - len(self._first_gone) + sum(self._more.values())

    @property
    def lines(self) -> list[Line]:
        """Every storage kept now, largest first, given ones (parameter, buffer, input) included."""
        with self._lock:  # what other threads release meanwhile is read as kept
            reading = self.reading()
            return sorted((reading.line(key) for key in list(self._entries)), key=lambda line: -line.bytes)

    @property
    def peak_lines(self) -> list[Line]:
        """What was kept when most was, ever, largest first; given storages left out.

        Less is told of each than by `lines`: ``step`` is 0, ``saved`` 1 and ``exclusive`` False.
        """
        lines = [line for line, count in self.at_highest() if line.kind not in GIVEN for _ in range(count)]
        return sorted(lines, key=lambda line: -line.bytes)

    def kept(self) -> dict[int, int]:
        """Return ``{storage key: bytes}`` of everything kept now, given storages included."""
        self._settle()
        return {key: self._origins[entry & INDEX_MASK].bytes for key, entry in list(self._entries.items())}

    def devices(self) -> set[str]:
        """Return the kinds of device (``"cpu"``, ``"cuda"``) of everything that was ever saved here."""
        return {origin.device.type for origin in self._origins}

    def reading(self) -> Reading:
        """Return what it takes to read many lines at once."""
        self._settle()
        return Reading(self._origins, self._entries, self._shares, self._first_gone, _tensors_of)

    def origin(self, token: int) -> Origin:
        """Return what was recorded of one saved tensor kept now."""
        accounts = self._shares if token > KEY_MASK else self._entries
        return self._origins[accounts[token] & INDEX_MASK]

    def by(self, what: str) -> dict[str, int]:
        """Return the headline's bytes grouped by ``what``, largest first; they add up to `bytes`.

        Args:
            what: one of class (or kind), line, module, node, op, step, dtype, device, shape.
        """
        with self._lock:
            reading = self.reading()
            counted = [key for key, entry in list(self._entries.items()) if self._origins[entry & INDEX_MASK].counted]
            return group_lines((reading.line(key) for key in counted), what)


def _frame_outside() -> FrameType | None:
    """Return the frame that called into C++, which calls the pack hook, which calls `SavedLedger.add`."""
    try:
        return sys._getframe(3)
    except ValueError:  # a thread of the autograd engine
        return None


def is_parameter(tensor: Tensor) -> bool:
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
