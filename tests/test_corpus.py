"""Every loop of the corpus is judged right by the plugin, in one run of pytest."""

import corpus
import pytest

from memlab.guard import judge
from memlab.ownership.survey import Survey

BODY = """
import pytest
from corpus import LOOPS


@pytest.fixture(scope="module", params=LOOPS)
def step(request):
    return LOOPS[request.param].make()


@pytest.mark.limit_growth("0 B")
def test_loop(step):
    step()
"""


def judged(folder):
    """Run all loops under limit_growth("0 B"); return their records by name."""
    (folder / "test_loops.py").write_text(BODY)
    gathered = {}

    class Gather:
        def pytest_runtest_logreport(self, report):
            if report.when == "call":
                name = report.nodeid.partition("[")[2].rstrip("]")
                gathered[name] = report.memlab_record | {"passed": report.passed}

    options = ["-q", "-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    pytest.main(options, plugins=[Gather()])
    return gathered


def verdict(record):
    """Return whether bytes grow, whether nodes do, whether the test passed, and whether nodes alone were noted."""
    noted = any("autograd nodes" in note for note in record["notes"])
    return record["growth"] > 0, record["growth_nodes"] > 0, record["passed"], noted


def test_every_loop_is_judged_right(tmp_path, monkeypatch):
    """One test, so that no two workers run all loops."""
    monkeypatch.setattr(judge, "survey", lambda made: Survey([], [], {}))  # seconds; test_owners has its own loops
    found = {name: verdict(record) for name, record in judged(tmp_path).items()}
    assert found == {
        loop.name: (loop.grows, loop.nodes_grow, not loop.grows, loop.nodes_grow and not loop.grows)
        for loop in corpus.LOOPS.values()
    }
