"""Every arm in a process of its own: forked from a server that has torch loaded, watched, and never left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memlab.report import FAILED

if TYPE_CHECKING:
    from memlab.measure import Job
    from memlab.report import Finding

TIMEOUT = 300.0
T = TypeVar("T")
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

    A process that is killed, crashes or takes longer than ``timeout`` seconds becomes a finding that failed, in words;
    the others go on. An exception here, KeyboardInterrupt included, ends all of them first.

    Args:
        jobs: what to measure.
        on_row: called here with each row as soon as it is measured.
        on_finding: called here with each finding.
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
            for index, finding in _news(running, on_row):
                running.pop(index).end()
                findings[index] = finding
                on_finding(jobs[index], finding)
    finally:
        for child in running.values():
            child.end(grace=0)
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
    process, connection = _start(_answer, function, arguments)
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


def _news(running: dict[int, _Child], on_row: OnRow) -> Iterator[tuple[int, Finding]]:
    pause = max(0.0, min(child.deadline for child in running.values()) - time.monotonic())
    ready = set(wait([child.connection for child in running.values()], timeout=pause))
    for index, child in list(running.items()):
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
    deadline: float
    timeout: float

    @classmethod
    def start(cls, job: Job, threads: int, timeout: float) -> _Child:
        process, connection = _start(_serve, job, threads)
        return cls(job, process, connection, time.monotonic() + timeout, timeout)

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

    def end(self, grace: float = 1.0) -> None:
        _end(self.process, self.connection, grace)


def _start(target: Callable[..., None], *arguments: object) -> tuple[Any, Connection]:
    """Start ``target(connection, *arguments)`` in a fresh process; return the process and our end of the connection."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _end(process: Any, connection: Connection, grace: float) -> None:
    connection.close()
    if process.is_alive():
        process.join(grace)
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
    from multiprocessing import forkserver

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


def _settle() -> None:
    """Make a child's surroundings: it prints to stderr, leaves Ctrl-C to the parent, and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what an experiment prints must not mix with a report on stdout
    sys.stdout = sys.stderr
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(connection: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Run in the child: send what ``function`` returns."""
    _settle()
    try:
        answer = ("answer", function(*arguments))
    except Exception as error:
        answer = ("failed", _said(error))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(answer)


def _serve(connection: Connection, job: Job, threads: int) -> None:
    """Run in the child: measure, send rows and the finding."""
    _settle()
    last = [0.0]

    def emit(row: dict[str, int]) -> None:
        if time.monotonic() - last[0] > 0.02:  # fifty a second are enough for an eye
            last[0] = time.monotonic()
            connection.send(("row", row))

    try:
        connection.send(_measured(job, threads, emit))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # nobody listens any more


def _measured(job: Job, threads: int, emit: Callable[[dict[str, int]], None]) -> tuple[str, object]:
    try:
        import torch

        from memlab.measure import measure

        torch.set_num_threads(threads)
        return "finding", measure(job, emit)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except ValueError as error:
        return "error", str(error)
    except Exception as error:
        return "failed", _said(error, job.path)


def _said(error: Exception, path: Path | None = None) -> str:
    """Name the error and, if it passed through ``path``, the last line there."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path
    ]
    where = f" ({path.name}:{lines[-1]})" if path and lines else ""
    text = str(error).strip()
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
