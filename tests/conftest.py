"""Fixtures of several files; what pytest's own testing plugin must not undo, and which tests come last."""

import gc
import sys
import textwrap
from pathlib import Path

import holders
import projects
import pytest
import recordings
import torch
from _pytest.pytester import SysModulesSnapshot

from memlab import cli
from memlab.guard import heap
from memlab.tracing.trace import load


@pytest.fixture(scope="session", autouse=True)
def same_at_a_desk_as_in_ci():
    """Take away what a terminal or a CI service asks of programs; whoever runs pytest has it back for its summary."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS"):  # pytest's own summaries, and the plugin's, are longer
            patch.delenv(name, raising=False)
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def imported_once(tmp_path_factory):
    """Let modules stay imported that a session inside a test was the first to import.

    pytester takes sys.modules back after each session, but parts of torch refuse to be imported twice in a process
    (torch._inductor: "Artifact of type=autotune already registered"). Only what a test wrote itself goes.
    """
    take_back, tests = SysModulesSnapshot.restore, tmp_path_factory.getbasetemp()

    def restore(self):
        now = dict(sys.modules)
        take_back(self)
        for name, module in now.items():
            file = getattr(module, "__file__", None)
            if file is None or not Path(file).is_relative_to(tests):
                sys.modules.setdefault(name, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SysModulesSnapshot, "restore", restore)
        yield


def pytest_collection_modifyitems(items):
    """Let tests that import torch's compiler come last: it doubles the heap, which others walk again and again."""
    items.sort(key=lambda item: item.get_closest_marker("compiles") is not None)


@pytest.fixture(autouse=True)
def nothing_of_a_failed_test(request):
    """Let a failed test's tensors, which its traceback holds, not leave the card while the next one measures there."""
    if request.node.get_closest_marker("cuda") is not None:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # where pytest puts what failed
            vars(sys).pop(name, None)
        gc.collect()


@pytest.fixture(scope="module")
def small_heap():
    """Let looks at the heap see what a file's tests make and little else: libraries and other tests' leavings aside."""
    gc.collect()
    with heap.small_heap():
        yield


@pytest.fixture(scope="module")
def nothing_else_alive():
    """Let graphs that other tests have left not count in `holders.owners`."""
    holders.leave_out_what_there_is()


@pytest.fixture
def make():
    """Return a function that makes a graph."""
    gc.collect()
    weight = torch.ones(16, requires_grad=True)
    return lambda: weight.exp().sum()


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Be in a folder where scripts may run in this process; what they change of it is changed back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return tmp_path


@pytest.fixture
def project(pytester, monkeypatch):
    """Make a test file from bodies; return what runs pytest on it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def again(*arguments):
        return pytester.runpytest_inprocess("-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "-ra", *arguments)

    def run(code, *arguments, name="test_it"):
        path = pytester.path / f"{name}.py"
        path.write_text(projects.HEAD + code)
        return again(*arguments)

    run.path, run.again = pytester.path, again
    return run


@pytest.fixture(scope="module")
def recorded():
    """A snapshot of two training steps, and what was trained."""
    return recordings.record()


@pytest.fixture
def trace(own_folder, capsys):
    """Trace code in this process; return the exit code, stdout, stderr and what was recorded."""

    def go(code, *options, arguments=()):
        (own_folder / "train.py").write_text(textwrap.dedent(code))
        target = [] if "-m" in options else ["train.py"]
        given = ["--json", "out.json", *map(str, options), *target, *arguments]
        status = cli.main(["trace", *given])
        return (status, *capsys.readouterr(), load(own_folder / "out.json"))

    return go
