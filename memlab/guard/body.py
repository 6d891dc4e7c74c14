"""One run of a test's body, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from memlab import dispatch, kernel
from memlab.allocator import OutOfMemory
from memlab.guard.given import given_storages
from memlab.guard.limits import Limits
from memlab.guard.record import Record
from memlab.probes import Unavailable
from memlab.probes.cuda import check_available
from memlab.probes.simulated import card_of
from memlab.watching import Watch, watch


class Body:
    """What one run of the body did; the watch's numbers stay live after it.

    Attributes:
        seen: the watch that was open.
        given: ``{storage key: bytes}`` of what fixtures handed to it.
        cuda_peak: bytes that torch.cuda allocated beyond what there was, at the peak; None where not measured.
        not_checked: why the CUDA peak could not be measured, if it was asked for.
    """

    def __init__(self, item: pytest.Function, limits: Limits) -> None:
        self.given = given_storages(item)
        self.cuda_peak: int | None = None
        self.not_checked = ""
        self._card = card_of(limits.card) if limits.card is not None else None
        self._device = self._cuda_device(limits)
        self.seen: Watch = watch(self._card, keep_peak=True)
        self._began = False

    def _cuda_device(self, limits: Limits) -> torch.device | None:
        wanted = limits.peak.device if limits.peak is not None else None
        if limits.peak is None or wanted == "cpu":
            return None
        device = torch.device(wanted or "cuda")
        try:
            check_available(device)
        except Unavailable as error:
            self.not_checked = str(error) if wanted else ""
            return None
        return device

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure what runs inside. Fixtures' tensors are put on the simulated card before it.

        Raises:
            torch.OutOfMemoryError: the card cannot hold what the fixtures hand over.
        """
        __tracebackhide__ = True
        self._put_on_card()
        start = self._start_cuda()
        with self.seen:
            self._began = True
            try:
                yield
            except torch.OutOfMemoryError as error:
                _cut(error)
                raise
            finally:
                if self._device is not None:
                    self.cuda_peak = torch.cuda.max_memory_allocated(self._device) - start

    def _put_on_card(self) -> None:
        __tracebackhide__ = True
        for nbytes in self.given.values() if self._card is not None else ():
            assert self._card is not None
            try:
                self._card.malloc(nbytes)
            except OutOfMemory as error:
                raise torch.OutOfMemoryError(f"the fixtures' tensors alone do not fit: {error}") from None

    def _start_cuda(self) -> int:
        if self._device is None:
            return 0
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def fill(self, record: Record) -> None:
        """Write the numbers of this run, and what it could not see, into ``record``."""
        record.given = sum(self.given.values())
        record.saved_peak, record.storages_peak = self.seen.saved.peak, self.seen.storages.peak
        record.cuda_peak = self.cuda_peak
        record.card = self.seen.card.read() if self._began and self.seen.card is not None else None
        for sentence in self.seen.blind:
            record.note(sentence)
        if any("compiled region" in sentence for sentence in self.seen.blind):
            record.note("what a compiled region allocates and frees inside is not seen: peaks leave it out")


def _cut(error: BaseException) -> None:
    """Let the traceback end in the user's operator, where the card is full, and not inside memlab."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        if traceback.tb_next.tb_frame.f_code.co_filename in (kernel.__file__, dispatch.__file__):
            traceback.tb_next = None
        traceback = traceback.tb_next
