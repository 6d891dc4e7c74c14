"""Memory checks in tests: markers, the fixture ``memlab``, baselines; and experiments as tests.

The markers are in `memlab.guard.limits`, what they do in the other modules of `memlab.guard`. Where no test asks for
anything, this costs nothing: the hooks around tests are registered with the first that does, and torch comes with it.

Every arm of an experiment is an item that passes when its claim holds. A file is an experiment when it assigns
``experiment = Experiment(...)`` and lies in a folder named ``experiments`` or is named on the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memlab.guard import limits

if TYPE_CHECKING:
    from memlab.experiment import Summary
    from memlab.guard.checks import Memlab
    from memlab.guard.session import Session
    from memlab.report import Finding

_ASSIGNED = re.compile(r"^experiment\b[^=\n]*=\s*(\w+\.)*Experiment\(", re.MULTILINE)
FOLDER = "experiments"


_RECORD = "memlab_record"  # the attribute of a report that carries what was measured


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlab")
    group.addoption("--memlab", action="store_true", help="measure every test and show the largest at the end")
    group.addoption("--memlab-update", action="store_true", help="write the baselines of the checks that run")
    group.addoption("--memlab-strict", action="store_true", help="fail what could not be checked")
    group.addoption("--memlab-json", metavar="FILE", help="write everything that was measured as JSON")
    group.addoption("--memlab-device", default="cpu", help="where experiments run: cpu (the default), cuda or cuda:0")
    parser.addini("memlab_strict", "fail what could not be checked", type="bool", default=False)
    limits.add_ini(parser)


def pytest_configure(config: pytest.Config) -> None:
    for _, _, line in limits.MARKERS.values():
        config.addinivalue_line("markers", line)
    _check_options(config)
    limits.from_ini(config)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reports(config), "memlab-reports")


def _check_options(config: pytest.Config) -> None:
    device, target = config.getoption("--memlab-device"), config.getoption("--memlab-json")
    if device == "cpu" and target is None:
        return
    from memlab import options

    try:
        options.device(device)
    except options.Wrong as error:
        raise pytest.UsageError(f"--memlab-device: {error}") from None
    try:
        options.destination(target)
    except options.Wrong as error:
        raise pytest.UsageError(str(error).replace("--json", "--memlab-json", 1)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Read every test's markers, so that wrong use is told before anything runs."""
    defaults, everything = limits.from_ini(config), config.getoption("--memlab")
    wanted = False
    for item in items:
        if isinstance(item, pytest.Function):
            wanted = _prepare(item, defaults, everything=everything) or wanted
    if wanted and not config.pluginmanager.has_plugin("memlab-runner"):
        from memlab.guard import runner

        config.pluginmanager.register(runner.Runner(), "memlab-runner")


def _prepare(item: pytest.Function, defaults: limits.Limits, *, everything: bool) -> bool:
    """Note what is asked of ``item``; tell whether it is measured at all."""
    try:
        asked = limits.of(item, defaults)
        if not (everything or asked != limits.NONE or "memlab" in item.fixturenames):
            return False
        from memlab.guard import runner

        runner.prepare(item, asked, measured=everything or asked != limits.NONE)
    except pytest.UsageError as error:
        if not hasattr(item.config, "workerinput"):
            raise
        from memlab.guard import runner

        runner.refuse(item, str(error))  # a worker of pytest-xdist cannot stop the run: the test says it
    return True


@pytest.fixture
def memlab(request: pytest.FixtureRequest) -> Memlab:
    """Measure memory: ``watch()``, ``growth(step)`` and ``check(seen, name=..., within=...)`` against a baseline."""
    from memlab.guard import runner

    return runner.fixture(request.node)


class Reports:
    """Gathers what was measured in the process that tells the results: under pytest-xdist, the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.collected: list[str] = []
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            from memlab.guard.session import Session

            self._session = Session(self.config)
        return self._session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        content = getattr(report, _RECORD, None)
        if content is not None:
            self.session.add(content)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected = list(ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        collected = self.collected or [item.nodeid for item in getattr(session, "items", [])]
        asked = self._session is not None or self.config.getoption("--memlab-json")
        if not asked and not _has_baselines(session, collected):
            return
        self.session.collected = collected
        self.session.finish(whole=exitstatus in (0, 1) and not (session.shouldstop or session.shouldfail))
        if self.session.wrong_use and exitstatus in (0, 1):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._session is None:
            return
        from memlab.guard import summary

        lines = list(summary.lines(self._session, everything=self.config.getoption("--memlab")))
        if lines:
            terminalreporter.section("memlab")
        for line in lines:
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in summary.for_github(self._session, os.environ.get("GITHUB_WORKSPACE", "")):
                terminalreporter.write_line(line)


def _has_baselines(session: pytest.Session, collected: list[str]) -> bool:
    folders = {(session.config.rootpath / test.partition("::")[0]).parent for test in collected}
    return any((folder / "__memlab__").is_dir() for folder in folders)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Collect an experiment's arms instead of anything else that its file might be."""
    collected = yield
    if _is_experiment(file_path, named=parent.session.isinitpath(file_path)):
        return [ExperimentFile.from_parent(parent, path=file_path)]
    return collected


def _is_experiment(path: Path, *, named: bool) -> bool:
    if path.suffix != ".py" or path.name.startswith("_") or not (named or path.parent.name == FOLDER):
        return False
    try:
        return _ASSIGNED.search(path.read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


class ExperimentFile(pytest.File):
    """An experiment; nothing of it is imported here."""

    def collect(self) -> Iterator[ArmItem]:
        from memlab import experiment

        try:
            summary = experiment.summarise(self.path)
        except ValueError as error:
            raise self.CollectError(str(error)) from None
        for arm in summary.arms:
            yield ArmItem.from_parent(self, name=arm, summary=summary)


class ArmItem(pytest.Item):
    """One arm, measured in a process of its own."""

    def __init__(self, *, summary: Summary, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.summary = summary

    def runtest(self) -> None:
        finding = self._measure()
        if finding.status == "skipped":
            pytest.skip(finding.reason)
        if finding.status != "holds":
            pytest.fail(_told(finding), pytrace=False)

    def _measure(self) -> Finding:
        from memlab import isolate, options

        isolate.prepare()
        jobs = options.Plan([(self.path, self.name)]).jobs(self.config.getoption("--memlab-device"))
        printed: list[str] = []
        try:
            return isolate.run(jobs, on_text=lambda job, text: printed.append(text))[0]
        except ValueError as error:
            reason = str(error)
        finally:
            if printed:
                self.add_report_section("call", "output", "".join(printed))
        pytest.fail(reason, pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.summary.name}: {self.name}"


def _told(finding: Finding) -> str:
    """Return why the claim does not hold, the claim, and what the arm is."""
    from memlab.show import _details

    lines = [line for block in _details.blocks([finding]) for line in (block.heading, *block.below())]
    return "\n".join([*lines, "", f"claim: {finding.claim}", f"{finding.arm}: {finding.title}"])
