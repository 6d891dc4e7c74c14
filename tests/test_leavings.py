"""What one test leaves is not what the next one measures."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
FAILS_THEN_MEASURES = """
    import weakref
    import pytest

    class Tensor:
        pass

    held = []

    def test_fails():
        tensor, cycle = Tensor(), []
        cycle += [cycle, tensor]
        held.append(weakref.ref(tensor))
        assert tensor is None

    @pytest.mark.cuda
    def test_measures():
        assert held[0]() is None
"""


def test_what_a_failed_test_held_is_gone_before_one_measures_on_cuda(pytester, monkeypatch):
    """In a process of its own: in this one, what records pytest's hooks keeps all errors."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = cuda")
    pytester.makepyfile(FAILS_THEN_MEASURES)
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(failed=1, passed=1)
    done.stdout.fnmatch_lines(["FAILED *::test_fails*"])
