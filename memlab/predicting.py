"""Predict, without a GPU, what a step or a script would take on a card."""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from memlab import cards, origins, threads, versions
from memlab.as_cuda import CudaStorages, account, gpu_of
from memlab.as_cuda.devices import OnCpu, cuda_here
from memlab.as_cuda.fakes import NEEDS_DATA, FakeMode, fake_tensors, why
from memlab.blocks import Inputs, savings
from memlab.cards import Card
from memlab.prediction import DIES, FITS, Prediction
from memlab.probes.saved import Saved
from memlab.reachable import tensors_of
from memlab.units import format_bytes

DOUBLINGS = 20
_TOLD_APART = 4  # batches, each twice the one before: with more than rounding between them, peaks differ


def predict(
    step: Callable[[], Any], card: str | int | Card = "24 GiB", *, fake: bool = False, steps: int = 2, conf: str = ""
) -> Prediction:
    """Run ``step`` on the CPU as if on ``card`` and return whether it fits, with both peaks.

    Every ``threading.Thread`` that it starts counts; one that ends for want of memory is a death.

    >>> memlab.predict(step, card="rtx4090").fits

    Args:
        step: called with nothing, ``steps`` times. Tensors that it refers to (in its closure, its arguments' defaults,
            the object it is bound to, the globals it names) are on the card before it. If its first call returns a
            function, that is the step and what was called has built its model: the way to use with ``fake``.
        card: a size, a name such as ``"rtx4090"``, a JSON file, or a `Card`.
        fake: run on fake tensors: no memory, no arithmetic, any size of model.
        steps: how many; two, for an optimizer makes its state in the first.
        conf: settings of the allocator, as in PYTORCH_CUDA_ALLOC_CONF.

    Raises:
        ValueError: a card or settings that cannot be read.
        memlab.Unavailable: torch is too old.
        Exception: whatever else the step raises.
    """

    def run() -> None:
        made = step()
        again = made if callable(made) else step
        for _ in range(steps if callable(made) else steps - 1):
            again()

    name = getattr(step, "__qualname__", type(step).__qualname__)
    return _Run(name, cards.find(card), fake=fake, conf=conf, given=() if fake else tensors_of(step)).run(run)


def predict_script(
    path: Path, arguments: Sequence[str], card: Card, *, fake: bool = False, conf: str = ""
) -> Prediction:
    """Run a script as ``python path arguments`` would, and predict what it takes. For a process of its own.

    Raises:
        RuntimeError: the script failed, for another reason than the card; the text is a sentence.
    """

    def run() -> None:
        before, sys.argv = sys.argv, [str(path), *arguments]
        sys.path.insert(0, str(path.resolve().parent))
        try:
            with cuda_here():
                runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise RuntimeError(f"{path.name} ended with exit code {end.code}") from None
        except (torch.OutOfMemoryError, *NEEDS_DATA):
            raise
        except Exception as error:
            raise RuntimeError(f"{_users_line(error)}: {type(error).__name__}: {error}{_cure(error)}") from error
        finally:
            sys.argv = before

    return _Run(path.name, card, fake=fake, conf=conf).run(run)


def _cure(error: Exception) -> str:
    if "Torch not compiled with CUDA" not in str(error) and "Found no NVIDIA driver" not in str(error):
        return ""
    return "; a script is predicted on the CPU: let it ask a device only where torch.cuda.is_available()"


def largest_batch(tried: Callable[[int], Prediction], start: int) -> tuple[int, dict[str, str]]:
    """Return the largest batch whose prediction fits, by doubling and then bisection, and the verdict of each tried.

    Where none of them dies, no larger one was tried than the first, doubled `DOUBLINGS` times.

    Args:
        tried: predicts a batch.
        start: the first batch; 0 is returned if it does not fit.

    Raises:
        ValueError: batches make no difference; a sentence.
    """
    verdicts: dict[str, str] = {}
    peaks: list[tuple[int, int]] = []

    def fits(batch: int) -> bool:
        found = tried(batch)
        verdicts[str(batch)] = found.verdict
        peaks.append((found.allocated, found.saved))
        return found.verdict == FITS

    good, bad, most = 0, start, start << DOUBLINGS
    while bad <= most and fits(bad):
        if len(peaks) == _TOLD_APART and len(set(peaks)) == 1:
            raise ValueError(f"it takes {format_bytes(peaks[0][0])} with any batch from {start} to {bad}")
        good, bad = bad, bad * 2
    while 0 < good < most and bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good, verdicts


class _Run:
    """One run; fills its prediction."""

    def __init__(self, what: str, card: Card, *, fake: bool, conf: str, given: Sequence[torch.Tensor] = ()) -> None:
        self.card, self.fake, self.given = card, fake, given
        self.allocator, self.gpu = card.allocator(conf, **versions.allocator()), gpu_of(card)
        capability = ".".join(map(str, self.gpu.capability))
        self.found = Prediction(
            what=what,
            card=card.describe(),
            total=card.total,
            context=card.context,
            other=card.other,
            device=f"compute capability {capability}, {self.gpu.sms} SMs",
            fake=fake,
        )

    def run(self, code: Callable[[], None]) -> Prediction:
        began = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(OnCpu())
            fakes = stack.enter_context(fake_tensors()) if self.fake else nullcontext()
            storages = stack.enter_context(CudaStorages(self.allocator, self.gpu))
            saved = stack.enter_context(Saved(storages))
            inputs = stack.enter_context(Inputs())
            storages.mode.before_backward = lambda: self._see_blocks(saved, inputs)
            stack.enter_context(threads.followed(lambda: _in_thread(fakes, storages, saved)))
            stack.enter_context(threads.ends_heard(lambda error: self._end(error, saved)))
            self._judge(code, storages, saved)
            self._read(storages, saved)
            self.found.assumed = fakes.values.sentences() if isinstance(fakes, FakeMode) else []
        self.found.seconds = round(time.perf_counter() - began, 3)
        return self.found

    def _judge(self, code: Callable[[], None], storages: CudaStorages, saved: Saved) -> None:
        try:
            storages.add(self.given)
            code()
        except (torch.OutOfMemoryError, *NEEDS_DATA) as error:
            self._end(error, saved)
        if not self.found.died:
            self.found.verdict = FITS
            self.found.caught = self.allocator.stats.num_ooms

    def _end(self, error: BaseException, saved: Saved) -> None:
        """Note what ended the run, or a thread of it; the first counts."""
        if self.found.died:
            return
        if isinstance(error, torch.OutOfMemoryError):
            self.found.verdict, self.found.oom, self.found.died = DIES, str(error), _users_line(error)
            self.found.filled = dict(list(saved.by("line").items())[:5])
        elif isinstance(error, NEEDS_DATA):
            self.found.reason, self.found.died = why(error), _users_line(error)

    def _see_blocks(self, saved: Saved, inputs: Inputs) -> None:
        found = savings(saved.lines, inputs.bytes)
        if sum(found.values()) > sum(self.found.blocks.values()):
            self.found.blocks = found

    def _read(self, storages: CudaStorages, saved: Saved) -> None:
        self.found.allocated, self.found.reserved = self.allocator.peak_allocated, self.allocator.peak_reserved
        self.found.saved = saved.peak
        self.found.workspaces = sum([*storages.mode.workspaces.values(), *storages.mode.lt_workspaces.values()])
        self.found.bars = storages.mode.bars.above(self.found.allocated)
        self.found.bar = max(self.found.bars.values(), default=0)
        self.found.unknown = account.unknown(storages.mode)
        self.found.high = account.high(storages.mode)
        self.found.exact = account.exact(storages.mode)
        self.found.modelled = account.modelled(self.card, storages.mode, self.found.allocated)
        self.found.missing = [*account.missing(storages.mode), *storages.blind]


@contextmanager
def _in_thread(fakes: AbstractContextManager[Any], storages: CudaStorages, saved: Saved) -> Iterator[None]:
    with OnCpu(), fakes, storages.opened_in_thread(), saved.opened_in_thread():
        yield


def _users_line(error: BaseException) -> str:
    """Return ``file:line`` of the user's innermost line in the error's traceback."""
    found, traceback = "unknown", error.__traceback__
    while traceback is not None:
        code, _ = origins.user_code(traceback.tb_frame)
        if code is traceback.tb_frame.f_code:
            found = origins.describe(code, traceback.tb_lasti)
        traceback = traceback.tb_next
    return found
