"""Where a saved tensor comes from, told from torch's and memlab's own frames."""

import sys
import sysconfig
from pathlib import Path

import torch

import memlab
from memlab import origins


def user_code_at(path):
    """Return what `user_code` finds when it is called from a file at ``path``."""
    found = []
    source = compile("found.append(origins.user_code(sys._getframe(0)))", str(path), "exec")
    exec(source, {"origins": origins, "sys": sys, "found": found})
    return found[0]


def test_frames_of_memlab_are_skipped_and_experiments_in_a_wheel_are_not():
    package = Path(memlab.__file__).parent
    inside, _ = user_code_at(package / "hooks.py")
    experiment, _ = user_code_at(package / "experiments" / "oom_demo.py")
    assert inside.co_filename == __file__
    assert experiment.co_filename.endswith("oom_demo.py")


def test_describe_is_relative_to_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, lasti = user_code_at(tmp_path / "train.py")
    assert origins.describe(code, lasti) == "train.py:1"
    code, lasti = user_code_at("/elsewhere/train.py")
    assert origins.describe(code, lasti) == "/elsewhere/train.py:1"
    assert origins.describe(None, -1) == "unknown"


def test_frames_of_python_s_own_library_are_skipped_and_installed_packages_are_not():
    library = Path(sysconfig.get_path("stdlib"))
    assert user_code_at(library / "copy.py")[0].co_filename == __file__
    for place in (library / "site-packages" / "their.py", library / "dist-packages" / "their.py"):
        assert user_code_at(place)[0].co_filename == str(place)


def test_code_that_torch_writes_is_a_line_of_its_caller():
    model = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()))
    with memlab.watch() as seen:
        kept = model(torch.ones(1, 2))
    line = sys._getframe().f_lineno - 1
    assert kept.requires_grad
    assert set(seen.saved.by("line")) == {f"tests/test_origins.py:{line}"}
    assert {each.module for each in seen.saved.lines} >= {"1"}
