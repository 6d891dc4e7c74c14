"""Memory checks beside what else runs a test: skips, errors, unittest, anyio, hooks, modes, threads."""

import pytest


def test_skip_xfail_and_errors_are_told_as_themselves(project):
    code = """
pytestmark = [pytest.mark.limit_saved(0), pytest.mark.limit_growth(0), pytest.mark.no_graph_left]

def test_skips(): forward(); pytest.skip("not today")

@pytest.mark.skip
def test_skipped(): forward()

@pytest.mark.xfail(reason="known")
def test_known_leak(): forward()

@pytest.mark.xfail(strict=True)
def test_known_error(): forward(); raise ValueError

def test_raises(): forward(); raise ValueError("mine")

class TestUnit(unittest.TestCase):
    def test_skips(self): forward(); self.skipTest("not today")
    def test_raises(self): forward(); self.fail("mine, too")

@pytest.fixture
def breaks():
    yield
    raise RuntimeError("at the end")

@pytest.mark.limit_saved(None)
def test_teardown(breaks): pass
"""
    result = project(code)
    result.assert_outcomes(skipped=3, xfailed=2, failed=2, passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E *RuntimeError: at the end", "E   ValueError: mine", "E   AssertionError: mine, too"]
    )
    result.stdout.no_fnmatch_line("limit_saved:*")


def test_anyio_s_tests_are_measured_while_they_await(project):
    code = """
import anyio
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend(): return "asyncio"

async def later(x=None):
    await anyio.sleep(0)
    loss = forward(x)
    await anyio.sleep(0)
    return loss

@pytest.mark.limit_saved(1024, exact=True)
@pytest.mark.no_graph_left
async def test_at(x): (await later(x)).backward()

@pytest.mark.limit_saved(1023)
async def test_below(x): await later(x)

@pytest.mark.limit_growth(0)
async def test_clean(x): (await later(x)).backward()

@pytest.mark.limit_growth(0)
async def test_leaks(): KEPT.append(await later())
"""
    result = project(code, "-p", "anyio")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        ["limit_saved: 1,024 B saved for backward, 1 B over*", "limit_growth: *left behind by each run*"]
    )


@pytest.mark.compiles
def test_other_hooks_modes_and_threads(project):
    code = """
import threading
from torch.utils.checkpoint import checkpoint
import memlab as lab

@pytest.fixture
def on_meta():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)

@pytest.fixture
def watched():
    with lab.watch() as seen:
        yield seen

@pytest.mark.limit_saved(4 << 20, exact=True)
@pytest.mark.limit_peak(8 << 20)
@pytest.mark.limit_growth(0, steps=2, warmup=0)
def test_meta(on_meta): torch.ones(1 << 20, requires_grad=True).exp()

@pytest.mark.limit_saved(1024, exact=True)
def test_watch_fixture(watched):
    forward()
    assert watched.saved.peak == 1024

@pytest.mark.limit_saved(1024, exact=True)
@pytest.mark.no_graph_left
def test_own_hooks(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        forward(x).backward()

@pytest.mark.limit_saved(1024, exact=True)  # its input is a fixture's; exp's output comes again in backward
def test_checkpoint(x): checkpoint(torch.exp, x, use_reentrant=False).sum().backward()

@pytest.mark.limit_saved(1024, exact=True)
@pytest.mark.limit_growth(0, steps=2, warmup=1)
def test_compiled(x): torch.compile(lambda x: x.exp().sum(), backend="aot_eager")(x).backward()

@pytest.mark.limit_saved(1024, exact=True)
def test_threads(x):
    thread = threading.Thread(target=forward)
    thread.start(); thread.join()
"""
    result = project(code, "--memlab", "-W", "ignore")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "noticed: test_it.py::test_compiled",
            "  what a compiled region allocates and frees inside is not seen: peaks leave it out",
        ]
    )
