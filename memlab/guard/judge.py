"""One test: its body measured, run again where growth is limited, and judged."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from memlab import trend
from memlab.guard import heap, texts
from memlab.guard.body import Body
from memlab.guard.left import Mark
from memlab.guard.limits import Growth, Limits
from memlab.guard.record import Record
from memlab.guard.scope import FunctionScope
from memlab.lines import GIVEN, Line
from memlab.node_names import READS_PACKED
from memlab.ownership.survey import survey
from memlab.units import format_exact

RunAgain = Callable[[pytest.Function], None]
_CONFIRM = 3  # times ``steps``: what may grow runs on, for a bounded container fills up and stops
_OWNERS = 3


class Test:
    """What is asked of one test, and what was found."""

    __test__ = False

    def __init__(self, item: pytest.Function, limits: Limits, record: Record, *, strict: bool) -> None:
        self._strict = strict
        self.item, self.limits, self.record = item, limits, record
        self.scope = FunctionScope(item)
        self.teardown_error: BaseException | None = None
        self._bodies: list[Body] = []
        self._mark = Mark() if limits.no_graph_left else None

    @contextmanager
    def body(self) -> Iterator[None]:
        """Measure one run of the body."""
        __tracebackhide__ = True
        body = Body(self.item, self.limits)
        self._bodies.append(body)
        try:
            with body.measuring():
                yield
        finally:
            if len(self._bodies) == 1:
                body.fill(self.record)

    def judge(self, run_again: RunAgain) -> None:
        """Fail the test, in words, where a limit does not hold; the body ran once and raised nothing."""
        if not self._bodies:  # another plugin ran the test in its own way
            self.record.not_checked.append("the body ran where memlab does not see it")
            return
        self._judge_saved()
        self._judge_peak()
        if self.limits.growth is not None or self._mark is not None:
            self._tear_down()
        if self._mark is not None:
            self._judge_left(self._mark)
        if self.limits.growth is not None:
            self._judge_growth(self.limits.growth, run_again)
        self.record.runs = len(self._bodies)
        if self.record.not_checked and self._strict:
            self.record.failures.extend(f"not checked: {reason}" for reason in self.record.not_checked)
        if self.record.failures:
            pytest.fail("\n".join(self.record.failures), pytrace=False)

    def wrong_use(self, sentence: str) -> NoReturn:
        self.record.wrong_use = True
        self.record.failures.append(sentence)
        pytest.fail(sentence, pytrace=False)

    def _tear_down(self) -> None:
        try:
            self.scope.tear_down()
        except Exception as error:
            self.teardown_error = error  # it is told as an error of the teardown, where it belongs

    def _fail(self, heading: str, below: list[str], lead: str = "the largest at the peak:") -> None:
        given = self.record.given
        more = [f"  fixtures' tensors, {format_exact(given)}, do not count"] if given else []
        self.record.failures.append("\n".join([heading, *([f"  {lead}"] if below else []), *below, *more]))

    def _judge_saved(self) -> None:
        limit, peak = self.limits.saved, self._bodies[0].seen.saved.peak
        if limit is not None and (peak > limit.size.bytes or (limit.exact and peak != limit.size.bytes)):
            lines = self._bodies[0].seen.saved.peak_lines
            heading = texts.over("limit_saved", "saved for backward", peak, limit.size, exact=limit.exact)
            self._fail(heading, texts.largest(lines, self.item.config.rootpath))

    def _judge_peak(self) -> None:
        limit, body = self.limits.peak, self._bodies[0]
        if limit is None:
            return
        if body.not_checked:
            self.record.not_checked.append(f"limit_peak on {limit.device}: {body.not_checked}")
            return
        on_cuda = body.cuda_peak is not None and (limit.device is not None or body.cuda_peak > 0)
        peak = body.cuda_peak if on_cuda and body.cuda_peak is not None else body.seen.storages.peak
        if peak > limit.size.bytes:
            what = "allocated by torch.cuda at the peak" if on_cuda else "of tensor storages at the peak"
            below = texts.storages(body.seen.storages.at_peak, self.item.config.rootpath)
            self._fail(texts.over("limit_peak", what, peak, limit.size), below)

    def _judge_left(self, mark: Mark) -> None:
        nodes, body = mark.left(), self._bodies[0]
        if nodes or body.seen.saved.tensors:  # what only a reference cycle holds does not outlive anything
            gc.collect()
            nodes = mark.left()
        self.record.nodes_left = nodes
        if nodes or body.seen.saved.tensors:
            kept = body.seen.saved.bytes
            what = "node outlives the test and keeps" if nodes == 1 else "nodes outlive the test and keep"
            heading = f"no_graph_left: {nodes} autograd {what} {format_exact(kept)}"
            below = texts.largest(_made(body.seen.saved.lines), self.item.config.rootpath)
            self._fail(heading, [*below, *self._owners()], "the largest that is kept:")

    def _judge_growth(self, limit: Growth, run_again: RunAgain) -> None:
        with heap.small_heap() as older:
            readings = self._readings(limit.warmup + limit.steps, run_again, older)[limit.warmup :]
            if readings[-1].counted > min(each.counted for each in readings) + limit.size.bytes:
                readings += self._readings(_CONFIRM * limit.steps, run_again, older)
        series, nodes = [each.bytes for each in readings], [each.nodes for each in readings]
        grows, slope, node_slope = _grows(readings), trend.slope(series), trend.slope(nodes)
        self.record.growth, self.record.growth_nodes = slope if grows else 0, node_slope if trend.rises(nodes) else 0
        self.record.series, self.record.nodes = series, nodes
        if grows and slope > limit.size.bytes:
            heading = texts.over("limit_growth", "left behind by each run", slope, limit.size)
            self._fail(
                heading,
                [*self._left_by_last(slope), *self._owners(), f"  bytes after each run: {texts.readings(series)}"],
                "what the last run left:",
            )
        elif self.record.growth_nodes and not grows:
            scalars = f" besides {format_exact(slope)} of losses" if trend.rises(series) else ""
            self.record.note(
                f"each run leaves {node_slope} autograd nodes{scalars}: not bytes of tensors, but Python's memory grows"
            )

    def _readings(self, count: int, run_again: RunAgain, older: heap.Older) -> list[heap.Reading]:
        """Run the body until it ran ``count`` times more (pytest's own run is the first) and read after each."""
        readings: list[heap.Reading] = []
        for _ in range(count):
            if readings or len(self._bodies) > 1:
                try:
                    run_again(self.item)
                finally:
                    self._tear_down()
            readings.append(heap.read(self._bodies, older))
        return readings

    def _left_by_last(self, total: int) -> list[str]:
        """Return the lines of what the last run left, of ``total`` bytes a run, and what no line of them tells."""
        left = self._bodies[-1].seen
        saved = _made(left.saved.lines)
        if not saved:
            sizes = left.storages.sizes[: texts.MOST]
            return [f"    {format_exact(size)} of a tensor without a graph" for size in sizes]
        rest = total - sum(line.bytes for line in saved)
        besides = [f"    {format_exact(rest)} besides, that no graph saved or that a fixture made"] if rest > 0 else []
        return [*texts.largest(saved, self.item.config.rootpath), *besides]

    def _owners(self) -> list[str]:
        """Return who holds what the bodies made: graphs, and storages without one; not what earlier tests left."""
        if not READS_PACKED:
            return []
        made: dict[int, int] = {}
        for body in self._bodies:
            made |= body.seen.storages.ledger.live()
        look = survey(made=made)
        pinned = [look.pinned[key][0] for key in look.keys]
        found = [owner for owner, nbytes in zip(look.owners, pinned, strict=True) if nbytes][:_OWNERS]
        return ["  held by:", *texts.owner_lines(found)] if found else []


def _made(lines: Iterable[Line]) -> list[Line]:
    """Leave out what was there before the body: parameters, buffers and inputs."""
    return [line for line in lines if line.kind not in GIVEN]


def _grows(readings: list[heap.Reading]) -> bool:
    """Whether bytes rise, over all readings and still over the second half."""
    series = [each.counted for each in readings]
    return trend.rises(series) and trend.rises(series[len(series) // 2 :])
