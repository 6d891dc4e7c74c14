"""Reads a watch at the end of each step, and keeps what a report needs: bounded, however long the run is."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from memlab import trend, watching
from memlab.cards import Card
from memlab.tracing import holders, makeup
from memlab.tracing.nodes import Nodes
from memlab.tracing.script import Stop, exit_code
from memlab.tracing.since import Since
from memlab.tracing.steps import TOLD, Steps
from memlab.tracing.trace import (
    ENOUGH,
    EXITED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    OUT_OF_MEMORY,
    STOPPED,
    WARMUP,
    Held,
    Moment,
    Trace,
)
from memlab.tracing.tracebacks import out_of_memory

MOST_POINTS = 256
SHARE = 0.05  # of a run's time that looking for owners may take, beyond the looks that it needs
Seen = Callable[[dict[str, int]], None]


class Recorder:
    """Records the block under ``with``, in the thread that opened it and in those that are started in the block.

    Args:
        card: a simulated card; None without one.
        at: ``(file, line)`` that ends a step.
        stop_after: steps after which `Stop` is raised within the last of them; None for as long as it takes.
        seen: called after each step with its point: ``step``, ``saved``, ``peak``, ``live``, ``grew`` (per step).
    """

    def __init__(
        self,
        *,
        card: Card | None = None,
        at: tuple[Path, int] | None = None,
        stop_after: int | None = None,
        seen: Seen = lambda point: None,
    ) -> None:
        self.watch = watching.watch(card, births=True)
        self._steps = Steps(self._ended, at)
        self._stop_after, self._seen = stop_after, seen
        self._stack = ExitStack()
        self._process = os.getpid()
        self._began = time.perf_counter()
        self._searched = 0.0
        self._forget()
        self._peak_live = 0
        self._stopped = False

    def _forget(self) -> None:
        self.count, self.stride = 0, 1
        self.points: list[dict[str, int]] = []
        self.moments: list[Moment] = []
        self.owners: list[Held] = []
        self._search_at = 0
        self._since: Since | None = None
        self._nodes = Nodes()

    @property
    def here(self) -> bool:
        """False in a process that the script has forked: there is nothing to report from there."""
        return os.getpid() == self._process

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(self.watch)
            stack.enter_context(self._steps)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def _ended(self, source: str, first: bool) -> None:
        """Take note of a step's end; a better way to tell steps makes the ones before it count no more."""
        if first:
            self._forget()
        self.count += 1
        if source != TOLD:  # else the watch has heard it itself
            self.watch.step()
        saved, storages = self.watch.saved, self.watch.storages
        point = {"step": self.count, "saved": saved.bytes, "peak": saved.peak, "live": storages.bytes}
        saved.reset_peak()
        self._peak_live = max(self._peak_live, storages.peak)
        self._keep(point)
        if self.count == WARMUP:
            self._since = Since(storages.ledger, self.count)
        self._seen(point | {"grew": self._grew()})
        self._count_nodes()
        last = self.count == self._stop_after
        if last or is_milestone(self.count):
            self.moments.append(makeup.saved_now(self.watch, self.count))
            if not last and self._may_search() and (self._judge()[0] or self._nodes.per_step):
                self._search()
        if self._stop_after is not None and self.count >= self._stop_after:
            self._stopped = True
            # A thread ends without a word at SystemExit alone.
            raise Stop if threading.current_thread() is threading.main_thread() else SystemExit

    def _count_nodes(self) -> None:
        """Count autograd nodes while that costs little; where they pile up, see who holds how many of them by now."""
        if not self._nodes.is_due(self.count) or not (self._nodes.needs_more or self._is_cheap()):
            return
        began = time.perf_counter()
        self._nodes.count(self.count)
        self._searched += time.perf_counter() - began
        if self._nodes.per_step and not self.owners:
            self._search()

    def _is_cheap(self) -> bool:
        return self._searched < SHARE * (time.perf_counter() - self._began)

    def _keep(self, point: dict[str, int]) -> None:
        if self.count % self.stride and len(self.points) > 1:
            held = self.points[-1]  # a point stands for the steps up to the next one
            held["peak"] = max(held["peak"], point["peak"])
            return
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            self.stride *= 2
            self.points = [each for each in self.points if each["step"] % self.stride == 0]

    def _grew(self) -> int:
        judged = self.points[WARMUP:]
        if len(judged) < 2 or judged[-1]["step"] == judged[0]["step"]:
            return 0
        return (judged[-1]["live"] - judged[0]["live"]) // (judged[-1]["step"] - judged[0]["step"])

    def _judge(self) -> tuple[bool, int]:
        """Tell whether steps leave more and more behind, and how much each."""
        judged = self.points[WARMUP:] if self.stride == 1 else self.points
        if len(judged) < ENOUGH:
            return False, 0
        series = [each["live"] for each in judged]
        return trend.rises(series), trend.slope(series) // self.stride

    def _may_search(self) -> bool:
        """Looking for owners walks the heap: when growth begins, soon after, and then as long as it costs little."""
        return self.count >= self._search_at or (bool(self.owners) and self._is_cheap())

    def _search(self) -> None:
        began = time.perf_counter()
        if not self.owners:
            gc.collect()
        found = self._look()
        self._search_at = self.count + 2 if not self.owners else 2 * self.count
        self.owners = holders.merged(self.owners, found, self._nodes.per_step)
        self._searched += time.perf_counter() - began

    def _look(self, error: BaseException | None = None, *, within: bool = False) -> list[Held]:
        since = self._since
        made, step = (since.made(), since.step) if since is not None else ({}, None)
        nodes = self._nodes.per_step
        return holders.find(self.count, self.owners, error=error, within=within, made=made, since=step, nodes=nodes)

    def _accused(self, error: BaseException | None, *, grows: bool) -> list[Held]:
        """Return who is to be told of at the end; at an OutOfMemoryError that nobody grew up to, all there are."""
        ended = how(error)
        if ended == OUT_OF_MEMORY and not self.owners:
            _, plain = makeup.classed(self.watch.storages.ledger.live())
            return holders.find(self.count, error=error, made=plain)[: holders.MOST]
        least = self._nodes.per_step
        found = self._look(error, within=ended != STOPPED) if grows or least or ended == OUT_OF_MEMORY else []
        accused = holders.growing(holders.merged(self.owners, found, least), plain=grows)[: holders.MOST]
        if grows or ended == OUT_OF_MEMORY:
            return accused
        return [each for each in accused if holders.piles_nodes(each, least)]

    def finish(self, error: BaseException | None, machine: dict[str, str], command: list[str], code: int) -> Trace:
        """Return what was recorded. Called after the block, while ``error``'s traceback still holds what it held."""
        watch, began = self.watch, time.perf_counter()
        if error is None and self._stopped:
            error = Stop()
        ran = began - self._began
        if error is None:
            gc.collect()
        grows, per_step = self._judge()
        owners = self._accused(error, grows=grows)
        self._searched += time.perf_counter() - began
        return Trace(
            machine=machine,
            command=command,
            ended=how(error),
            reason=self._reason(error),
            code=code,
            source=self._steps.source,
            steps=self.count,
            stride=self.stride,
            points=self.points,
            peak=makeup.saved_at_peak(watch),
            live_peak=max(self._peak_live, watch.storages.peak),
            last=makeup.everything(watch, self.count),
            moments=self.moments,
            grows=grows,
            per_step=per_step,
            nodes_per_step=self._nodes.per_step,
            owners=owners,
            card=watch.card.card.device.total if watch.card is not None else None,
            simulated=watch.card is not None,
            card_numbers=watch.card.read() if watch.card is not None else {},
            oom=str(out_of_memory(error) or ""),
            blind=watch.blind,
            seconds={"script": round(ran, 3), "owners": round(self._searched, 3)},
        )

    def _reason(self, error: BaseException | None) -> str:
        if isinstance(error, Stop):
            return f"stopped after {self.count} step{'s' * (self.count != 1)}, as --steps asked"
        if error is None or isinstance(error, (SystemExit, KeyboardInterrupt)):
            return ""
        return type(error).__name__


def is_milestone(step: int) -> bool:
    """Tell the steps whose lines are kept: 1 to 8, then four between each power of two and the next."""
    return step & ((1 << max(0, step.bit_length() - 3)) - 1) == 0


def how(error: BaseException | None) -> str:
    """Say in a word how a run ended."""
    if isinstance(error, Stop):
        return STOPPED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit) and exit_code(error) == 0:
        return FINISHED
    if out_of_memory(error) is not None:
        return OUT_OF_MEMORY
    return FINISHED if error is None else EXITED if isinstance(error, SystemExit) else FAILED
