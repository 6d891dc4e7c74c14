"""The storages probe for a CPU run that is to allocate what CUDA would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from memlab.allocator import Allocator
from memlab.as_cuda import autocast, composites, optimizers
from memlab.as_cuda.gpu import Gpu
from memlab.as_cuda.mode import CudaMode, CudaThreadMode
from memlab.probes.storages import Storages
from memlab.unavailable import Unavailable


class CudaStorages(Storages):
    """Storages as CUDA's operators would create them, on a simulated card, with workspaces and kernels' temporaries.

    The code under test runs on the CPU, with real or fake tensors; everything that it creates there counts as on the
    card. Values and gradients are those of the same operators on the CPU up to rounding, apart from dropout's random
    stream.

    Args:
        card: the simulated card.
        gpu: capability and multiprocessors, which decide about kernels and their sizes.

    Raises:
        Unavailable: on entering, where torch is too old to be told about other kernels.
    """

    def __init__(self, card: Allocator, gpu: Gpu) -> None:
        self.gpu = gpu
        super().__init__(card, lambda ledger: CudaMode(ledger, gpu))
        self._stack = ExitStack()

    @property
    def mode(self) -> CudaMode:
        mode: CudaMode = self._mode
        return mode

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put tensors that are there already on the card, each storage once."""
        for tensor in tensors:
            self.ledger.see(tensor, -1, fresh=True)
        self.seal()

    def __enter__(self) -> CudaStorages:
        if not hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
            raise Unavailable(
                f"torch {torch.__version__} has other operators than CUDA's of today; it needs 2.9 or newer"
            )
        with ExitStack() as stack:
            stack.callback(composites.leave, composites.enter(self.gpu, self.mode.note))
            optimizers.enter()
            stack.callback(optimizers.leave)
            stack.enter_context(autocast.as_on_cuda())
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def opened_in_thread(self) -> Iterator[None]:
        """Let this probe, which is open in another thread, see this one, too: as on the same card."""
        mode = CudaThreadMode(self.mode)
        with composites.in_thread(self.gpu, lambda: self.ledger.recording, mode.note), mode:
            yield
        with mode.ledger.alone:
            mode.leave_handle()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._stack.close()
