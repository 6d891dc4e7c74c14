"""The bill of one tensor: what its graph keeps for backward, itemised by storage, read from its nodes."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from memlab import checkpoints, functions, reasons, wrappers
from memlab.graph import Tour
from memlab.hooks import Packed, tensors_in
from memlab.ledger import is_parameter
from memlab.lines import GIVEN, Line, Saving, Tree, group_lines, shared_text, tree_of
from memlab.node_names import READS_PACKED, saved_by
from memlab.origins import WRAPPER_REFERENCES, storage_key
from memlab.reading import Reading
from memlab.unavailable import Unavailable
from memlab.units import format_bytes


@dataclass(frozen=True)
class Bill:
    """What one tensor's graph keeps for backward.

    Attributes:
        lines: one `Line` for every storage, largest first; ``op`` is the node's name, such as ``AddmmBackward0``.
        nodes: how many nodes the tensor leads to.
        unseen: ``{node name: count}`` of nodes whose saved tensors cannot be read from Python.
    """

    lines: list[Line]
    nodes: int
    unseen: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Bill: {format_bytes(self.bytes)} kept for backward; nodes: {self.nodes:,}>"

    @property
    def bytes(self) -> int:
        """Bytes kept, without parameters, buffers and inputs."""
        return sum(line.bytes for line in self.lines if line.kind not in GIVEN)

    def by(self, what: str) -> dict[str, int]:
        """Return `bytes` grouped by class (or kind), line, module, node, op, step, dtype, device or shape; adds up."""
        return group_lines((line for line in self.lines if line.kind not in GIVEN), what)

    def tree(self) -> Tree:
        """Return `bytes` by module, nested along the dotted names, with totals at every level."""
        return tree_of(self.by("module"))


def bill(tensor: Tensor) -> Bill:
    """Return what ``tensor``'s graph keeps for backward now, itemised by storage.

    Needs no open watch: it reads the nodes themselves. Graphs recorded under a watch know the source line of each
    storage; others say ``unknown``. A leaf without gradient counts as an input when something besides the graph holds
    it, else as a mask or statistic. Python numbers that autograd wraps as tensors are left out.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        Unavailable: this torch cannot show what a node keeps without running unpack hooks (2.6).
    """
    if not READS_PACKED:
        raise Unavailable(f"torch {torch.__version__} cannot show what a node keeps without running unpack hooks")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"bill() takes one tensor, such as a loss, not {type(tensor).__name__}")
    return survey([tensor])[0]


def survey(roots: list[Tensor]) -> tuple[Bill, set[int]]:
    """Return the bill of several tensors together, and the keys of the storages in it."""
    walk, tour = Walk(), Tour()
    tour.meet(root.grad_fn for root in roots if root.grad_fn is not None)
    for node in tour.read():
        walk.visit(node)
    tour.end()
    lines = sorted(walk.lines(), key=lambda line: -line.bytes)
    return Bill(lines, len(tour.nodes), dict(walk.unseen)), walk.keys


# Types that have no saved fields to read and are not known to have none: CopySlices, C++ extensions.
_OPAQUE = frozenset({"CppFunction", "CopySlices"})


class _Seen(NamedTuple):
    """One saved tensor that a walk has met: its node's place in the order of recording, what it is, how it is kept."""

    sequence: int
    saving: Saving
    packed: Packed | None


@dataclass(frozen=True)
class _Checkpoint:
    """Stands where a node would: what checkpoint keeps has none."""

    sequence: int

    def name(self) -> str:
        return "checkpoint"

    def _sequence_nr(self) -> int:
        return self.sequence


class Walk:
    """Collects storages over the nodes of one walk."""

    def __init__(self) -> None:
        self.unseen: Counter[str] = Counter()
        self._found: dict[int, tuple[Tensor, Any, str]] = {}
        self._savings: dict[int, list[_Seen]] = {}
        self._held: set[int] = set()
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._bases: dict[int, Tensor] = {}  # by identity
        self._base_counts: Counter[int] = Counter()
        self._parameters: set[int] = set()
        self._regions = checkpoints.Regions()

    def visit(self, node: Any) -> None:
        kind = type(node)
        if kind.__name__ == "AccumulateGrad":
            if isinstance(node.variable, Parameter):
                self._parameters.add(node.variable.untyped_storage()._cdata)
            return
        if kind.__name__ in _OPAQUE:
            self.unseen[node.name().removeprefix("torch::autograd::")] += 1
        elif functions.tensors_on(node):
            self.unseen[f"{node.name()}'s ctx"] += 1
        if self._collect(saved_by(node), node):
            caching = self._regions.caching
            self._collect(self._regions.inputs(node), _Checkpoint(node._sequence_nr()))
            if self._regions.caching > caching:
                self.unseen["a selective checkpoint's cache"] += self._regions.caching - caching

    def _collect(self, kept: Iterable[tuple[str, Any]], node: Any) -> bool:
        """Add what is kept; return whether some of it is to be computed again."""
        recomputed = False
        for name, data in kept:
            packed = data if isinstance(data, Packed) else None
            recomputed = recomputed or type(data.value if packed else data) is checkpoints.HOLDER
            for tensor in _tensors_in(data.value if packed else data):
                more = sys.getrefcount(tensor) - _UNHELD
                held = packed is None and more > 0 and more > self._knows(tensor)
                inside = wrappers.inner(tensor)
                if not inside and wrappers.hides(tensor):
                    self.unseen[f"{node.name()} ({type(tensor).__name__})"] += 1  # it counts with the size it states
                for each in inside or (tensor,):
                    self._add(each, packed, node, name, held=held)
        return recomputed

    def _knows(self, tensor: Tensor) -> bool:
        """Whether this very tensor is held by the walk itself: another node saved it, too."""
        known = self._found.get(storage_key(tensor) or 0)
        return known is not None and known[0] is tensor

    def _add(self, tensor: Tensor, packed: Packed | None, node: Any, name: str, *, held: bool) -> None:
        key = storage_key(tensor)
        if key is None:
            self.unseen[f"{node.name()} ({tensor.layout})"] += 1
            return
        if packed is None and _is_wrapped_number(tensor):
            return
        self._counts[key] += 1
        if held or (packed is None and tensor._is_view() and self._base_is_held(tensor, key)):
            self._held.add(key)
        known = self._found.get(key)
        if known is None or (known[1] is None and packed is not None):
            self._found[key] = (tensor, packed, name)
        self._note(key, node, name, packed)

    def _note(self, key: int, node: Any, name: str, packed: Packed | None) -> None:
        """Remember that ``node`` keeps a storage."""
        self._savings.setdefault(key, []).append(_Seen(node._sequence_nr(), Saving(node.name(), name), packed))

    def _base_is_held(self, view: Tensor, key: int) -> bool:
        """A view keeps its base: one more tensor on the storage, which Python code may hold or not."""
        base = view._base
        if base is None or id(base) in self._bases:
            return False
        held = sys.getrefcount(base) > _UNHELD_BASE
        self._bases[id(base)] = base
        self._base_counts[key] += 1
        return held

    @property
    def keys(self) -> set[int]:
        return set(self._found)

    def lines(self) -> Iterator[Line]:
        readings: dict[int, Reading] = {}
        for key, (tensor, packed, name) in self._found.items():
            seen = sorted(self._savings[key], key=lambda each: each.sequence)
            counted = packed.counted(key) if packed is not None else None
            if counted is None:
                yield self._unwatched_line(key, tensor, name, [each.saving for each in seen])
                continue
            ledger, token = counted
            reading = readings.get(id(ledger))
            if reading is None:
                reading = readings[id(ledger)] = ledger.reading()
            counts = [(each.saving, each.packed.counted(key)) for each in seen if each.packed is not None]
            yield reading.line(token, {own[1]: saving for saving, own in counts if own and own[0] is ledger})

    def _unwatched_line(self, key: int, tensor: Tensor, name: str, savings: list[Saving]) -> Line:
        first, *others = savings
        return Line(
            bytes=tensor.untyped_storage().nbytes(),
            kind=self._kind(key, tensor, name),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            device=str(tensor.device),
            op=first.node,
            where="unknown",
            step=0,
            saved=self._counts[key],
            node=first.node,
            why=reasons.why(first.node, first.field),
            shared=tuple(dict.fromkeys(shared_text(each.node, "unknown") for each in others)),
        )

    def _kind(self, key: int, tensor: Tensor, name: str) -> str:
        base = tensor._base if tensor._is_view() else None
        if key in self._parameters or is_parameter(tensor) or (base is not None and is_parameter(base)):
            return "parameter"
        if tensor.grad_fn is not None:
            return "input" if base is not None and base.is_leaf else "activation"
        if tensor.requires_grad:
            return "input"
        if name.startswith("result"):  # autograd keeps its own outputs detached
            return "own output" if name in ("result", "result0") else "mask or statistic"
        references = torch._C._storage_Use_Count(key) - WRAPPER_REFERENCES
        return (
            "input"
            if key in self._held or references > self._counts[key] + self._base_counts[key]
            else "mask or statistic"
        )


def _tensors_in(data: Any) -> Iterable[Tensor]:
    return (data,) if type(data) is Tensor else tensors_in(data)


def _is_wrapped_number(tensor: Tensor) -> bool:
    """Python numbers reach autograd as 0-dim CPU tensors that take part in type promotion as numbers."""
    if tensor.dim() or tensor.device.type != "cpu" or tensor.dtype not in _NARROWER:
        return False
    return torch.result_type(tensor, torch.empty((), dtype=_NARROWER[tensor.dtype], device="cpu")) != tensor.dtype


_NARROWER = {
    torch.float64: torch.float32,
    torch.int64: torch.int32,
    torch.complex128: torch.complex64,
}


def _count_unheld() -> int:
    with torch.inference_mode(False), torch.enable_grad():
        node = torch.nn.functional.layer_norm(torch.ones(1, 2, device="cpu", requires_grad=True), (2,)).grad_fn
    for _, data in saved_by(node):
        packed = None
        for tensor in _tensors_in(data.value if packed else data):
            held = sys.getrefcount(tensor)
    return held


def _count_unheld_base() -> int:
    with torch.inference_mode(False), torch.enable_grad():
        view = torch.ones(2, 2, device="cpu").t()
        node = (torch.ones(2, 2, device="cpu", requires_grad=True) * view).grad_fn
    del view
    (saved,) = (data for _, data in saved_by(node))
    base = saved._base
    return sys.getrefcount(base)


with torch._C._DisableTorchDispatch():
    _UNHELD_BASE = _count_unheld_base() if READS_PACKED else 0
    _UNHELD = _count_unheld() if READS_PACKED else 0
