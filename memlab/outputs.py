"""What an operator's outputs are, by its schema."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from memlab.origins import storage_key

# Storages of its own, views of its inputs, the inputs it writes to; or not known, for operators outside aten that may
# break their schema's promise. torch.tensor(...) fills a storage unseen and has ``lift_fresh`` return it. Python makes
# one for copy.deepcopy(tensor) and pickle.loads(...), and has ``set_`` place a tensor on it.
FRESH, VIEW, WRITTEN, DOUBTFUL, LIFTED, PLACED = range(6)

# Their schemas promise a fresh output, but they return an alias of their input.
_ALIASING = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift", "aten::_reshape_from_tensor"}
_ALIASING |= {"aten::unsafe_split", "aten::unsafe_split_with_sizes", "aten::unsafe_chunk"}

_PLACING = {("aten::set_", "source_Storage"), ("aten::set_", "source_Storage_storage_offset")}

# By id, for an operator's own hash is Python code; each with its operator, so that ids stay.
_known: dict[int, tuple[Any, int]] = {}


def outputs_of(func: Any) -> int:
    """Return what an operator's outputs are: FRESH, VIEW, WRITTEN, DOUBTFUL, LIFTED or PLACED."""
    known = _known.get(id(func))
    if known is None:
        known = _known[id(func)] = func, _outputs_of(func)
    return known[1]


def _outputs_of(func: Any) -> int:
    return outputs_by(func._schema) if isinstance(func, OpOverload) else DOUBTFUL


def outputs_by(schema: Any) -> int:
    """Return what outputs are by a schema."""
    if not schema.name.startswith("aten::"):
        return DOUBTFUL
    if schema.name == "aten::lift_fresh":
        return LIFTED
    if (schema.name, schema.overload_name) in _PLACING:
        return PLACED
    aliases = [returned.alias_info for returned in schema.returns]
    if any(alias is not None and alias.is_write for alias in aliases):
        return WRITTEN
    return VIEW if any(alias is not None for alias in aliases) or schema.name in _ALIASING else FRESH


def is_fresh(out: Tensor, outputs: int, args: tuple[Any, ...]) -> bool:
    """Whether an output has a storage of its own; ``outputs`` is what `outputs_of` says of its operator."""
    if outputs == LIFTED:  # torch.from_numpy and its like wrap memory that is not torch's to resize
        return out.layout is torch.strided and out.untyped_storage().resizable()
    if outputs == PLACED:
        return _is_alone(out)
    return outputs == FRESH or (outputs == DOUBTFUL and not _is_alias(out, args))


def _is_alias(out: Tensor, args: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Tensor) and storage_key(each) == storage_key(out) for each in args)


class _References(TorchDispatchMode):
    """Counts the references to a storage that one tensor was just placed on: dispatch on its way down has some."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `memlab.dispatch`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.counted = torch._C._storage_Use_Count(out.untyped_storage()._cdata)
        return out


def _references(*, inference: bool) -> int:
    mode: Any = _References  # torch declares no types for a mode's making and entering
    with _disable_current_modes(), torch.inference_mode(inference):
        tensor, storage = torch.empty(0, device="cpu"), torch.UntypedStorage(1, device="cpu")
        with mode() as counts:
            tensor.set_(storage)
    return int(counts.counted)


_REFERENCES = {inference: _references(inference=inference) for inference in (False, True)}


def _is_alone(placed: Tensor) -> bool:
    """Whether no other tensor has the storage that this one was just placed on.

    Under a dispatch mode of the user's there are more references, and none is alone. Not told apart: a tensor that is
    placed on its own storage once more.
    """
    references = int(torch._C._storage_Use_Count(placed.untyped_storage()._cdata))
    return references <= _REFERENCES[torch.is_inference_mode_enabled()]
