"""The name of the autograd node that an operator makes: ``addmm`` makes an ``AddmmBackward0``.

The names are learned from the graphs themselves: the first time an operator made a node, the node is asked. Once for
each operator, for from torch 2.13 on a node that Python has seen is freed recursively (see `memlab.ledger`). Where an
operator was not seen, the name counts if torch has only one that fits; otherwise it is not known.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from memlab.wrappers import PLAIN

UNKNOWN = "unknown"
_functions: Any = torch._C._functions
_FEW = 8
_RAW = "_raw_saved_"
READS_PACKED = hasattr(torch._C._autograd.SavedTensor, "data")
_saved_fields: dict[Any, list[tuple[str, str]]] = {}
_asked: Counter[int] = Counter()
_learned: dict[tuple[str, str], str] = {}
done: dict[int, Any] = {}  # operators that need no more watching, by id; kept, so ids stay
watched: dict[int, tuple[Any, weakref.ref[Tensor], int]] = {}


def watch(op: Any, out: Any, sequence: int) -> None:
    """Remember an operator's output, to ask it for its node once it has one. Hot path."""
    if isinstance(out, (tuple, list)):
        out = next((each for each in out if isinstance(each, Tensor) and each.is_floating_point()), None)
    if type(out) in PLAIN:
        watched[id(op)] = (op, weakref.ref(out), sequence)


def learn() -> None:
    """Ask the outputs that are remembered; each once."""
    while watched:
        try:
            _, (op, output, sequence) = watched.popitem()
        except KeyError:  # another thread took it
            return
        tensor = output()
        # A view that was changed in place makes its node anew when it is asked.
        node = None if tensor is None or tensor._is_view() else tensor.grad_fn
        if node is None:
            continue
        _asked[id(op)] += 1
        made = _made_by(node, op, sequence)
        if made:
            _learned[_key(op)] = node.name()
        if made or _asked[id(op)] == _FEW:  # each node that is asked is one that torch frees recursively
            done[id(op)] = op


def _made_by(node: Any, op: Any, sequence: int) -> bool:
    """Whether this is the node that was made for the operator which ran when the next number was ``sequence``."""
    name = node.name()
    if not hasattr(_functions, name):
        return False
    if node._sequence_nr() == sequence - 1:
        return True
    # An in-place operator may clone what it overwrites after its node is made: each of two operands at most.
    in_place = op._schema.name.endswith("_") and name in _candidates(_key(op)[0])
    return bool(in_place and sequence - 3 <= node._sequence_nr() < sequence)


def node_name(op: Any) -> str:
    """Return the name of the node that keeps what was saved for ``op``: an operator, or already a node's name."""
    if op is None or isinstance(op, str):
        return op or UNKNOWN
    learn()
    key = _key(op)
    if key not in _learned:
        candidates = _candidates(key[0])
        return candidates[0] if len(candidates) == 1 else UNKNOWN
    return _learned[key]


def saved_fields(kind: Any) -> list[tuple[str, str]]:
    """Return attribute and name of the fields in which nodes of this type show what they keep, packed."""
    found = _saved_fields.get(kind)
    if found is None:
        found = [(each, each.removeprefix(_RAW)) for each in dir(kind) if each.startswith(_RAW)]
        _saved_fields[kind] = found
    return found


def saved_by(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(field, what is kept)`` for each saved tensor of a node: a tensor, or what a pack hook made of it."""
    for attribute, name in saved_fields(type(node)):
        try:
            raw = getattr(node, attribute)
        except RuntimeError:  # freed by backward
            continue
        for each in raw if isinstance(raw, (tuple, list)) else (raw,):
            data = None if each is None else each.data
            if data is not None:
                yield name, data


@cache
def only_field(node: str) -> str:
    """Return the field of a node that torch generated if it has but one to save tensors in, else an empty text."""
    found = saved_fields(getattr(_functions, node, None))
    return found[0][1] if len(found) == 1 else ""


def _key(op: Any) -> tuple[str, str]:
    """An operator and its in-place twin (``mul`` and ``mul_``) make the same node."""
    return op._schema.name.removesuffix("_"), op._schema.overload_name


@cache
def _candidates(name: str) -> list[str]:
    """Return the nodes whose names say that they are of this operator."""
    namespace, _, base = name.partition("::")
    if namespace != "aten":
        return []
    camel = "".join(word.capitalize() for word in base.split("_"))
    return [each for each in dir(_functions) if re.fullmatch(rf"{camel}Backward\d+", each)]
