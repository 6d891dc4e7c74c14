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


@pytest.fixture(scope="module")
def judged(request, tmp_path_factory):
    """Run all loops under limit_growth("0 B"); return their records by name."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "test_loops.py").write_text(BODY)
    gathered = {}

    class Gather:
        def pytest_runtest_logreport(self, report):
            if report.when == "call":
                name = report.nodeid.partition("[")[2].rstrip("]")
                gathered[name] = report.memlab_record | {"passed": report.passed, "text": report.longreprtext}

    options = ["-q", "-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "survey", lambda made: Survey([], [], {}))  # seconds; test_owners has its own loops
        pytest.main(options, plugins=[Gather()])
    return gathered


@pytest.mark.parametrize("loop", corpus.LOOPS.values(), ids=corpus.LOOPS)
def test_judged_right(judged, loop):
    record = judged[loop.name]
    assert (record["growth"] > 0, record["growth_nodes"] > 0) == (loop.grows, loop.nodes_grow), record
    assert record["passed"] is not loop.grows
    said = any("autograd nodes" in note for note in record["notes"])
    assert said is (loop.nodes_grow and not loop.grows)
