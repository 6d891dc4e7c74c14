"""Live tensor storages: what operators created while the probe was open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    Module,
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from memlab import kernel
from memlab.allocator import Allocator
from memlab.births import BirthLedger
from memlab.card_ledger import CardLedger
from memlab.dispatch import Mode, ThreadMode
from memlab.kernel import Kernel
from memlab.origins import storage_key
from memlab.storage_ledger import StorageLedger

# What sees a ledger's storages in its own thread, and in others that may live on when it is closed.
IN_THREAD: dict[type, Callable[[StorageLedger], Any]] = {Kernel: Kernel, Mode: ThreadMode}


class Storages:
    """Bytes of tensor storages that operators created in this thread (and in its backward) while the probe was open.

    Exact for what operators return. It cannot see: temporaries inside a kernel, storages made by Python code without
    an operator (``torch.UntypedStorage(n)``, ``frombuffer``), ``untyped_storage().resize_()``, sparse layouts, threads
    but for those that enter `opened_in_thread`, and allocations of compiled regions. A view keeps its whole base
    storage alive, and that is what counts.

    Args:
        card: a simulated card on which every storage is also allocated; where it does not fit, the operator raises
            ``torch.OutOfMemoryError``.
        keep_peak: remember what the peak was made of, for `at_peak`.
        births: remember the source line of each storage, for the owners of plain tensors.
        mode: makes the dispatch mode that feeds the ledger; without one `memlab.kernel` does, where it can.
    """

    name = "storages"

    def __init__(
        self,
        card: Allocator | None = None,
        mode: Callable[[Any], Any] | None = None,
        *,
        keep_peak: bool = False,
        births: bool = False,
    ) -> None:
        self.ledger: StorageLedger
        if card is not None or keep_peak:
            self.ledger = CardLedger(card, keep_peak=keep_peak, births=births)
        else:
            self.ledger = BirthLedger() if births else StorageLedger()
        self._mode: Any = (mode or (Kernel if kernel.is_available() else Mode))(self.ledger)
        self._registrations: list[Any] = []

    def __enter__(self) -> Storages:
        self._registrations = [
            register_module_parameter_registration_hook(self._mark("parameter")),
            register_module_buffer_registration_hook(self._mark("buffer")),
        ]
        self._mode.__enter__()
        self.ledger.recording = True
        return self

    def __exit__(self, *error: object) -> None:
        self.learn_operators()
        self.ledger.recording = False
        self._mode.__exit__(*error)
        for registration in self._registrations:
            registration.remove()

    @contextmanager
    def opened_in_thread(self) -> Iterator[None]:
        """Let this probe, which is open in another thread, see this one, too."""
        in_thread = IN_THREAD.get(type(self._mode))
        if in_thread is None:
            self.ledger.blind.add("threads that were started meanwhile are not seen under a history")
            yield
            return
        with in_thread(self.ledger):
            yield

    def learn_operators(self) -> None:
        """See operators that were defined while the probe was open, from now on."""
        late = kernel.learn_operators() if type(self._mode) is Kernel else []
        theirs = [name for name in late if not kernel.is_torchs_own(name)]
        if theirs:
            self.ledger.blind.add(f"{', '.join(theirs)}: not seen before the next step after their definition")

    def _mark(self, kind: str) -> Any:
        def mark(module: Module, name: str, tensor: object) -> None:
            if isinstance(tensor, torch.Tensor) and storage_key(tensor) is not None:
                self.ledger.mark(tensor, kind)

        return mark

    def read(self) -> dict[str, int]:
        return {"storages": self.bytes, "storages_peak": self.peak}

    @property
    def bytes(self) -> int:
        """Bytes of storages created here and alive now."""
        return self.ledger.bytes

    @property
    def peak(self) -> int:
        """The most that `bytes` has been."""
        return self.ledger.peak

    @property
    def at_peak(self) -> list[tuple[int, str, str]]:
        """What `peak` was made of, largest first: (bytes, operator, source line); empty unless ``keep_peak``."""
        return self.ledger.at_peak

    def by_device(self) -> dict[str, int]:
        """Return ``{device: bytes}`` of what is alive now."""
        return self.ledger.by_device()

    @property
    def sizes(self) -> list[int]:
        """Bytes of each storage alive now, in the order of creation."""
        return self.ledger.sizes

    @property
    def blind(self) -> list[str]:
        """Sentences about what this probe met and could not see."""
        return sorted(self.ledger.blind)

    def seal(self) -> None:
        """Let what is alive now count as there before: an input, and no longer part of `bytes`."""
        self.ledger.seal()

    def reset_peak(self) -> None:
        """Let `peak` start again from the present `bytes`."""
        self.ledger.reset_peak()
