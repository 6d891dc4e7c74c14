"""Every arm in a process of its own: forked from a server that has torch loaded, watched, and never left behind."""

from __future__ import annotations

import codecs
import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

from memlab import child as child_side
from memlab.report import FAILED

if TYPE_CHECKING:
    from memlab.job import Job
    from memlab.report import Finding

TIMEOUT = 300.0
T = TypeVar("T")
OnRow = Callable[["Job", dict[str, int]], None]
OnText = Callable[["Job", str], None]
OnFinding = Callable[["Job", "Finding"], None]
_PRELOAD = ["torch", "memlab.measure"]


def run(
    jobs: Sequence[Job],
    on_row: OnRow = lambda job, row: None,
    on_finding: OnFinding = lambda job, finding: None,
    on_text: OnText = lambda job, text: None,
    *,
    timeout: float = TIMEOUT,
    workers: int | None = None,
) -> list[Finding]:
    """Measure every job in a fresh process and return the findings in the order of the jobs.

    A process that is killed, crashes or takes longer than ``timeout`` seconds becomes a finding that failed, in words;
    the others go on. An exception here, KeyboardInterrupt included, ends all of them first.

    Args:
        jobs: what to measure.
        on_row: called here with each row as soon as it is measured.
        on_finding: called here with each finding.
        on_text: called here with what an arm prints, to stdout or stderr, as soon as it does.
        timeout: seconds that one arm may take.
        workers: how many processes at once; by default one per core, and one at a time on CUDA.

    Raises:
        ValueError: a job with wrong names or sizes.
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
            for index, finding in _news(running, on_row, on_text):
                running[index].end(on_text)
                del running[index]
                findings[index] = finding
                on_finding(jobs[index], finding)
    finally:
        for child in running.values():
            _end(child.process, child.connection, grace=0)
    return [findings[index] for index in range(len(jobs))]


def prepare() -> None:
    """Let torch be loaded for the processes to come; does not wait for it."""
    _context()


class Lost(RuntimeError):
    """A process that ended without an answer; the text says how."""


def ask(function: Callable[..., T], *arguments: object, timeout: float = TIMEOUT) -> T:
    """Call ``function`` in a fresh process that has torch loaded, and return what it returns.

    Raises:
        Lost: it raised, died or took too long; the text says which.
    """
    process, connection = _start(child_side.answer, function, arguments)
    try:
        if not connection.poll(timeout):
            raise Lost(f"no answer within {timeout:g} s")
        kind, content = connection.recv()
    except EOFError:
        process.join(5)
        raise Lost(_death(process.exitcode)) from None
    finally:
        _end(process, connection, grace=0)
    if kind == "failed":
        raise Lost(content)
    answer: T = content
    return answer


def _news(running: dict[int, _Child], on_row: OnRow, on_text: OnText) -> Iterator[tuple[int, Finding]]:
    pause = max(0.0, min(child.deadline for child in running.values()) - time.monotonic())
    channels = [channel for child in running.values() for channel in child.channels]
    ready = set(wait(channels, timeout=pause))
    for index, child in list(running.items()):
        if child.printed in ready:
            child.listen(on_text)
        if child.connection in ready:
            finding = child.receive(on_row)
            if finding is not None:
                yield index, finding
        elif time.monotonic() >= child.deadline:
            yield index, child.failed(f"it took longer than {child.timeout:g} s and was ended")


@dataclass
class _Child:
    job: Job
    process: Any
    connection: Connection
    printed: Connection
    deadline: float
    timeout: float
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    @classmethod
    def start(cls, job: Job, threads: int, timeout: float) -> _Child:
        ours, theirs = _context().Pipe(duplex=False)
        process, connection = _start(child_side.serve, theirs, job, threads)
        theirs.close()
        return cls(job, process, connection, ours, time.monotonic() + timeout, timeout)

    @property
    def channels(self) -> list[Connection]:
        return [self.connection] if self.printed.closed else [self.connection, self.printed]

    def listen(self, on_text: OnText) -> None:
        """Pass on what was printed; the pipe closes when the process ends."""
        data = os.read(self.printed.fileno(), 1 << 16)
        text = self.decoder.decode(data, final=not data)
        if text:
            on_text(self.job, text)
        if not data:
            self.printed.close()

    def receive(self, on_row: OnRow) -> Finding | None:
        """Take one message: a row, or the finding that ends it; a closed pipe means that the process died."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return self.failed(_death(self.process.exitcode))
        if kind == "row":
            on_row(self.job, content)
            return None
        if kind == "error":
            raise ValueError(f"{self.job.path.stem}:{self.job.arm}: {content}")
        if kind == "failed":
            return self.failed(content)
        finding: Finding = content
        return finding

    def failed(self, why: str) -> Finding:
        return self.job.finding(FAILED, f"could not be measured: {why}")

    def end(self, on_text: OnText) -> None:
        """See that the process ends, and pass on what it still had to say."""
        _end(self.process, self.connection, grace=1.0)
        while not self.printed.closed and self.printed.poll():
            self.listen(on_text)
        self.printed.close()


def _start(target: Callable[..., None], *arguments: object) -> tuple[Any, Connection]:
    """Start ``target(connection, *arguments)`` in a fresh process; return the process and our end of the connection."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *arguments))  # a daemon may not start a DataLoader's workers
    process.start()
    theirs.close()
    return process, ours


def _end(process: Any, connection: Connection, grace: float) -> None:
    connection.close()
    if process.is_alive():
        process.join(grace)
    with contextlib.suppress(AttributeError, OSError):  # Windows has no groups; or nobody is left in it
        os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
    if process.is_alive():
        process.kill()
    process.join()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    _start_fork_server()
    return context


def _start_fork_server() -> None:
    """Start the server, unless it runs, with Ctrl-C blocked: it belongs to the parent, not to an import of torch."""
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # the server would start it, and that unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(code: int | None) -> str:
    if code == -9:
        return "its process was ended by SIGKILL, which is also what the system does when memory runs out"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} and no finding"
