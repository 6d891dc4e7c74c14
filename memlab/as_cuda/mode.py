"""The dispatch mode that turns a CPU run into the allocations of a CUDA run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memlab import formulas, versions
from memlab.as_cuda import attention, cells, composites, norms, optimizers
from memlab.as_cuda.assigning import Assigned, fills
from memlab.as_cuda.bars import Bars, Bound, bound_of
from memlab.as_cuda.gpu import Gpu
from memlab.as_cuda.ordering import EARLY
from memlab.as_cuda.scratch import Kernel, in_order, scratch
from memlab.as_cuda.temporaries import KERNELS, aten
from memlab.as_cuda.workspaces import (
    are_kept,
    call_bytes,
    in_backward,
    lt_bytes,
    multiplies,
    takes_lt_workspace,
    takes_workspace,
    workspace_bytes,
)
from memlab.card_ledger import CardLedger
from memlab.dispatch import Mode
from memlab.outputs import FRESH, VIEW, is_fresh, outputs_of

_sequence_nr = torch._C._autograd._get_sequence_nr
STAND_INS: dict[Any, Any] = {**attention.STAND_INS, **norms.STAND_INS, **cells.STAND_INS}
# Seed and offset of the random stream: on the host up to torch 2.13 and with dropout, else on the device, made first.
_RANDOM = {aten._scaled_dot_product_efficient_attention.default: (2, 3)}
DROPOUT = 5  # its argument


# Outputs that CUDA's kernel allocates in another order than it returns them.
LAST_FIRST = {
    aten.native_dropout.default,
    aten._thnn_fused_lstm_cell.default,
    aten._thnn_fused_gru_cell.default,
}


class Inside(NamedTuple):
    """What an operator's kernel allocates inside: before its output is there, then, and in cuBLAS's workspace."""

    early: Kernel | None
    kernel: Kernel | None
    multiplies: bool
    bound: Bound | None


def _inside(operator: Any) -> Inside | None:
    found = Inside(EARLY.get(operator), KERNELS.get(operator), multiplies(operator), bound_of(operator))
    return found if any(found) else None


class CudaMode(Mode):
    """Sees every operator, calls its stand-in where CUDA has another kernel, and allocates what that kernel would.

    Attributes:
        workspaces: the cuBLAS workspaces that are kept: of the ``"forward"`` thread, of the ``"backward"`` thread, and
            of as many others as multiplied at a time.
        lt_workspaces: likewise, cuBLASLt's own, where it has any.
        bars: what operators may have taken beside what is counted.
        before_backward: called before the first operator of each backward.
    """

    ledger: CardLedger

    def __init__(self, ledger: CardLedger, gpu: Gpu) -> None:
        super().__init__(ledger)
        self.gpu = gpu
        self.workspaces: dict[str, int] = {}
        self.lt_workspaces: dict[str, int] = {}
        self.bars = Bars()
        self.idle: list[str] = []  # whose workspaces threads have left to the next that multiplies
        self._ran: dict[int, tuple[Any, Inside | None]] = {}  # by id: an operator's own hash is Python code
        self.before_backward: Callable[[], None] | None = None
        self.casts = False  # autocast was on
        self._assigned = Assigned()
        self._task = -1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        composite: Any = composites.COMPOSITES.get(func)
        if composite is not None:  # in inference mode nothing above has taken it apart
            with self:
                return composite(*args, **(kwargs or {}))
        ran = self._ran.get(id(func))
        if ran is None:
            if _is_whole(func):
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            ran = self._ran[id(func)] = (func, _inside(func))
        self.casts = self.casts or _autocasts(func, kwargs)
        inside = ran[1] if _all_strided(args) else None  # the ledger says that it does not count other layouts
        if func is aten.index_put_.default and args[2] in self._assigned and fills(args[1]):
            inside = None
        given = args if inside is None else in_order(func, args, kwargs)
        if inside is not None and inside.early is not None:
            with self.ledger.alone, scratch(self.ledger) as use:
                inside.early(use, self.gpu, given, None)
        if self.before_backward is not None:
            self._look(self.before_backward)
        ledger, sequence, grad = self.ledger, _sequence_nr(), torch.is_grad_enabled()
        ledger.here.operators.runs(func, sequence, grad)
        operator, out = self._run(func, args, kwargs or {})
        if func is aten.lift_fresh.default and self._assigned.see(out, _caller()):
            return out
        with ledger.alone:
            self._see(operator, out, args, sequence)
            if inside is not None:
                self._run_kernel(func, inside, given, out)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Run it as on CUDA, without a mode; return the operator that ran, and its outputs."""
        operators = self.ledger.here.operators
        in_place = formulas.in_place(func, args, kwargs, operators) if func in formulas.IN_PLACE else None
        if in_place is not None:
            operator, given = in_place
            return operator, operator(*given)
        call: Any = STAND_INS.get(func) or (norms.HALF_STAND_INS.get(func) if _any_half(args) else None) or func
        out = call(*args, **kwargs)
        if func in formulas.ZEROS:
            formulas.made_zeros(operators, out)
        return func, out

    @property
    def ran(self) -> set[Any]:
        """All operators that ran."""
        return {func for func, _ in self._ran.values()}

    def note(self, operator: Any) -> None:
        """Count an operator among those that ran, of which only the parts were seen."""
        self._ran.setdefault(id(operator), (operator, None))

    def _see(self, func: Any, out: Any, args: tuple[Any, ...], sequence: int) -> None:
        # torch.tensor(...) fills its storage unseen and lifts it: on a device that is an allocation.
        outputs = FRESH if func is aten.lift_fresh.default else outputs_of(func)
        if isinstance(out, Tensor):
            if not (out.dim() == 0 and optimizers.on_host()):
                self._see_one(func, out, sequence, outputs, args)
        elif isinstance(out, (tuple, list)):
            for index in _order(func, len(out), args):
                if isinstance(out[index], Tensor):
                    self._see_one(func, out[index], sequence, outputs, args)

    def _see_one(self, func: Any, out: Tensor, sequence: int, outputs: int, args: tuple[Any, ...]) -> None:
        if outputs != VIEW:
            self.ledger.see(out, sequence, is_fresh(out, outputs, args), func)

    def _look(self, before_backward: Callable[[], None]) -> None:
        task = torch._C._current_graph_task_id()
        if task not in (-1, self._task):
            self._task = task
            before_backward()

    def _run_kernel(self, func: Any, inside: Inside, args: Sequence[Any], out: Any) -> None:
        with scratch(self.ledger) as use:
            if func is aten.index_put_.default and args[2] in self._assigned:
                use.take(args[2].element_size())  # it is brought to the card
            if inside.kernel is not None:
                inside.kernel(use, self.gpu, args, out)
            if inside.multiplies and not are_kept():
                use.take(call_bytes(self.gpu.capability, func, args, out))
            elif inside.multiplies and takes_workspace(func, args):
                self._take_workspaces(takes_lt_workspace(func, args, out))
            if inside.bound is not None:
                self.bars.see(func, use.highest + inside.bound.of(args, out))

    def _take_workspaces(self, lt: bool) -> None:
        thread = "backward" if in_backward() else self._handle()
        if not lt or versions.until_2_11():
            self._take(self.workspaces, thread, workspace_bytes)
        if lt:
            self._take(self.lt_workspaces, thread, lt_bytes)

    def _take(self, taken: dict[str, int], thread: str, size: Callable[[tuple[int, int]], int]) -> None:
        if thread not in taken:
            nbytes = size(self.gpu.capability)
            self.ledger.take(nbytes)
            taken[thread] = nbytes

    def _handle(self) -> str:
        return "forward"


class CudaThreadMode(CudaMode):
    """The same run in another thread, which may live on when the run has ended; backward's thread is one for all."""

    def __init__(self, main: CudaMode) -> None:
        super().__init__(main.ledger, main.gpu)
        self.workspaces, self.lt_workspaces = main.workspaces, main.lt_workspaces
        self.bars, self.idle, self._ran = main.bars, main.idle, main._ran
        self.before_backward = main.before_backward
        self._main, self._own = main, ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.ledger.recording:
            return func(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self._main.casts = self._main.casts or self.casts
        return out

    def leave_handle(self) -> None:
        """Let the next thread that multiplies have this one's cuBLAS handle, as torch does at a thread's end."""
        if self._own:
            self.idle.append(self._own)

    def _handle(self) -> str:
        if not self._own:
            self._own = self.idle.pop() if self.idle else f"thread {len(self.workspaces | self.lt_workspaces)}"
        return self._own


def _order(func: Any, count: int, args: Sequence[Any]) -> Sequence[int]:
    """Return the places of the outputs that are on the device, in the order in which CUDA's kernel allocates them."""
    if func in LAST_FIRST:
        return range(count)[::-1]
    random = _RANDOM.get(func, ())
    others = [place for place in range(count) if place not in random]
    drops = bool(random) and len(args) > DROPOUT and args[DROPOUT] > 0
    return [*random, *others] if versions.from_2_14() and not drops else others


def _is_whole(func: Any) -> bool:
    """Whether this is an operator that autograd takes apart, as nothing does in inference mode."""
    return (
        torch.is_inference_mode_enabled()
        and func.namespace == "aten"
        and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")
    )


def _caller() -> FrameType | None:
    """Return the frame that called the operator: the nearest one outside this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    return frame


def _autocasts(func: Any, kwargs: dict[str, Any] | None) -> bool:
    """Whether autocast makes this copy. Below autocast it looks switched off; how deep one is in it can be told."""
    if func is not aten._to_copy.default or (kwargs or {}).get("dtype") not in norms.HALF:
        return False
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return bool(depth > 0)


def _all_strided(args: tuple[Any, ...]) -> bool:
    return all(each.layout == torch.strided for each in args if isinstance(each, Tensor))


def _any_half(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].dtype in norms.HALF
