"""The Python objects that lead to autograd graphs: tensors, gradients with a graph of their own, nodes kept by name."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from memlab import deep, graph, sparse
from memlab.node_names import READS_PACKED, saved_by
from memlab.ownership import look

_base: Any = torch._C.TensorBase
_use_count = _base._use_count
_grad_fn, _grad, _is_leaf = _base.grad_fn.__get__, _base.grad.__get__, _base.is_leaf.__get__
_OTHER, _TENSOR, _NODE, _CUT = range(4)


@dataclass
class Anchors:
    """What was found; holds it, so it is for one search only.

    Attributes:
        things: tensors and nodes that lead to a graph.
        nodes: the node that each leads to.
        grads: pairs of a tensor and its gradient, of those that have a graph.
        maybe: nodes that either C++ holds, or one Python reference; nodes of tensors that only C++ holds, such as
            those that a graph has saved and an earlier look has seen.
        plain: tensors that were asked for and lead to no graph, or do.
        parts: pairs of a sparse tensor and one that it is made of, of those that were asked for.
        left_out: how many things were found and are not here.
        walked: seconds that the walk over the heap took.
        judged: seconds that one tensor or node took which was then asked for its graph.
    """

    things: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    grads: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    maybe: list[Any] = field(default_factory=list)
    plain: list[Tensor] = field(default_factory=list)
    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    left_out: int = 0
    walked: float = 0.0
    judged: float = 0.0

    def thin(self, most: int) -> None:
        """Leave at most so many things, from all over the heap."""
        count = len(self.things)
        if count > most:
            places = [number * count // most for number in range(most)]
            self.things[:] = [self.things[place] for place in places]
            self.nodes[:] = [self.nodes[place] for place in places]
            self.maybe.clear()  # what is left out may lead to them
            self.left_out = count - most

    @property
    def own(self) -> set[int]:
        """Identities of the containers here, which hold what others are asked about."""
        lists = self.things, self.nodes, self.grads, self.maybe, self.plain, self.parts
        return {id(each) for each in (*lists, *self.grads, *self.parts)}


def find(wanted: Callable[[list[Tensor]], Iterable[Tensor]] | None = None) -> Anchors:
    """Walk the heap once; ``wanted`` says which of all tensors are wanted, whether they lead to a graph or not."""
    found = Anchors()
    tensors: list[Tensor] = []  # asked for their nodes only once all nodes are judged by their references
    held: list[tuple[Any, int]] = []
    cuts: Counter[int] = Counter()
    began = time.perf_counter()
    with torch._C.DisableTorchFunctionSubclass():
        objects = gc.get_objects()
        kinds = list(map(id, map(type, objects)))
        categories = {each: _category(thing) for each, thing in dict(zip(kinds, objects, strict=True)).items()}
        thing: Any = None
        for thing in compress(objects, map(categories.__getitem__, kinds)):
            category = categories.get(id(type(thing)))
            if category == _TENSOR:
                tensors.append(thing)
            elif category == _NODE:
                references = sys.getrefcount(thing) - _UNHELD_NODE
                if references > 0:
                    held.append((thing, references))
                else:
                    found.maybe.append(thing)
            elif category == _CUT:
                cuts.update(map(id, thing.successors))
        del objects, thing  # else they would count as references
        walked, asked = time.perf_counter(), len(held) + len(tensors)
        for node, references in held:
            if references > cuts[id(node)]:
                found.things.append(node)
                found.nodes.append(node)
            else:
                found.maybe.append(node)
        held.clear()
        for tensor in tensors:
            unheld = sys.getrefcount(tensor) <= _UNHELD_TENSOR and _use_count(tensor) > 1
            _add_tensor(found, tensor, unheld=unheld)
        if wanted is not None:
            found.plain.extend(wanted(tensors))
            _add_parts(found, tensors, wanted)
    found.walked = walked - began
    found.judged = (time.perf_counter() - walked) / max(1, asked)
    return found


def _category(thing: Any) -> int:
    if look.is_a(thing, Tensor):
        return _TENSOR
    if look.is_exactly(thing, deep.Cut):
        return _CUT
    return _NODE if look.is_node(type(thing)) else _OTHER


def _add_tensor(found: Anchors, tensor: Tensor, *, unheld: bool) -> None:
    try:
        node = _grad_fn(tensor)
        if node is not None and unheld:
            found.maybe.append(node)
        elif node is not None:
            found.things.append(tensor)
            found.nodes.append(node)
        elif _is_leaf(tensor) and (grad := _grad(tensor)) is not None and (node := _grad_fn(grad)) is not None:
            found.things.append(grad)
            found.nodes.append(node)
            found.grads.append((tensor, grad))
    except RuntimeError:  # a wrapper of torch.func, or a tensor whose storage is gone
        return


def _add_parts(found: Anchors, tensors: list[Tensor], wanted: Callable[[list[Tensor]], Iterable[Tensor]]) -> None:
    for tensor in tensors:
        parts = sparse.parts(tensor)
        if parts:
            asked = list(wanted(parts))
            found.plain.extend(asked)
            found.parts.extend((tensor, each) for each in asked)


def _count_unheld_node() -> int:
    """Return what `find` sees of a node that only C++ holds."""
    with torch.inference_mode(False), torch.enable_grad():
        tensor = torch.ones(1, device="cpu", requires_grad=True).exp()
    name = id(_grad_fn(tensor))
    for thing in gc.get_objects():
        if id(thing) == name:
            return sys.getrefcount(thing)
    return 3


def _count_unheld_tensor() -> int:
    """Return what `find` sees of a tensor that only C++ holds; 0 where one Python reference looks the same."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, device="cpu", requires_grad=True)
        node = _grad_fn(one.exp())
        (saved,) = (id(data) for _, data in saved_by(node))
        other = torch.ones(1, device="cpu")
        nodes = node, _grad_fn(one * other)
    tensors = [each for each in gc.get_objects() if id(each) in (saved, id(other))]
    counts = {}
    for tensor in tensors:
        counts[id(tensor)] = sys.getrefcount(tensor)
    del nodes
    is_told = counts.keys() == {saved, id(other)} and counts[saved] < counts[id(other)]
    return counts[saved] if is_told else 0


with torch._C._DisableTorchDispatch():
    _UNHELD_NODE = _count_unheld_node() if graph.NODES_KEEP_WRAPPERS else 0
    _UNHELD_TENSOR = _count_unheld_tensor() if graph.NODES_KEEP_WRAPPERS and READS_PACKED else 0
