"""Experiments as tests: every arm is an item that passes when its claim holds.

A file is an experiment when it assigns ``experiment = Experiment(...)`` and lies in a folder named ``experiments`` or
is named on the command line. Where none is collected this costs nothing: torch comes with the first one that runs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from memlab.experiment import Summary
    from memlab.report import Finding

_ASSIGNED = re.compile(r"^experiment\b[^=\n]*=\s*(\w+\.)*Experiment\(", re.MULTILINE)
FOLDER = "experiments"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memlab")
    group.addoption("--memlab-device", default="cpu", help="where experiments run: cpu (the default), cuda or cuda:0")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--memlab-device")
    if device == "cpu":
        return
    from memlab import options

    try:
        options.device(device)
    except options.Wrong as error:
        raise pytest.UsageError(f"--memlab-device: {error}") from None


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
