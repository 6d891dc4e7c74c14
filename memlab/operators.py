"""Which operator a tensor is saved for: told by what runs between a node's making and the next, in one thread."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

import torch

CLONE = torch.ops.aten.clone.default


class Names(Protocol):
    """An account that is told the operator which a tensor was saved for."""

    def name_op(self, token: int, op: Any) -> None: ...


class Operators:
    """The operators that one thread runs."""

    def __init__(self) -> None:
        self.last_op: Any = None  # but no clone; None, if it ran with autograd off
        self.last_sequence = -1
        self.sequence = -1  # how many nodes there were at the last operator
        self.waiting: list[tuple[Names, int]] = []  # what was saved for the operator that runs next
        self._waits_at = -1
        self.task, self.asked = -1, 0  # the backward that runs, and how many of its nodes were asked
        self.zeros: weakref.ref[torch.UntypedStorage] | None = None  # the newest: see `memlab.formulas`

    def runs(self, op: Any, sequence: int, grad: bool) -> None:
        """An operator is about to run, ``grad`` says whether with autograd on. Hot path."""
        if self.waiting:
            self._name_waiting(op if grad else None, sequence)
        if op is not CLONE:
            self.last_op, self.last_sequence = op if grad else None, sequence

    def _name_waiting(self, op: Any, sequence: int) -> None:
        """Tell what waits that it was saved for this operator, or for none that is seen (None). Hot path.

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

    def wait(self, ledger: Names, token: int, sequence: int) -> None:
        """Let the operator that runs next tell ``ledger`` its name. Hot path."""
        if self._waits_at != sequence:
            self.waiting.clear()
            self._waits_at = sequence
        self.waiting.append((ledger, token))


class Here(threading.local):
    """Holds the `Operators` of each thread."""

    def __init__(self) -> None:
        self.operators = Operators()
