"""The dispatch mode that turns a CPU run into the allocations of a CUDA run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memlab.as_cuda import attention, cells, composites, norms, optimizers
from memlab.as_cuda.gpu import Gpu
from memlab.as_cuda.scratch import scratch
from memlab.as_cuda.temporaries import KERNELS, aten
from memlab.as_cuda.workspaces import PRODUCTS, in_backward, workspace_bytes
from memlab.card_ledger import CardLedger
from memlab.probes.storages import FRESH, Mode, outputs_of

_sequence_nr = torch._C._autograd._get_sequence_nr
STAND_INS: dict[Any, Any] = {**attention.STAND_INS, **norms.STAND_INS, **cells.STAND_INS}
# Outputs that are on the host on CUDA too: seed and offset of the random stream.
HOST_OUTPUTS = {aten._scaled_dot_product_efficient_attention.default: (2, 3)}


class CudaMode(Mode):
    """Sees every operator, calls its stand-in where CUDA has another kernel, and allocates what that kernel would.

    Attributes:
        workspaces: the cuBLAS workspaces taken so far: of the ``"forward"`` thread, of the ``"backward"`` thread.
        met: operators with internal allocations that ran; ran: all operators that ran.
        before_backward: called before the first operator of each backward.
    """

    ledger: CardLedger

    def __init__(self, ledger: CardLedger, gpu: Gpu) -> None:
        super().__init__(ledger)
        self.gpu = gpu
        self.workspaces: dict[str, int] = {}
        self.met: set[Any] = set()
        self.ran: set[Any] = set()
        self.before_backward: Callable[[], None] | None = None
        self._task = -1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        composite: Any = composites.COMPOSITES.get(func)
        if composite is not None:  # in inference mode nothing above has taken it apart
            with self:
                return composite(*args, **(kwargs or {}))
        self.ran.add(func)
        if self.before_backward is not None:
            self._look(self.before_backward)
        ledger, sequence, grad = self.ledger, _sequence_nr(), torch.is_grad_enabled()
        ledger.here.operators.runs(func, sequence, grad)
        call: Any = STAND_INS.get(func) or (norms.HALF_STAND_INS.get(func) if _any_half(args) else None) or func
        out = call(*args, **(kwargs or {}))
        self._see(func, out, args, sequence)
        if func in KERNELS or func in PRODUCTS:
            self._run_kernel(func, args, out)
        return out

    def _see(self, func: Any, out: Any, args: tuple[Any, ...], sequence: int) -> None:
        # torch.tensor(...) fills its storage unseen and lifts it: on a device that is an allocation.
        outputs = FRESH if func is aten.lift_fresh.default else outputs_of(func)
        if isinstance(out, Tensor):
            if not (out.dim() == 0 and optimizers.on_host()):
                self.see(func, out, sequence, outputs, args)
        elif isinstance(out, (tuple, list)):
            host = HOST_OUTPUTS.get(func, ())
            for index, each in enumerate(out):
                if isinstance(each, Tensor) and index not in host:
                    self.see(func, each, sequence, outputs, args)

    def _look(self, before_backward: Callable[[], None]) -> None:
        task = torch._C._current_graph_task_id()
        if task not in (-1, self._task):
            self._task = task
            before_backward()

    def _run_kernel(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        kernel = KERNELS.get(func)
        with scratch(self.ledger) as use:
            if kernel is not None:
                self.met.add(func)
                kernel(use, self.gpu, args, out)
            if func in PRODUCTS:
                self._take_workspace()

    def _take_workspace(self) -> None:
        thread = "backward" if in_backward() else "forward"
        if thread not in self.workspaces:
            size = self.workspaces[thread] = workspace_bytes(self.gpu.capability)
            self.ledger.take(size)


def _any_half(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].dtype in norms.HALF
