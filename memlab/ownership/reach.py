"""What each of many tensors' graphs keeps: every node is visited once, and what is shared is known to be shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from memlab import billing, graph
from memlab.hooks import Packed
from memlab.ledger import NO_CODE
from memlab.lines import GIVEN


@dataclass
class Reached:
    """What is reached by one group of owners together, and by no other."""

    bytes: int = 0
    tensors: int = 0
    nodes: int = 0
    places: Counter[tuple[Any, int]] = field(default_factory=Counter)  # bytes by code and instruction


class _Storages(billing.Walk):
    """A walk that also remembers which storages each node keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []

    def _add(self, tensor: Tensor, packed: Packed | None, node: Any, name: str, *, held: bool) -> None:
        super()._add(tensor, packed, node, name, held=held)
        key = graph.key_of(tensor)
        if key is not None:
            self.kept.append(key)

    def counted(self) -> Iterator[tuple[int, int, Any]]:
        """Yield key, bytes and place of each storage that is not given."""
        for key, (tensor, packed, name) in self._found.items():
            origin = packed.origin() if packed is not None else None
            if origin is not None:
                if origin.kind not in GIVEN:
                    yield key, origin.bytes, (origin.code, origin.instruction)
            elif self._kind(key, tensor, name) not in GIVEN:
                yield key, tensor.untyped_storage().nbytes(), NO_CODE


class Graphs:
    """The graphs of some nodes, as numbers: nothing of them is held.

    Args:
        roots: nodes to start from.
        maybe: nodes that count as roots if none of those leads to them.

    Attributes:
        more: which of ``maybe`` are roots; the caller clears it.
        number: the number of each node, by ``id()`` of its Python object.
        variables: numbers of the nodes that accumulate into a leaf, by ``id()`` of the leaf.
    """

    def __init__(self, roots: Iterable[Any], maybe: Iterable[Any] = ()) -> None:
        walk = _Storages()
        index: dict[Any, int] = {}
        nodes: list[Any] = []
        self._children: list[tuple[int, ...]] = []
        self._children_first: list[int] = []
        self._kept: dict[int, list[int]] = {}
        self.variables: dict[int, int] = {}
        for root in roots:
            if root not in index:
                self._descend(root, index, nodes)
        self.more = []
        for root in maybe:
            if root not in index:
                self._descend(root, index, nodes)
                self.more.append(root)
        for number, node in enumerate(nodes):
            walk.kept = []
            walk.visit(node)
            if walk.kept:
                self._kept[number] = walk.kept
            elif (variable := getattr(node, "variable", None)) is not None:
                self.variables[id(variable)] = number
        self._storages = {key: (nbytes, place) for key, nbytes, place in walk.counted()}
        self.number = {id(node): number for node, number in index.items()}
        graph.free_in_order(nodes)

    def _descend(self, root: Any, index: dict[Any, int], nodes: list[Any]) -> None:
        def enter(node: Any) -> tuple[int, list[Any], Iterator[Any]]:
            index[node] = len(nodes)
            nodes.append(node)
            self._children.append(())
            following = [each for each, _ in node.next_functions if each is not None]
            return index[node], following, iter(following)

        stack = [enter(root)]
        while stack:
            number, following, left = stack[-1]
            new = next((each for each in left if each not in index), None)
            if new is not None:
                stack.append(enter(new))
            else:
                stack.pop()
                self._children[number] = tuple(index[each] for each in following)
                self._children_first.append(number)

    def spread(self, masks: dict[int, int]) -> list[int]:
        """Return for each node the owners that reach it, as bits; ``masks`` says who holds which node."""
        found = [0] * len(self._children)
        for number, mask in masks.items():
            found[number] |= mask
        for number in reversed(self._children_first):
            mask = found[number]
            if mask:
                for child in self._children[number]:
                    found[child] |= mask
        return found

    def storages(self, masks: list[int]) -> dict[int, int]:
        """Return for each storage that a node keeps the owners that reach it, given ones included."""
        found: dict[int, int] = {}
        for number, kept in self._kept.items():
            for key in kept:
                found[key] = found.get(key, 0) | masks[number]
        return found

    def totals(self, masks: list[int]) -> dict[int, Reached]:
        """Return what is kept, grouped by the set of owners (bits) that reach it."""
        totals: defaultdict[int, Reached] = defaultdict(Reached)
        for number, mask in enumerate(masks):
            reached = totals[mask]
            reached.nodes += 1
            reached.tensors += sum(key in self._storages for key in self._kept.get(number, ()))
        for key, mask in self.storages(masks).items():
            if key in self._storages:
                nbytes, place = self._storages[key]
                totals[mask].bytes += nbytes
                totals[mask].places[place] += nbytes
        return dict(totals)
