"""Live tensor storages with a history of their allocations, for snapshots."""

from __future__ import annotations

from typing import Any

import torch

from memlab.allocator import Allocator
from memlab.dispatch import Mode
from memlab.probes.storages import Storages
from memlab.snapshots.merge import merge, settle_categories
from memlab.stacks import is_own
from memlab.storage_history import StorageHistory

UNLIMITED = 1 << 40  # bytes of a simulated card that nothing here fills
MAX_ENTRIES = 100_000


class _RecordingMode(Mode):
    ledger: StorageHistory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ledger.begin(func)
        return super().__torch_dispatch__(func, types, args, kwargs)


class History(Storages):
    """The `Storages` probe, and the newest events of the caching allocator with the stacks they come from.

    With a card, or without a CUDA device, the allocator is the simulated one; without a card on a machine with a CUDA
    device it is torch's own, which is started and whose history is recorded meanwhile. It cannot see what `Storages`
    cannot see; torch's own history has that too, without our frames.

    Args:
        card: a simulated card; without one and without a CUDA device, one that nothing fills.
        max_entries: events that are kept.
        keep_peak, births: as of `Storages`.
    """

    name = "history"

    def __init__(
        self,
        card: Allocator | None = None,
        max_entries: int = MAX_ENTRIES,
        *,
        keep_peak: bool = False,
        births: bool = False,
    ) -> None:
        self._real = card is None and torch.cuda.is_available()
        card = card if card is not None else Allocator(total=UNLIMITED)
        super().__init__(card)
        self._max_entries = max_entries
        self.ledger: StorageHistory = StorageHistory(
            card, max_entries, real=self._real, keep_peak=keep_peak, births=births
        )
        self._card = card
        self._mode = _RecordingMode(self.ledger)
        self._started = False
        self._last: dict[str, Any] | None = None

    def __enter__(self) -> History:
        if self._real and not _is_recording():
            torch.cuda.memory._record_memory_history(max_entries=self._max_entries, stacks="python")
            self._started = True
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._started:
            self._last = torch.cuda.memory._snapshot()
            torch.cuda.memory._record_memory_history(enabled=None)
            self._started = False

    def snapshot(self) -> dict[str, Any]:
        """Return what torch.cuda.memory._snapshot() returns, as plain data, with categories and more frames.

        Of a real device it is taken now while the probe is open, and was taken at its end afterwards.
        """
        self.ledger.settle()
        self.ledger.mark_modules()
        if not self._real or not self.ledger.sightings:
            return settle_categories(self._card.snapshot())
        last = self._last if self._last is not None else torch.cuda.memory._snapshot()
        return settle_categories(merge(last, self.ledger.sightings, is_own))


def _is_recording() -> bool:
    """Whether somebody records torch's history already; they go on, and we use it. False where torch cannot tell."""
    torch.cuda.init()  # without it the question crashes the process
    ask = getattr(torch._C, "_cuda_isHistoryEnabled", None)
    return ask is not None and bool(ask())
