"""Storages of a run whose owners are asked for: which of them are new since its warm-up."""

from __future__ import annotations

from memlab.storage_ledger import Made, StorageLedger
from memlab.tracing import makeup


class Since:
    """Remembers which storages there are now, and keeps none of them alive.

    Attributes:
        step: steps that had ended by now.
    """

    def __init__(self, ledger: StorageLedger, step: int) -> None:
        self.step = step
        self._ledger = ledger
        # Not by key alone: the address of a storage that is gone is used again.
        self._old: dict[int, tuple[Made | None, int]] = {key: (ledger.made(key), n) for key, n in ledger.live().items()}
        self._plain: set[int] | None = None  # of these, what belongs to no module and no optimizer; asked for once

    def made(self) -> dict[int, int]:
        """Return ``{storage key: bytes}`` of what is alive, with 0 for what was there before, in the same size.

        Parameters, gradients, buffers and optimizers' state that were there before are left out: the first call walks
        the heap for them.
        """
        live = self._ledger.live()
        old = {key: 0 for key, n in live.items() if self._old.get(key) == (self._ledger.made(key), n)}
        if self._plain is None:
            self._plain = set(makeup.classed(old)[1])
        return {key: old.get(key, n) for key, n in live.items() if key not in old or key in self._plain}
