"""Measure one arm in this process: resume it step by step, read the probes at each yield, compare with the bill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from memlab.allocator import Allocator
from memlab.experiment import Arm, Experiment, Lines, Sizes, load
from memlab.job import Job
from memlab.node_names import READS_PACKED
from memlab.ownership.frames import Ended
from memlab.ownership.search import SECONDS
from memlab.ownership.survey import survey
from memlab.probes import Probe, Unavailable
from memlab.probes import cuda as cuda_probe
from memlab.probes.cuda import BackwardThread, Cuda
from memlab.probes.history import UNLIMITED, History
from memlab.probes.host import Host
from memlab.probes.nvml import Nvml
from memlab.probes.saved import Saved
from memlab.probes.simulated import Simulated
from memlab.probes.storages import Storages
from memlab.report import HOLDS, REFUTED, SKIPPED, Finding
from memlab.snapshotting import save

ROUNDING = 512  # kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp
SURVIVES = 10  # an arm that must not die runs this many times as many steps as the one that does
HOST_STEPS = 10  # the unique set size takes the kernel milliseconds: rows after these have it only at the last step
LONGEST = 100_000  # steps after which a prediction gives up

Emit = Callable[[dict[str, int]], None]


def measure(job: Job, emit: Emit = lambda row: None) -> Finding:
    """Run one arm here and now; ``emit`` gets each row as it is measured.

    Raises:
        ValueError: wrong names or sizes. What goes wrong inside the arm is a finding, not an exception.
    """
    experiment = load(job.path)
    arm, device = experiment.arm(job.arm), _device(job.device)
    sizes = experiment.with_sizes(job.sizes, device.type)
    finding = job.finding()
    finding.title, finding.sizes = arm.title, {name: getattr(sizes, name) for name in experiment.sizes}
    began = time.perf_counter()
    try:
        if device.type == "cuda":
            cuda_probe.check_available(device)
            if arm.proves and not cuda_probe.computes(device):
                raise Unavailable(f"needs a device that computes: it proves that {arm.proves}")
        _Run(experiment, arm, sizes, device, job, finding, emit).run()
    except Unavailable as error:
        finding.status, finding.reason = SKIPPED, str(error)
    finding.seconds = round(time.perf_counter() - began, 3)
    return finding


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; write cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"experiments run on cpu and cuda, not on {device.type}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else torch.device("cpu")


class _Run:
    """One arm's measurement; fills its finding."""

    def __init__(
        self,
        experiment: Experiment,
        arm: Arm,
        sizes: Sizes,
        device: torch.device,
        job: Job,
        finding: Finding,
        emit: Emit,
    ) -> None:
        self.experiment, self.arm, self.sizes, self.device = experiment, arm, sizes, device
        self.job, self.finding, self.emit = job, finding, emit
        self.backward_thread: BackwardThread | None = None
        if device.type == "cuda":
            cuda_probe.warm_up(device)
            self.backward_thread = BackwardThread(device)
        self.finding.card = self._card_bytes()
        self.card = Allocator(total=self.finding.card or UNLIMITED) if device.type != "cuda" else None

    def run(self) -> None:
        self.storages = Storages(self.card) if self.job.snapshot is None else History(self.card)
        with self._limited(), self.storages as storages:
            self.finding.base["workspaces"] = self._occupied()["allocated"]
            torch.manual_seed(self.job.seed)
            material = self._set_up()
            storages.seal()
            self.finding.base |= self._occupied()
            self.finding.predicted = self._predict_death()
            self.finding.steps = self._steps()
            with ExitStack() as stack:
                self.saved = stack.enter_context(Saved(storages))
                self.probes: list[Probe] = [self.saved, storages, *self._other_probes(stack, storages)]
                self._judge(self._resume(material))
            self._settle()
            self.finding.left = self.saved.bytes
            if self.finding.status == HOLDS and self.finding.left != self.arm.left(self.sizes):
                self._refute(f"{self.finding.left:,} B stay saved after the arm has ended")

    def _card_bytes(self) -> int | None:
        """The card in bytes: as asked for, or the experiment's own beside what libraries hold already."""
        if self.job.card is not None:
            return self.job.card
        if self.experiment.card is None:
            return None
        held = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        return self.experiment.card(self.sizes) + held

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Bound a real device for the length of the run; a simulated card bounds itself."""
        if self.device.type != "cuda" or self.finding.card is None:
            yield
            return
        cuda_probe.limit(self.device, self.finding.card)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _other_probes(self, stack: ExitStack, storages: Storages) -> list[Probe]:
        """Open what works here; for what does not, the finding says why its columns are empty."""
        sources = self.finding.sources
        sources.update(saved="measured", storages="measured")
        wanted: list[tuple[Probe, tuple[str, ...]]] = [(Host(), ("host_rss", "host_uss"))]
        if self.card is not None:
            wanted.append((Simulated(storages), ("allocated", "reserved")))
            sources["nvml_process"] = "not available: no CUDA device in this run"
        else:
            wanted.append((Cuda(self.device), ("allocated", "reserved")))
            wanted.append((Nvml(self.device), ("nvml_process",)))
        opened: list[Probe] = []
        for probe, columns in wanted:
            try:
                stack.enter_context(probe)
                opened.append(probe)
                word = "simulated" if isinstance(probe, Simulated) else "measured"
                if isinstance(probe, Nvml) and "nvml_process" not in probe.read():
                    word = f"not available: {probe.notes[0]}"
            except Unavailable as error:
                word = f"not available: {error}"
            sources.update(dict.fromkeys(columns, word))
        return opened

    def _resume(self, material: tuple[Any, ...]) -> Iterator[int]:
        """Resume the arm once per step and record a row at each yield; an OutOfMemoryError ends it."""
        arm = self.arm.run(*material)
        del material
        try:
            for step in range(1, self.finding.steps + 1):
                self.saved.ledger.step = step
                next(arm)
                self._record(step)
                yield step
        except torch.OutOfMemoryError as error:
            self._save_snapshot()  # while the error keeps what filled the card
            self.finding.died, self.finding.oom = step, str(error)
            self.finding.filled = dict(list(self.saved.by("line").items())[:5])
            self.finding.held = _held_by(error)
        finally:
            if "snapshot" not in self.finding.sources:
                self._save_snapshot()
            arm.close()

    def _save_snapshot(self) -> None:
        path = self.job.snapshot
        if path is not None and isinstance(self.storages, History):
            try:
                save(path, self.storages.snapshot())
                self.finding.sources["snapshot"] = f"written to {path.name}"
            except OSError as error:
                self.finding.sources["snapshot"] = f"not available: cannot write {path.name}: {error.strerror}"

    def _settle(self) -> None:
        """Let what was dropped be gone before anything is read: kernels finished, the backward thread idle."""
        if self.backward_thread is not None:
            self.backward_thread.settle()
            torch.cuda.synchronize(self.device)

    def _record(self, step: int) -> None:
        self._settle()
        row = {"step": step}
        for probe in self.probes:
            if not isinstance(probe, Host) or step <= HOST_STEPS or step == self.finding.steps:
                row |= probe.read()
        if self.device.type == "cuda":
            row["unsplit"] = cuda_probe.unsplit_bytes(self.device)
        self.finding.rows.append(row)
        self.finding.expected.append(self._expect(step))
        card = {"card": self.finding.card or 0, "base_allocated": self.finding.base["allocated"]}
        self.emit(row | card | {"steps": self.finding.steps})  # what a live view needs to draw the row

    def _expect(self, step: int) -> dict[str, int]:
        saved, allocated = self.arm.saved(self.sizes, step), self.arm.allocated(self.sizes, step)
        self.finding.bill = {"saved": _plain(saved), "allocated": _plain(allocated)}
        return {"saved": total(saved), "storages": total(allocated), "allocated": total(allocated, ROUNDING)}

    def _judge(self, steps: Iterator[int]) -> None:
        finding = self.finding
        finding.status = HOLDS
        try:
            for _ in steps:
                miss = _first_miss(finding.rows[-1], finding.expected[-1])
                if miss and finding.status == HOLDS:
                    self._refute(miss)
        except Unavailable:
            raise
        except AssertionError as error:
            self._refute(f"an assertion of the arm failed: {error}")
        except StopIteration:
            self._refute(f"the arm ended at step {len(finding.rows) + 1} of {finding.steps}")
        except Exception as error:
            self._refute(f"the arm raised {type(error).__name__}: {error}")
        if finding.status == HOLDS and finding.died != (finding.predicted if self.arm.dies else None):
            self._refute(_death_sentence(finding, dies=self.arm.dies))

    def _refute(self, reason: str) -> None:
        self.finding.status, self.finding.reason = REFUTED, reason

    def _set_up(self) -> tuple[Any, ...]:
        try:
            with self.device:
                return self.experiment.setup(self.sizes)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"a card of {self.finding.card:,} B cannot hold even the setup; give a larger one"
            ) from None

    def _occupied(self) -> dict[str, int]:
        """What the card holds now, in absolute bytes."""
        stats = torch.cuda.memory_stats(self.device) if self.card is None else self.card.memory_stats()
        numbers = cuda_probe.numbers(stats)
        occupied = {name: numbers[name] for name in ("allocated", "reserved", "active", "inactive_split")}
        if self.card is not None:
            return occupied
        with suppress(Unavailable), Nvml(self.device) as nvml:
            occupied |= nvml.read()
        return occupied

    def _steps(self) -> int:
        if self.job.steps is not None:
            return self.job.steps
        if self.finding.predicted is None:
            return self.experiment.steps
        return self.finding.predicted + 1 if self.arm.dies else SURVIVES * self.finding.predicted

    def _predict_death(self) -> int | None:
        """The first step whose closed form, on top of the setup, exceeds the card: of the arm that dies."""
        dying = [arm for arm in self.experiment.arms if arm.dies]
        if self.finding.card is None or not dying:
            return None
        for step in range(1, LONGEST):
            if (
                self.finding.base["allocated"] + total(dying[0].allocated(self.sizes, step), ROUNDING)
                > self.finding.card
            ):
                return step
        raise ValueError(
            f"a card of {self.finding.card:,} B outlasts {LONGEST:,} steps of {dying[0].name}; give a smaller one"
        )


def _held_by(error: BaseException) -> str:
    """Return the path of the owner that alone keeps most, of the frames that an error has ended, too."""
    if not READS_PACKED:
        return ""
    with Ended(error):
        found = survey(seconds=SECONDS).owners
    return found[0].path if found else ""


def total(lines: Lines, rounding: int = 1) -> int:
    """Return the bytes of a bill; each storage rounds up to ``rounding`` by itself."""
    return sum(count * -(-nbytes // rounding) * rounding for count, nbytes in map(_pair, lines.values()))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (1, value)


def _plain(lines: Lines) -> dict[str, list[int]]:
    return {what: list(_pair(value)) for what, value in lines.items()}


def _first_miss(row: dict[str, int], expected: dict[str, int]) -> str:
    for probe, wanted in expected.items():
        found = row[probe] - (row.get("unsplit", 0) if probe == "allocated" else 0)
        if found != wanted:
            return f"step {row['step']}: {probe} {found:,} B, expected {wanted:,} B ({found - wanted:+,} B)"
    return ""


def _death_sentence(finding: Finding, *, dies: bool) -> str:
    if not dies:
        return f"it ran out of memory at step {finding.died}, and was expected to survive"
    if finding.died is None:
        return f"it survived {finding.steps} steps; the closed form predicts its death at step {finding.predicted}"
    return f"it died at step {finding.died}; the closed form predicts step {finding.predicted}"
