"""What autograd does in place where no dispatch mode is on, and out of place while one is.

While one is on, autograd takes every tensor for one of a subclass (``at::isTensorSubclassLike``), and does not write
to its own temporaries. The formulas that spread a gradient over zeros make a second tensor of the input's whole size:
those of index, gather, index_select, take, max, median, sort, topk, cummax and their like (FunctionsManual.cpp). And
the engine makes a new tensor for each sum of two gradients of one tensor (``accumulate``, input_buffer.cpp). So that a
mode sees what torch does without it, here is when these may write in place after all.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from memlab import hook_stack
from memlab.node_names import READS_PACKED, saved_by
from memlab.operators import Operators
from memlab.origins import WRAPPER_REFERENCES

aten = torch.ops.aten
ZEROS = {aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default}
IN_PLACE = {
    aten.index_put.default: aten._index_put_impl_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.put.default: aten.put_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.add.Tensor: aten.add_.Tensor,
}
SUM = aten.add.Tensor
MOST_NODES = 4096  # asked in one backward: from torch 2.13 on, what Python has seen is freed recursively
_graph_task = torch._C._current_graph_task_id
_TEMPORARY: dict[Any, tuple[int, int]] = {}  # references of Python and C++ to autograd's own, by operator
_node: Any = torch._C._current_autograd_node


def made_zeros(operators: Operators, out: Tensor) -> None:
    """Remember the newest zeros of this thread; ``out`` is what an operator of `ZEROS` returned."""
    if type(out) is Tensor and out.layout is torch.strided:
        operators.zeros = weakref.ref(out.untyped_storage())


def in_place(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, operators: Operators
) -> tuple[Any, tuple[Any, ...]] | None:
    """Return operator and arguments by which autograd without a mode would run ``func``, one of `IN_PLACE`.

    None if it would run it as it is. Autograd's temporaries are those that nobody else has: neither Python code, such
    as the backward of a custom Function, nor a wrapper in C++, such as vmap's. Hot path.
    """
    if not _has_own(args, kwargs, _TEMPORARY.get(func)):
        return None
    if not (_sums_gradients(args, operators) if func is SUM else _newest_zeros(args[0], operators)):
        return None
    return IN_PLACE[func], (*args, True) if func is aten.index_put.default else args


def adds_in_place(
    args: tuple[Any, ...], kwargs: dict[str, Any], operators: Operators, temporary: tuple[int, int]
) -> bool:
    """Whether the engine, which runs `SUM`, would write to the first of ``args`` if no Python object had its storage.

    ``temporary`` is how many references Python and C++ have to a tensor that is the engine's alone. Hot path.
    """
    return _has_own(args, kwargs, temporary) and _sums_gradients(args, operators)


def _has_own(args: tuple[Any, ...], kwargs: dict[str, Any] | None, temporary: tuple[int, int] | None) -> bool:
    """Whether this runs in a backward, and the first argument has just the references of one of autograd's own."""
    return (
        not kwargs
        and not torch.is_grad_enabled()
        and _graph_task() != -1
        and type(args[0]) is Tensor
        and references(args) == temporary
    )


def _newest_zeros(tensor: Tensor, operators: Operators) -> bool:
    return operators.zeros is not None and operators.zeros() is tensor.untyped_storage()


def _sums_gradients(args: tuple[Any, ...], operators: Operators) -> bool:
    """Whether it is the engine that adds these, and would write to the first.

    The engine adds when a node is done, and its saved tensors are released. Of a node that keeps them
    (``retain_graph``) it is not known, and the sum stays as it is.
    """
    one, other = args
    if not READS_PACKED or type(other) is not Tensor or not _alike(one, other) or not _has_its_storage(one):
        return False
    task = _graph_task()
    if operators.task != task:
        operators.task, operators.asked = task, 0
    operators.asked += 1
    return operators.asked <= MOST_NODES and next(saved_by(_node()), None) is None


def _alike(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and one.layout is other.layout is torch.strided
        and (one.is_contiguous() or one.stride() == other.stride())
        and not one._is_zerotensor()
    )


def _has_its_storage(tensor: Tensor) -> bool:
    key = tensor.untyped_storage()._cdata
    return int(torch._C._storage_Use_Count(key)) - WRAPPER_REFERENCES == 1


def references(args: tuple[Any, ...]) -> tuple[int, int]:
    """Return how many references Python and C++ have to the first argument."""
    return sys.getrefcount(args[0]), int(args[0]._use_count())


class _Looking(TorchDispatchMode):
    """Looks how many references there are to the temporaries of formulas, by operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `memlab.dispatch`

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[Any, tuple[int, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in IN_PLACE:
            self.found[func] = references(args)
        return func(*args, **(kwargs or {}))


def _unseen() -> Any:
    """Hold off the kernel of `memlab.kernel`."""
    keys = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("Fake"))
    return torch._C._ExcludeDispatchKeyGuard(keys)


@contextmanager
def unheard() -> Iterator[None]:
    """Let a backward in the block be no one's but ours: no mode and no hooks of others hear of it."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch._C.DisableTorchFunction(),
        _disable_current_modes(),
    ):
        hook_stack.push(lambda tensor: tensor, lambda tensor: tensor)
        try:
            yield
        finally:
            hook_stack.pop()


def learn() -> None:
    """Learn what autograd's own temporaries look like, once in a process, by a backward that nobody else sees.

    Not on import: from a process that has run a backward on a machine with a GPU, others cannot be forked.
    """
    if _TEMPORARY or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    with unheard(), _unseen(), ExitStack() as stack:
        x = torch.ones(1, device="cpu", requires_grad=True)
        first = torch.zeros(1, dtype=torch.long, device="cpu")
        outputs = [x[first], x.gather(0, first), x.index_select(0, first), x.take(first), x.max(0).values]
        outputs.append(x.exp() + x.exp())
        looking = stack.enter_context(_Looking())
        for each in outputs:
            torch.autograd.grad(each.sum(), x)
    _TEMPORARY.update(looking.found)
