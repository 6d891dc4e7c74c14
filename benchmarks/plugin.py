"""What the pytest plugin costs: a suite of 200 small tests with and without it, other memory plugins beside it.

    python benchmarks/plugin.py [--rounds 5] [--tests 200]

Each way runs the same suite in a process of its own, in turns, so that a machine that slows down slows all of them.
Measured inside: collection and the loop over the tests, without the start of Python and torch. A row is the median over
the rounds of the difference to the plain run of the same round, for one test. Ways whose plugin is not installed are
named as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from memlab.doctor import machine

_TIMER = """
import json, os, time
import pytest

class Timer:
    spent = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self):
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.spent += time.perf_counter() - start

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self):
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.spent += time.perf_counter() - start
            open(os.environ["SPENT"], "w").write(str(self.spent))

def pytest_configure(config):
    import torch  # before the clock runs
    config.pluginmanager.register(Timer())
"""
_TEST = """
@pytest.mark.parametrize("n", range({tests}))
{mark}def test_small(n):
    x = torch.ones(8, 8, requires_grad=True)
    (x @ x).relu().sum().backward()
    assert x.grad is not None
"""
PLAIN = "without memlab"


@dataclass(frozen=True)
class Way:
    """One way to run the suite: options of pytest, a line of the ini file, a marker on every test."""

    options: tuple[str, ...] = ()
    ini: str = ""
    mark: str = ""
    module: str = ""  # that must be installed
    share: int = 1  # a way that takes seconds a test runs one test of so many


MEMLAB = ("-p", "memlab.pytest_plugin")
WAYS = {
    PLAIN: Way(),
    "memlab, nothing asked": Way(MEMLAB),
    "memlab, limit_saved on every test": Way(MEMLAB, "memlab_limit_saved = 1 GiB"),
    "memlab, limit_saved and limit_peak": Way(MEMLAB, "memlab_limit_saved = 1 GiB\nmemlab_limit_peak = 1 GiB"),
    "memlab, no_graph_left on every test": Way(MEMLAB, "memlab_no_graph_left = true"),
    "memlab, limit_growth on every test (7 runs)": Way(MEMLAB, "memlab_limit_growth = 0"),
    "pytest-memray, --memray": Way(("-p", "pytest_memray.plugin", "--memray"), module="pytest_memray"),
    "pytest-memray, limit_memory on every test": Way(
        ("-p", "pytest_memray.plugin"), mark='@pytest.mark.limit_memory("1 GB")\n', module="pytest_memray"
    ),
    "pytest-torch, nothing asked": Way(("-p", "pytest_torch.plugin"), module="pytest_torch"),
    "pytest-torch, torch_max_memory on every test": Way(
        ("-p", "pytest_torch.plugin"), mark="@pytest.mark.torch_max_memory(mb=1024)\n", module="pytest_torch"
    ),
    "pytest-torch, torch_memory_leak on every test": Way(
        ("-p", "pytest_torch.plugin"), mark="@pytest.mark.torch_memory_leak\n", module="pytest_torch", share=20
    ),
}


def run(way: Way, tests: int) -> float:
    """Return seconds for collection and all tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "conftest.py").write_text(_TIMER)
        (path / "pytest.ini").write_text(f"[pytest]\n{way.ini}\n")
        (path / "test_it.py").write_text("import pytest, torch\n" + _TEST.format(tests=tests, mark=way.mark))
        environment = os.environ | {"SPENT": str(path / "spent"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *way.options]
        done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return float((path / "spent").read_text())


def measure(rounds: int, tests: int) -> dict[str, list[float]]:
    """Return ``{way: seconds a test of each round}`` of the ways that are installed."""
    ways = {name: way for name, way in WAYS.items() if not way.module or importlib.util.find_spec(way.module)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            count = tests // way.share
            taken[name].append(run(way, count) / count)
    return taken


def table(taken: dict[str, list[float]], tests: int) -> str:
    lines = [f"| way | {tests} tests | added to a test |", "|---|---:|---:|"]
    for name, way in WAYS.items():
        if name not in taken:
            lines.append(f"| {name} | {way.module.replace('_', '-')} is not installed | |")
            continue
        added = statistics.median(a - b for a, b in zip(taken[name], taken[PLAIN], strict=True)) * 1000
        told = "" if name == PLAIN else f"{added:+.2f} ms"
        seconds = statistics.median(taken[name]) * tests
        told_of = f"{seconds:.2f} s" if way.share == 1 else f"{seconds:.0f} s, from {tests // way.share} tests"
        lines.append(f"| {name} | {told_of} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    taken = measure(options.rounds, options.tests)
    print("\n".join(f"- {key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print(table(taken, options.tests))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine("cpu"), "seconds": taken}, indent=1) + "\n")


if __name__ == "__main__":
    main()
