"""Walk an autograd graph: its nodes and what each keeps for backward.

Every walk is iterative: a graph of a million nodes neither recurses nor takes more than seconds. Walking reads what
nodes hold as it is packed; it never runs an unpack hook, so it recomputes, copies and frees nothing.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import GetSetDescriptorType
from typing import Any

import torch
from torch import Tensor

from memlab import deep

_mro, _namespace = type.__dict__["__mro__"].__get__, type.__dict__["__dict__"].__get__


def nodes(roots: Iterable[Tensor | Any]) -> Iterator[Any]:
    """Yield every autograd node that ``roots`` (tensors or nodes) lead to, once each."""
    stack = [_node_of(root) for root in roots]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)


class Tour:
    """Autograd nodes as a tour meets them, and which leads to which, as numbers.

    Attributes:
        nodes: the nodes met, breadth first: what has been met may not have been read yet.
        number: the number of each, by its ``id()``.
        following: for each node that was read, the numbers of those that it leads to.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.number: dict[int, int] = {}
        self.following: list[Sequence[int]] = []

    def meet(self, roots: Iterable[Any]) -> None:
        """Add nodes to start from, those that are not known yet."""
        for root in roots:
            if id(root) not in self.number:
                self.number[id(root)] = len(self.nodes)
                self.nodes.append(root)

    def read(self) -> Iterator[Any]:
        """Yield every node that was not read before, once what it leads to is known; break off at any time."""
        nodes, number = self.nodes, self.number
        for node in itertools.islice(nodes, len(self.following), None):  # grows meanwhile
            numbers = []
            for each, _ in node.next_functions:
                if each is not None:
                    known = number.setdefault(id(each), len(nodes))
                    if known == len(nodes):
                        nodes.append(each)
                    numbers.append(known)
            self.following.append(numbers)
            yield node

    @property
    def unread(self) -> int:
        """How many nodes were met and not read."""
        return len(self.nodes) - len(self.following)

    def end(self) -> list[int]:
        """Return all numbers, each before those that it leads to; what was not read leads nowhere.

        Keeps torch from freeing a deep graph recursively, now that Python has seen its nodes (see `memlab.deep`).
        """
        self.following.extend([()] * self.unread)
        waiting = Counter(itertools.chain.from_iterable(self.following))
        order = [number for number in range(len(self.nodes)) if number not in waiting]
        for number in order:  # grows meanwhile
            for each in self.following[number]:
                waiting[each] -= 1
                if not waiting[each]:
                    order.append(each)
        if NODES_KEEP_WRAPPERS and len(order) > SHALLOW:
            deep.cut(self.nodes, self.following, order)
        return order


def _keeps_wrappers() -> bool:
    with torch.inference_mode(False), torch.enable_grad():
        tensor = torch.ones(1, device="cpu", requires_grad=True).exp()
    node = tensor.grad_fn
    return sys.getrefcount(node) > 2


SHALLOW = 10_000  # nodes: a graph of no more is freed recursively without harm


def _node_of(root: Any) -> Any:
    return root.grad_fn if isinstance(root, Tensor) else root


with torch._C._DisableTorchDispatch():
    NODES_KEEP_WRAPPERS = _keeps_wrappers()


def tensors_among(things: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among ``things``, without asking any thing but its type."""
    return list(_of(things, _is_tensor))


def live_nodes(roots: Iterable[Any] = (), limit: int = 2 * SHALLOW) -> Iterator[Any]:
    """Yield the autograd nodes, at most ``limit``, that Python's tensors and nodes lead to, and gradients of leaves.

    Walks the heap, and ``roots`` (tensors or nodes) besides. A node that only C++ holds (in a container of an
    extension, say) is not found. The limit keeps graphs that Python has seen so shallow that torch can free them.
    """
    with torch._C.DisableTorchFunctionSubclass():
        found = [*roots, *_of(gc.get_objects(), lambda kind: _is_tensor(kind) or _is_node(kind))]
        leaves = [each for each in tensors_among(found) if each.is_leaf]
        found.extend(each.grad for each in leaves if each.grad is not None)  # Python need not know a gradient
        del leaves
        yield from itertools.islice(nodes(found), limit)


def count_live_nodes(roots: Iterable[Any] = ()) -> int:
    """Return how many `live_nodes` there are."""
    return sum(1 for _ in live_nodes(roots))


def _is_tensor(kind: type) -> bool:
    return any(each is Tensor for each in _mro(kind))


def _is_node(kind: type) -> bool:
    return any(type(_namespace(each).get("next_functions")) is GetSetDescriptorType for each in _mro(kind))


def _of(things: Iterable[Any], wanted: Callable[[type], bool]) -> Iterator[Any]:
    """Yield the things whose type is wanted; each type is asked about once."""
    known: dict[int, tuple[type, bool]] = {}  # by id: a metaclass may define __hash__
    for thing in things:
        kind = type(thing)
        found = known.get(id(kind))
        if found is None:
            found = known[id(kind)] = (kind, wanted(kind))
        if found[1]:
            yield thing
