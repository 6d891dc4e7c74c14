"""Every arm in a process of its own: forked from a server that has torch loaded, watched, and never left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlab.measure import Job
    from memlab.report import Finding

TIMEOUT = 300.0
OnRow = Callable[["Job", dict[str, int]], None]
OnFinding = Callable[["Job", "Finding"], None]
_PRELOAD = ["torch", "torch._dynamo", "memlab.measure"]  # dispatch modes import _dynamo, a second of work, at first use


def run(
    jobs: Sequence[Job],
    on_row: OnRow = lambda job, row: None,
    on_finding: OnFinding = lambda job, finding: None,
    *,
    timeout: float = TIMEOUT,
    workers: int | None = None,
) -> list[Finding]:
    """Measure every job in a fresh process and return the findings in the order of the jobs.

    A process that is killed, crashes or takes longer than ``timeout`` seconds becomes a finding in words; the others go
    on. An exception here, KeyboardInterrupt included, ends all of them first.

    Args:
        jobs: what to measure.
        on_row: called here with each row as soon as it is measured.
        on_finding: called here with each finding.
        timeout: seconds that one arm may take.
        workers: how many processes at once; by default one per core, and one at a time on CUDA.
    """
    workers = workers or (1 if any(job.device != "cpu" for job in jobs) else os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, findings = deque(enumerate(jobs)), {}
    running: dict[int, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index, job = waiting.popleft()
                running[index] = _Child.start(job, threads, timeout)
            for index, finding in _news(running, on_row):
                running.pop(index).end()
                findings[index] = finding
                on_finding(jobs[index], finding)
    finally:
        for child in running.values():
            child.end()
    return [findings[index] for index in range(len(jobs))]


def _news(running: dict[int, _Child], on_row: OnRow) -> Iterator[tuple[int, Finding]]:
    pause = max(0.0, min(child.deadline for child in running.values()) - time.monotonic())
    ready = set(wait([child.connection for child in running.values()], timeout=pause))
    for index, child in list(running.items()):
        if child.connection in ready:
            finding = child.receive(on_row)
            if finding is not None:
                yield index, finding
        elif time.monotonic() >= child.deadline:
            yield index, child.job.finding(reason=f"timed out: it took longer than {child.timeout:g} s and was ended")


@dataclass
class _Child:
    job: Job
    process: Any
    connection: Connection
    deadline: float
    timeout: float

    @classmethod
    def start(cls, job: Job, threads: int, timeout: float) -> _Child:
        context = _context()
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(job, theirs, threads), daemon=True)
        process.start()
        theirs.close()
        return cls(job, process, ours, time.monotonic() + timeout, timeout)

    def receive(self, on_row: OnRow) -> Finding | None:
        """Take one message: a row, or the finding that ends it; a closed pipe means that the process died."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return self.job.finding(reason=_death(self.process.exitcode))
        if kind == "row":
            on_row(self.job, content)
            return None
        if kind == "error":
            raise ValueError(content)
        finding: Finding = content
        return finding

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"could not be measured: its process was ended by {signal.Signals(-code).name}"
    return f"could not be measured: its process ended with exit code {code} and no finding"


def _serve(job: Job, connection: Connection, threads: int) -> None:
    """Run in the child: measure, send rows and the finding. The parent alone answers Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what an experiment prints must not mix with a report on stdout
    sys.stdout = sys.stderr
    import torch

    from memlab.measure import measure

    torch.set_num_threads(threads)
    last = [0.0]

    def emit(row: dict[str, int]) -> None:
        if time.monotonic() - last[0] > 0.02:  # fifty a second are enough for an eye
            last[0] = time.monotonic()
            connection.send(("row", row))

    try:
        connection.send(("finding", measure(job, emit)))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # nobody listens any more
    except ValueError as error:
        connection.send(("error", str(error)))
