"""What a test's fixtures hand to its body: tensors that are not the body's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

_DEPTH = 4


def given_storages(item: pytest.Function) -> dict[int, int]:
    """Return ``{storage key: bytes}`` of the tensors that fixtures and the test's instance hold.

    Looks into modules, optimizers, tuples, lists, dicts and plain objects, four deep; a tensor elsewhere (a global,
    say) is not a fixture's.
    """
    found: dict[int, int] = {}
    values = list((getattr(item, "funcargs", None) or {}).values())
    instance = getattr(item, "instance", None)
    if instance is not None:
        values.append(vars(instance) if hasattr(instance, "__dict__") else ())
    with torch._C.DisableTorchFunctionSubclass():
        for tensor in _tensors(values, _DEPTH, set()):
            try:
                storage = tensor.untyped_storage()
                found[int(storage._cdata)] = storage.nbytes()
            except (NotImplementedError, RuntimeError):  # sparse; lazy
                continue
    return found


def _tensors(values: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Tensor]:
    for value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), Tensor):  # isinstance would call a user's __class__ property
            yield value
            if value.is_leaf and value.grad is not None:
                yield value.grad
        elif depth:
            yield from _tensors(_inside(value), depth - 1, seen)


def _inside(value: Any) -> Iterable[Any]:
    kind = type(value)
    if issubclass(kind, (tuple, list, set, frozenset)):
        return list(value)
    if issubclass(kind, dict):
        return list(value.values())
    if issubclass(kind, Module):
        return [*value.parameters(), *value.buffers()]
    if issubclass(kind, Optimizer):
        return [state for states in value.state.values() for state in states.values()]
    if kind.__module__.split(".")[0] in ("builtins", "_pytest", "types", "torch"):
        return ()
    return list(getattr(value, "__dict__", {}).values())
