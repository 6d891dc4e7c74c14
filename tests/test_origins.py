"""Where a saved tensor comes from, told from torch's and memlab's own frames."""

import sys
import sysconfig
from pathlib import Path

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
