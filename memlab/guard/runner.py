"""Measures the bodies of tests and judges them; registered only where a test asks for it."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.unittest import TestCaseFunction

from memlab.guard import baseline
from memlab.guard.checks import Memlab
from memlab.guard.limits import Limits
from memlab.guard.record import Record

if TYPE_CHECKING:
    from memlab.guard.judge import Test

LIMITS = pytest.StashKey[Limits]()
RECORD = pytest.StashKey[Record]()
_TEST = pytest.StashKey["Test"]()
_WRONG = pytest.StashKey[str]()
_FIXTURE = pytest.StashKey[str]()

ATTRIBUTE = "memlab_record"
"""The attribute of a test's report that carries its `Record` as a dict, through pytest-xdist as well."""


def prepare(item: pytest.Function, asked: Limits, *, measured: bool) -> None:
    """Note what is asked of ``item``.

    Raises:
        pytest.UsageError: its baseline is damaged or newer.
    """
    if measured:
        item.stash[LIMITS] = asked
    if "memlab" in item.fixturenames:
        try:
            baseline.load(baseline.path_of(item.path))
        except baseline.NotABaseline as error:
            raise pytest.UsageError(str(error)) from None


def refuse(item: pytest.Function, sentence: str) -> None:
    """Let ``item`` fail with a sentence about its wrong use."""
    item.stash[_WRONG] = sentence


def fixture(item: pytest.Function) -> Memlab:
    """Return what the fixture ``memlab`` gives to ``item``."""
    update = item.config.getoption("--memlab-update")
    return Memlab(item, record_of(item), update=update, strict=is_strict(item.config))


def is_strict(config: pytest.Config) -> bool:
    return bool(config.getoption("--memlab-strict") or config.getini("memlab_strict"))


class Runner:
    """The hooks around one test."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        wrong = item.stash.get(_WRONG, "")
        if wrong:
            record = record_of(item)
            record.wrong_use = True
            record.failures.append(wrong)
            pytest.fail(wrong, pytrace=False)
        limits = item.stash.get(LIMITS, None)
        if limits is None or not isinstance(item, pytest.Function):
            return (yield)
        __tracebackhide__ = True
        from memlab.guard.judge import Test

        test = item.stash[_TEST] = Test(item, limits, record_of(item), strict=is_strict(item.config))
        if isinstance(item, TestCaseFunction):
            _measure_method(item, test)
        result = yield
        if not getattr(item, "_excinfo", None):  # unittest keeps what its test raised there
            test.judge(self._run_again)
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        test = pyfuncitem.stash.get(_TEST, None)
        if test is None:
            return (yield)
        __tracebackhide__ = True
        with test.body():
            return (yield)

    def _run_again(self, item: pytest.Function) -> None:
        """Run the body in a fresh function scope."""
        test = item.stash[_TEST]
        item.stash[_FIXTURE] = ""
        try:
            test.scope.set_up()
        except Exception as error:
            test.wrong_use(
                f"limit_growth runs the body again and again, and the fixture {item.stash[_FIXTURE] or 'of it'!r} "
                f"cannot be set up a second time ({type(error).__name__}: {error}); give it a wider scope, or take "
                "limit_growth off this test"
            )
        if isinstance(item, TestCaseFunction):
            _measure_method(item, test)
        item.runtest()
        raised = getattr(item, "_excinfo", None)
        if raised:
            item._excinfo = None  # type: ignore[attr-defined]
            raise raised[0].value

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except Exception:
            stash = request.node.stash
            if _FIXTURE in stash and not stash[_FIXTURE]:
                stash[_FIXTURE] = fixturedef.argname
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        test = item.stash.get(_TEST, None)
        result = yield
        if test is not None:
            del item.stash[_TEST]
            if test.record.growth or test.record.nodes_left:
                gc.collect()  # what was left and could go now is not the next test's
            if test.teardown_error is not None:
                raise test.teardown_error
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        record = item.stash.get(RECORD, None)
        if record is not None and call.when == "call":
            record.raised = call.excinfo is not None and not record.failures
            item.user_properties.extend(record.properties())
        report = yield
        if record is not None and call.when == "call":
            setattr(report, ATTRIBUTE, record.to_dict())
        return report


def record_of(item: pytest.Item) -> Record:
    """Return the record of a test, made when it is first asked for."""
    record = item.stash.get(RECORD, None)
    if record is None:
        file, line, _ = item.location
        limits = item.stash.get(LIMITS, None)
        record = Record(item.nodeid, file, (line or 0) + 1, limits.told() if limits is not None else {})
        item.stash[RECORD] = record
    return record


def _measure_method(item: Any, test: Test) -> None:
    """Let a unittest.TestCase's method be measured alone, without its setUp and tearDown."""
    method: Callable[..., Any] = item.obj

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def measured(*args: Any, **kwargs: Any) -> Any:
            with test.body():
                return await method(*args, **kwargs)

        setattr(item.instance, item.name, measured)  # unittest looks a coroutine up there by itself
        return

    @functools.wraps(method)
    def measured_now(*args: Any, **kwargs: Any) -> Any:
        with test.body():
            return method(*args, **kwargs)

    item.obj = measured_now
