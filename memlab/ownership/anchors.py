"""The Python objects that lead to autograd graphs: tensors, gradients with a graph of their own, nodes kept by name."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memlab import graph
from memlab.ownership import look

_base: Any = torch._C.TensorBase
_grad_fn, _grad, _is_leaf = _base.grad_fn.__get__, _base.grad.__get__, _base.is_leaf.__get__
_TENSOR, _NODE, _OTHER = range(3)


@dataclass
class Anchors:
    """What was found; holds it, so it is for one search only.

    Attributes:
        things: tensors and nodes that lead to a graph.
        nodes: the node that each leads to.
        grads: pairs of a tensor and its gradient, of those that have a graph.
        maybe: nodes that either C++ holds, or one Python reference.
        plain: tensors that were asked for and lead to no graph, or do.
    """

    things: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    grads: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    maybe: list[Any] = field(default_factory=list)
    plain: list[Tensor] = field(default_factory=list)

    @property
    def own(self) -> set[int]:
        """Identities of the containers here, which hold what others are asked about."""
        return {id(each) for each in (self.things, self.nodes, self.grads, self.maybe, self.plain, *self.grads)}


def find(is_wanted: Callable[[Tensor], bool] | None = None) -> Anchors:
    """Walk the heap once; ``is_wanted`` says which plain tensors are wanted, too."""
    found = Anchors()
    kinds: dict[int, tuple[type, int]] = {}
    tensors: list[Tensor] = []  # asked for their nodes only once all nodes are judged by their references
    with torch._C.DisableTorchFunctionSubclass():
        for thing in gc.get_objects():
            kind = type(thing)
            known = kinds.get(id(kind))
            if known is None:
                known = kinds[id(kind)] = (kind, _category(thing))
            if known[1] == _TENSOR:
                tensors.append(thing)
            elif known[1] == _NODE:
                if sys.getrefcount(thing) > _UNHELD_NODE:
                    found.things.append(thing)
                    found.nodes.append(thing)
                else:
                    found.maybe.append(thing)
        for tensor in tensors:
            _add_tensor(found, tensor, is_wanted)
    return found


def _category(thing: Any) -> int:
    if look.is_a(thing, Tensor):
        return _TENSOR
    return _NODE if look.is_node(type(thing)) else _OTHER


def _add_tensor(found: Anchors, tensor: Tensor, is_wanted: Callable[[Tensor], bool] | None) -> None:
    try:
        node = _grad_fn(tensor)
        if node is not None:
            found.things.append(tensor)
            found.nodes.append(node)
        elif _is_leaf(tensor) and (grad := _grad(tensor)) is not None and (node := _grad_fn(grad)) is not None:
            found.things.append(grad)
            found.nodes.append(node)
            found.grads.append((tensor, grad))
        if is_wanted is not None and is_wanted(tensor):
            found.plain.append(tensor)
    except RuntimeError:  # a wrapper of torch.func, or a tensor whose storage is gone
        return


def _count_unheld_node() -> int:
    """Return what `find` sees of a node that only C++ holds."""
    with torch.inference_mode(False), torch.enable_grad():
        tensor = torch.ones(1, device="cpu", requires_grad=True).exp()
    name = id(_grad_fn(tensor))
    for thing in gc.get_objects():
        if id(thing) == name:
            return sys.getrefcount(thing)
    return 3


with torch._C._DisableTorchDispatch():
    _UNHELD_NODE = _count_unheld_node() if graph.NODES_KEEP_WRAPPERS else 0
