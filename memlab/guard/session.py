"""Gathers every test's record in the process that tells the results, and writes baselines and the JSON report there.

Under pytest-xdist that is the controller: the records travel with the tests' reports, so each file has one writer.
Importing this does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memlab.guard import baseline
from memlab.guard.baseline import Key, Measured
from memlab.guard.checks import test_of
from memlab.guard.record import Record
from memlab.report import write_atomically

_FORMAT, _VERSION = "memlab pytest report", 1


@dataclass
class Session:
    """What a whole run has found.

    Attributes:
        records: one for each test that was measured.
        updated: baseline files that were rewritten.
        refused: sentences about baseline files that could not be.
        stale: sentences about entries of baselines whose test or check is no more.
        collected: ids of the tests that exist.
    """

    config: pytest.Config
    records: list[Record] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    collected: list[str] = field(default_factory=list)

    def add(self, content: dict[str, Any]) -> None:
        self.records.append(Record(**content))

    def finish(self, *, whole: bool) -> None:
        """Write what was asked for; ``whole`` says that every test of each module was collected and the run ended."""
        self._update()
        if whole and not _narrowed(self.config):
            self._find_stale()
        target = self.config.getoption("--memlab-json")
        if target:
            write_atomically(Path(target), self.to_json())

    @property
    def wrong_use(self) -> bool:
        return bool(self.refused) or any(record.wrong_use for record in self.records)

    def _module(self, test: str) -> Path:
        return self.config.rootpath / test.partition("::")[0]

    def _relative(self, path: Path) -> str:
        root = self.config.rootpath
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _update(self) -> None:
        changed: dict[Path, dict[Key, Measured]] = {}
        for record in self.records:
            for check in record.checks:
                if check["outcome"] == "recorded" and not record.raised:
                    test, name, device, version = check["key"]
                    entries = changed.setdefault(baseline.path_of(self._module(record.test)), {})
                    entries[test, name, device, version] = Measured.from_json(check["measured"])
        for path, entries in sorted(changed.items()):
            try:
                if baseline.update(path, entries):
                    self.updated.append(self._relative(path))
            except (baseline.NotABaseline, OSError) as error:
                self.refused.append(f"{error} (nothing was written)")

    def _find_stale(self) -> None:
        made = {(record.test, each["name"]) for record in self.records for each in record.checks}
        finished = {record.test for record in self.records if not record.raised and not record.failures}
        for module in sorted({test.partition("::")[0] for test in self.collected}):
            path = baseline.path_of(self.config.rootpath / module)
            try:
                held = baseline.load(path) if path.is_file() else {}
            except baseline.NotABaseline:
                continue  # told where it is used
            for test, name in sorted({key[:2] for key in held}):
                self._judge_entry(f"{module}::{test}", test, name, path, made, finished)

    def _judge_entry(
        self, nodeid: str, test: str, name: str, path: Path, made: set[tuple[str, str]], finished: set[str]
    ) -> None:
        entry = f"{self._relative(path)}: {test}, check {name!r}"
        if nodeid not in self.collected and test_of(nodeid) == test:
            self.stale.append(f"{entry}: there is no such test")
        elif nodeid in finished and (nodeid, name) not in made:
            self.stale.append(f"{entry}: the test makes no such check")

    def to_json(self) -> str:
        import platform

        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "python": platform.python_version(),
            "tests": [record.to_dict() for record in sorted(self.records, key=lambda record: record.test)],
            "baselines updated": self.updated,
            "baselines refused": self.refused,
            "baselines stale": self.stale,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _narrowed(config: pytest.Config) -> bool:
    """Tell whether options left tests of a module out."""
    options = config.option
    chosen = any(getattr(options, name, None) for name in ("keyword", "markexpr", "lf", "stepwise", "deselect"))
    return chosen or any("::" in each for each in config.args)
