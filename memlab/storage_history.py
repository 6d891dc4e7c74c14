"""The storages' ledger with a memory: which operator and which stack each allocation comes from.

It is a ledger of its own, so that the ordinary one costs what it did. An allocation of the backward pass has no Python
frames of its own; it gets those of the operator whose backward it is, by the sequence number that autograd gave both.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memlab.allocator import Allocator
from memlab.card_ledger import CardLedger
from memlab.origins import module_storages, op_name
from memlab.stacks import BackwardStack, Frames, Stack, Stacks
from memlab.storage_ledger import Made

UNKNOWN = "unknown"
# From torch 2.13 on, nodes that Python has seen are freed recursively; this many of them do not fill a thread's stack.
MOST_NODES = 4096
_ENGINE = "_engine_run_backward"
_OPTIMIZERS = torch.optim.__file__.removesuffix("__init__.py")
_graph_task = torch._C._current_graph_task_id
_sequence_nr = torch._C._autograd._get_sequence_nr


class Birth:
    """Where one allocation comes from; what becomes of it is added as it is known."""

    __slots__ = ("kind", "op", "stack")

    def __init__(self, op: Any, stack: Stack) -> None:
        self.op = op
        self.stack = stack
        self.kind: str | None = None

    @property
    def category(self) -> str:
        """A parameter, buffer, input or activation; else what the backward pass or an optimizer made; or unknown."""
        if self.kind is not None:
            return self.kind
        if isinstance(self.stack, BackwardStack) or any(code.co_name == _ENGINE for code, _ in self.stack.codes):
            return "backward"
        if any(code.co_filename.startswith(_OPTIMIZERS) for code, _ in self.stack.codes):
            return "optimizer"
        return UNKNOWN

    def describe(self) -> dict[str, Any]:
        return {"frames": self.frames, "user_metadata": op_name(self.op), "category": self.category}

    @property
    def frames(self) -> Frames:
        return self.stack.frames()


class Sighting(NamedTuple):
    """A storage on a real device, seen just after the operator that made it. Time in microseconds, size in bytes."""

    time_us: int
    device: int
    address: int
    nbytes: int
    birth: Birth


class StorageHistory(CardLedger):
    """A `CardLedger` that remembers where the newest ``max_entries`` allocations come from.

    Args:
        card: the simulated card; its events get the stacks.
        max_entries: events that are kept, as in torch.cuda.memory._record_memory_history().
        real: storages on CUDA devices are not put on the card, but noted with their addresses.
        keep_peak, births: as of `CardLedger`.
    """

    def __init__(
        self, card: Allocator, max_entries: int, *, real: bool, keep_peak: bool = False, births: bool = False
    ) -> None:
        super().__init__(card, keep_peak=keep_peak, births=births)
        card.record_history(max_entries)
        assert card.trace is not None
        self._trace = card.trace
        self._real = real
        self._most = max_entries
        self.sightings: deque[Sighting] = deque(maxlen=max_entries)
        self._stacks = Stacks()
        self._forward: dict[int, Stack] = {}  # by autograd's sequence number
        self._task, self._nodes = -1, 0
        self._op: Any = None
        self._stack = Stack(())
        self._births: dict[int, Birth] = {}  # by storage key, of what is on a real device
        self._entering_real = False

    def begin(self, op: Any) -> None:
        """Say that an operator begins, called from the user's frames."""
        self._op = op
        stack = self._stacks.of(sys._getframe(1))
        task = _graph_task()
        if task == -1:
            self._note_forward(stack)
        elif stack.innermost is None or stack.innermost.co_name == _ENGINE:
            stack = self._of_backward(task) or stack
        self._stack = stack

    def _note_forward(self, stack: Stack) -> None:
        # The node of an operator is there before its kernel runs, with the number before the next one.
        number = _sequence_nr() - 1
        if number not in self._forward:
            if len(self._forward) >= self._most:
                del self._forward[next(iter(self._forward))]
            self._forward[number] = stack

    def _of_backward(self, task: int) -> Stack | None:
        if task != self._task:
            self._task, self._nodes = task, 0
        self._nodes += 1
        if self._nodes > MOST_NODES:
            self.blind.add(
                f"after {MOST_NODES:,} operators of one backward, its allocations have the frames of its call"
            )
            return None
        node: Any = torch._C._current_autograd_node()
        number = getattr(node, "_sequence_nr", None)
        forward = self._forward.get(number()) if number is not None else None
        return self._stacks.of_backward(node.name(), forward) if forward is not None else None

    def take(self, nbytes: int) -> int:
        if self._entering_real:
            return 0
        self._trace.context = Birth(self._op, self._stack)
        return super().take(nbytes)

    def _enter(self, storage: torch.UntypedStorage, key: int, sequence: int, op: Any) -> None:
        self._entering_real = self._real and storage.device.type == "cuda"
        try:
            super()._enter(storage, key, sequence, op)
        finally:
            real, self._entering_real = self._entering_real, False
        if real:
            birth = self._births[key] = Birth(self._op, self._stack)
            at = time.time_ns() // 1000
            device = storage.device.index or 0
            self.sightings.append(Sighting(at, device, storage.data_ptr(), storage.nbytes(), birth))

    def _birth(self, made: Made) -> Birth | None:
        found = self._trace.live.get(made.address)
        if made.address and isinstance(found, Birth):
            return found
        return self._births.get(made.key)

    def made(self, key: int) -> Made | None:
        """As `StorageLedger.made`; who asks is about to save the storage for backward."""
        made = super().made(key)
        birth = self._birth(made) if made is not None else None
        if birth is not None and birth.kind is None:
            birth.kind = "activation"
        return made

    def mark(self, tensor: Tensor, kind: str) -> None:
        super().mark(tensor, kind)
        made = super().made(tensor.untyped_storage()._cdata)
        birth = self._birth(made) if made is not None else None
        if birth is not None:
            birth.kind = kind

    def mark_modules(self) -> None:
        """Mark the parameters and buffers of all live modules; what ``module.to()`` made was not registered."""
        for key, kind in module_storages().items():
            made = self._live.get(key)
            birth = self._birth(made) if made is not None else None
            if birth is not None:
                birth.kind = kind

    def seal(self) -> None:
        super().seal()
        for made in self._live.values():
            birth = self._birth(made)
            if birth is not None:
                birth.kind = made.kind

    def settle(self) -> None:
        super().settle()
        if len(self._births) > 2 * len(self._live) + 64:
            self._births = {key: self._births[key] for key in self._live if key in self._births}
