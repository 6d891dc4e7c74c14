"""What a ledger says of one storage: the public `Line`, and the `Origin` that all storages alike share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

import torch

from memlab import node_names, origins, reasons
from memlab.modules import ModuleNames, Place

KINDS = ("parameter", "buffer", "input", "activation", "own output", "mask or statistic")
OUTSIDE = "outside of modules"
GIVEN = frozenset(KINDS[:3])  # not caused by the computation, so not in the headline


@dataclass(frozen=True, slots=True)
class Line:
    """One storage that autograd keeps: what it is, where it was first saved, how much it holds.

    ``shape``, ``dtype``, ``op``, ``node``, ``module``, ``why`` and ``where`` are those of its first saving; ``saved``
    says how many saved tensors share it now; ``exclusive`` whether it would be freed if the graphs recorded here went
    away now. What is not known reads ``unknown``.

    Attributes:
        node: the name of the autograd node that keeps it, such as ``AddmmBackward0``; ``checkpoint`` for an input that
            checkpoint keeps without a node.
        module: the fully qualified name of the innermost module whose forward saved it, ``encoder.layers.0.mlp``; empty
            for the outermost module itself and outside of all modules.
        module_class: the class of that module, such as ``Linear``; empty outside of all modules.
        why: what the node needs it for, such as ``for the gradient of the weight``; empty where that is not known.
        shared: the other savings that share its storage, each as ``node at file:line``, in the order they were saved.
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
    node: str = "unknown"
    module: str = ""
    module_class: str = ""
    why: str = ""
    shared: tuple[str, ...] = ()


class Saving(NamedTuple):
    """What a walk of the graph reads of one saved tensor: its node's name and the field that keeps it."""

    node: str
    field: str


UNREAD = Saving("", "")


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
    place: Place | None

    @property
    def counted(self) -> int:
        """Bytes that one such storage adds to the headline."""
        return 0 if self.kind in GIVEN else self.bytes

    def line(self, names: ModuleNames, saving: Saving = UNREAD, **known: Any) -> Line:
        """Return the public `Line`; ``saving`` is what a walk of the graph knows better, ``known`` the other fields."""
        node = saving.node or node_names.node_name(self.op)
        return Line(
            **{
                "bytes": self.bytes,
                "kind": self.kind,
                "shape": tuple(self.shape),
                "dtype": str(self.dtype).removeprefix("torch."),
                "device": str(self.device),
                "op": saving.node or origins.op_name(self.op),
                "where": self.where,
                "node": node,
                "module": names.name(self.place),
                "module_class": self.place.kind if self.place is not None else "",
                "why": reasons.why(node, saving.field or node_names.only_field(node)),
                **known,
            }
        )

    @property
    def where(self) -> str:
        return origins.describe(self.code, self.instruction)

    def sharing(self, saving: Saving = UNREAD) -> str:
        """Return what `Line.shared` says of one more saving."""
        return shared_text(saving.node or node_names.node_name(self.op), self.where)


def shared_text(node: str, where: str) -> str:
    """Return ``node at file:line``."""
    return f"{node} at {where}"


GROUPS: dict[str, Callable[[Line], str]] = {
    "kind": lambda line: line.kind,
    "class": lambda line: line.kind,
    "line": lambda line: line.where,
    "module": lambda line: line.module or line.module_class or OUTSIDE,
    "node": lambda line: line.node,
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


@dataclass(frozen=True, slots=True)
class Tree:
    """Bytes of a group and of the groups under it.

    Attributes:
        name: one part of a dotted name; empty at the top.
        bytes: what is kept here and below, which adds up: ``own`` and the children's ``bytes``.
        own: what is kept here.
        children: the groups below, largest first.
    """

    name: str
    bytes: int
    own: int
    children: tuple[Tree, ...] = ()


def tree_of(totals: dict[str, int]) -> Tree:
    """Nest ``{dotted name: bytes}`` (`group_lines`) along the dots."""
    return _branch("", [(name.split(".") if name != OUTSIDE else [name], total) for name, total in totals.items()])


def _branch(name: str, parts: list[tuple[list[str], int]]) -> Tree:
    own = sum(total for names, total in parts if not names)
    below: dict[str, list[tuple[list[str], int]]] = {}
    for names, total in parts:
        if names:
            below.setdefault(names[0], []).append((names[1:], total))
    children = sorted((_branch(child, inside) for child, inside in below.items()), key=lambda child: -child.bytes)
    return Tree(name, own + sum(child.bytes for child in children), own, tuple(children))
