"""What a ledger says of one storage: the public `Line`, and the `Origin` that all storages alike share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from memlab import origins

KINDS = ("parameter", "buffer", "input", "activation", "own output", "mask or statistic")
GIVEN = frozenset(KINDS[:3])  # not caused by the computation, so not in the headline


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


@dataclass(frozen=True, slots=True)
class Origin:
    """What saved tensors that were saved alike have in common; nothing in it is text before somebody reads it."""

    bytes: int
    kind: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    op: Any
    code: CodeType | None
    instruction: int

    @property
    def counted(self) -> int:
        """Bytes that one such storage adds to the headline."""
        return 0 if self.kind in GIVEN else self.bytes

    def line(self, *, kind: str, op: str | None, step: int, saved: int, exclusive: bool) -> Line:
        """Return the public `Line`; ``kind`` and ``op`` where the caller knows them better."""
        return Line(
            bytes=self.bytes,
            kind=kind,
            shape=tuple(self.shape),
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            op=op or origins.op_name(self.op),
            where=origins.describe(self.code, self.instruction),
            step=step,
            saved=saved,
            exclusive=exclusive,
        )


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
