"""What a script reads of fake tensors, which have no values: a number is taken to be 1, and a condition not to hold.

So a script may print its loss, stop early or look for NaN. Whole numbers are not guessed: shapes come from them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch.amp import grad_scaler

from memlab import origins

aten = torch.ops.aten
NUMBER, CONDITION = 1.0, False


class Values:
    """What was read, and where.

    Attributes:
        numbers, conditions: the user's lines that read them, ``file:line``, in their order.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, None] = {}
        self.conditions: dict[str, None] = {}

    def of(self, operator: Any, args: Sequence[Any]) -> float | bool | None:
        """Return what an operator that depends on values is taken to return; None where that is not guessed."""
        if operator is aten.equal.default:
            return self._condition()
        if operator is not aten._local_scalar_dense.default:
            return None
        if args[0].dtype == torch.bool:
            return self._condition()
        if not args[0].is_floating_point():
            return None
        if any(frame.f_code.co_filename == grad_scaler.__file__ for frame in _frames()):
            return 0.0  # GradScaler's flag for gradients that are infinite is a number
        self.numbers[_line()] = None
        return NUMBER

    def _condition(self) -> bool:
        self.conditions[_line()] = None
        return CONDITION

    def sentences(self) -> list[str]:
        """Say what was taken for granted."""
        found = []
        if self.numbers:
            found.append(f"numbers that it reads of fake tensors ({_places(self.numbers)}) are taken to be {NUMBER:g}")
        if self.conditions:
            found.append(f"conditions on fake tensors ({_places(self.conditions)}) are taken not to hold")
        return found


def _places(found: dict[str, None], most: int = 3) -> str:
    return ", ".join([*list(found)[:most], *([f"{len(found) - most} more"] if len(found) > most else [])])


def _line() -> str:
    return origins.describe(*origins.user_code(sys._getframe()))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
