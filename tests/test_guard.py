"""Memory checks in pytest, run by pytest inside pytest: both sides of every limit, baselines, wrong use, company."""

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch

HEAD = """
import pytest, torch, unittest
from torch import nn

KEPT = []
WEIGHT = torch.ones(256, requires_grad=True)
SIZE = 1 << 10


def forward(x=None):
    x = torch.ones(256, requires_grad=True) if x is None else x
    return x.exp().sum()  # exp keeps its output: 1,024 bytes


@pytest.fixture
def x():
    return torch.ones(256, requires_grad=True)
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """Make a test file from bodies; return what runs pytest on it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def run(code, *arguments, name="test_it"):
        path = pytester.path / f"{name}.py"
        path.write_text(HEAD + code)
        return pytester.runpytest_inprocess("-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "-ra", *arguments)

    run.path = pytester.path
    run.again = lambda *arguments: pytester.runpytest_inprocess(
        "-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "-ra", *arguments
    )
    return run


def told(result):
    return "\n".join(result.outlines)


# Both sides of every limit


LIMITS = """
@pytest.mark.limit_saved(SIZE - 1)
def test_saved_below_fails(): forward().backward()

@pytest.mark.limit_saved(SIZE)
def test_saved_at(): forward().backward()

@pytest.mark.limit_saved(SIZE + 1)
def test_saved_above(): forward().backward()

@pytest.mark.limit_saved(SIZE - 1, exact=True)
def test_exact_below_fails(): forward().backward()

@pytest.mark.limit_saved(SIZE, exact=True)
def test_exact_at(): forward().backward()

@pytest.mark.limit_saved(SIZE + 1, exact=True)
def test_exact_above_fails(): forward().backward()

@pytest.mark.limit_peak(2 * SIZE + 11)
def test_peak_below_fails(x): forward(x) + forward(x)

@pytest.mark.limit_peak(2 * SIZE + 12)
def test_peak_at(x): forward(x) + forward(x)

@pytest.mark.limit_peak(2 * SIZE + 13, device="cpu")
def test_peak_above(x): forward(x) + forward(x)

@pytest.mark.limit_growth(SIZE - 1)
def test_growth_below_fails(): KEPT.append(torch.ones(256))

@pytest.mark.limit_growth(SIZE)
def test_growth_at(): KEPT.append(torch.ones(256))

@pytest.mark.limit_growth(SIZE + 1)
def test_growth_above(): KEPT.append(torch.ones(256))

@pytest.mark.card((2 << 20) - 1)
def test_card_below_fails(): torch.ones(256)

@pytest.mark.card(2 << 20)
def test_card_at(): torch.ones(256)

@pytest.mark.card((2 << 20) + 1)
def test_card_above(): torch.ones(256)

@pytest.mark.no_graph_left
def test_left_fails(): KEPT.append(torch.ones(2, requires_grad=True).exp())

@pytest.mark.no_graph_left
def test_left_without_saved_tensors_fails(): KEPT.append(torch.ones(2, requires_grad=True) + 1)

@pytest.mark.no_graph_left
def test_left_nothing(x): KEPT.append(forward(x).detach())
"""


def test_one_byte_below_at_and_above_every_limit(project):
    result = project(LIMITS, "-v", "--tb=no")
    for line in result.outlines:
        if "::" in line and "%]" in line:
            assert ("FAILED" in line) is ("fails" in line.split()[0]), line
    result.assert_outcomes(passed=10, failed=8)


def test_the_texts(project):
    code = """
@pytest.mark.limit_saved("1 kB")
def test_saved(x):
    forward(x)

@pytest.mark.limit_peak("1 KiB")
def test_peak(x):
    forward(x)

@pytest.mark.limit_growth("0 B")
def test_growth(x):
    KEPT.append(forward(x))

@pytest.mark.no_graph_left
def test_left(x):
    KEPT.append(forward(x))

@pytest.mark.card("4 MiB")
def test_card(x):
    big = torch.ones(1 << 20)
"""
    result = project(code)
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "limit_saved: 1,024 B saved for backward, 24 B over the limit of 1 kB (1,000 B)",
            "  the largest at the peak:",
            "    1,024 B  exp * test_it.py:12",
            "  fixtures' tensors, 1,024 B, do not count",
            "limit_peak: 1,028 B of tensor storages at the peak, 4 B over the limit of 1 KiB (1,024 B)",
            "    1,024 B  exp output  test_it.py:12",
            "limit_growth: 1,028 B left behind by each run, 1,028 B over the limit of 0 B",
            "    1,024 B  exp * test_it.py:12",
            "  held by:",
            "    KEPT (global of test_it) -> list[[]*] -> Tensor -> SumBackward0",
            "      holds *",
            "  bytes after each run: *",
            "no_graph_left: 2 autograd nodes outlive the test and keep 1,024 B",
            "E       torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.*",
            "test_it.py:*: OutOfMemoryError",
        ]
    )
    result.stdout.no_fnmatch_line("*storage_ledger.py*")
    result.stdout.no_fnmatch_line("*guard/*.py*")
    assert max(map(len, result.outlines[:-8])) < 600


# What is the body's


def test_fixtures_of_every_scope_do_not_count(project):
    code = """
@pytest.fixture(scope="module")
def model():
    return nn.Linear(64, 64)

@pytest.fixture(scope="class")
def batch():
    return torch.ones(64, 64)

@pytest.mark.limit_saved(0)
class TestIt:
    @pytest.fixture(autouse=True)
    def made(self):
        self.graph = torch.ones(64, requires_grad=True).exp()
        yield
        forward().backward()

    def setup_method(self):
        self.more = torch.ones(64)

    @pytest.mark.limit_peak(0)
    def test_nothing(self, model, batch): pass

    @pytest.mark.limit_saved(None)
    @pytest.mark.limit_peak(64 * 64 * 4)
    def test_output(self, model, batch):
        with torch.no_grad(): model(batch)

class TestUnit(unittest.TestCase):
    def setUp(self):
        self.x = torch.ones(256, requires_grad=True)
        self.loss = forward(self.x)

    @pytest.mark.limit_peak(0)
    def test_nothing(self): pass

    @pytest.mark.limit_saved(1023)
    def test_fails(self): forward(self.x)

    def tearDown(self):
        forward().backward()

class TestAsyncUnit(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.x = torch.ones(256, requires_grad=True)

    @pytest.mark.limit_saved(1024, exact=True)
    async def test_at(self): forward(self.x)

    @pytest.mark.limit_saved(1023)
    async def test_fails(self): forward(self.x)
"""
    result = project(code, "--memlab-json", "out.json")
    result.assert_outcomes(passed=4, failed=2)
    assert "FAILED test_it.py::TestUnit::test_fails" in told(result)
    assert "FAILED test_it.py::TestAsyncUnit::test_fails" in told(result)
    tests = {each["test"]: each for each in json.loads((project.path / "out.json").read_text())["tests"]}
    given = tests["test_it.py::TestIt::test_nothing"]["given"]
    linear, ones, instance = 4 * (64 * 64 + 64), 4 * 64 * 64, 4 * 64 * 2
    assert given == linear + ones + instance
    assert tests["test_it.py::TestUnit::test_nothing"]["given"] == 2 * 1024 // 2 + 4


def test_ini_is_the_default_and_markers_override(project):
    (project.path / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers\nmemlab_limit_saved = 1023 B\nmemlab_no_graph_left = true\n"
    )
    code = """
def test_default_fails(): forward()

@pytest.mark.limit_saved("2 KiB")
def test_overridden(): forward()

@pytest.mark.limit_saved(None)
def test_lifted(): forward()

def test_graph_fails(): KEPT.append(torch.ones(1, requires_grad=True) + 1)

@pytest.mark.no_graph_left(False)
def test_graph_allowed(): KEPT.append(torch.ones(1, requires_grad=True) + 1)
"""
    result = project(code, "-v", "--tb=no")
    result.assert_outcomes(passed=3, failed=2)
    (project.path / "pytest.ini").write_text("[pytest]\nmemlab_limit_growth = a lot\n")
    result = project.again()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: memlab_limit_growth in the ini file: cannot read the size 'a lot'*"])


def test_every_run_is_in_fresh_function_scope(project):
    code = """
runs, setups = [], []

@pytest.fixture(scope="module")
def whole():
    setups.append("module")
    return torch.ones(4)

@pytest.fixture(params=["a", "b"])
def fresh(request, tmp_path):
    setups.append(request.param)
    yield [request.param]
    setups.append(request.param.upper())

@pytest.mark.limit_growth(0, steps=3, warmup=1)
@pytest.mark.parametrize("n", [1, 2])
def test_it(whole, fresh, n, tmp_path, monkeypatch, capsys, caplog, request):
    monkeypatch.setenv("MEMLAB_TRIES", "1")
    print("said")
    assert capsys.readouterr().out == "said\\n"
    assert len(fresh) == 1 and not list(tmp_path.iterdir())
    fresh.append("used")
    (tmp_path / "file").write_text("x")
    runs.append((fresh[0], n))

def test_order():
    assert [runs.count(each) for each in (("a", 1), ("a", 2), ("b", 1), ("b", 2))] == [4, 4, 4, 4]
    assert setups[0] == "module" and setups.count("module") == 1
    assert [setups.count(each) for each in "aAbB"] == [8, 8, 8, 8]
"""
    project(code).assert_outcomes(passed=5)


def test_what_a_body_leaves_through_fixtures_goes_with_them(project):
    code = """
class Holder: pass

@pytest.fixture
def holder(): return Holder()

@pytest.fixture(scope="module")
def shared(): return Holder()

@pytest.mark.no_graph_left
@pytest.mark.limit_growth(0)
def test_function_scope(holder): holder.loss = forward()

@pytest.mark.no_graph_left
def test_module_scope_fails(shared): shared.loss = forward()

@pytest.mark.no_graph_left
@pytest.mark.limit_growth(0)
def test_old_graph_is_not_mine(shared): assert shared.loss.grad_fn

ERRORS = []

@pytest.mark.no_graph_left
def test_traceback_fails():
    def inner():
        loss = forward()
        raise ValueError
    try:
        inner()
    except ValueError as error:
        ERRORS.append(error)

@pytest.mark.no_graph_left
def test_gradients_with_a_graph_fail():
    weight = nn.Parameter(torch.ones(3)); KEPT.append(weight)
    weight.exp().sum().backward(create_graph=True)

@pytest.mark.no_graph_left
def test_cycle():
    loss = forward()
    loss.me = loss
"""
    result = project(code, "-v", "--tb=no", "-W", "ignore")
    for line in result.outlines:
        if "::" in line and "%]" in line:
            assert ("FAILED" in line) is ("fail" in line.split()[0]), line
    result.assert_outcomes(passed=3, failed=3)


# Company


def test_a_failed_test_keeps_nothing_in_the_next_measurement(project):
    code = """
def test_dies(x):
    model = nn.Linear(512, 512)
    loss = model(torch.ones(64, 512)).exp().sum()
    assert loss is None

@pytest.mark.no_graph_left
@pytest.mark.limit_saved(1024, exact=True)
@pytest.mark.limit_peak(1028)
@pytest.mark.limit_growth(0, steps=2, warmup=0)
def test_after(x): forward(x)
"""
    project(code, "--tb=short").assert_outcomes(passed=1, failed=1)


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


def test_simulated_card_holds_what_fixtures_hand_over(project):
    code = """
@pytest.fixture(scope="module")
def weights(): return torch.empty(3 << 20, dtype=torch.uint8)

@pytest.mark.card("22 MiB")
def test_alone(): torch.empty(18 << 20, dtype=torch.uint8)

@pytest.mark.card("22 MiB")
def test_fits(weights): torch.empty(4 << 20, dtype=torch.uint8)  # in the same segment of 20 MiB

@pytest.mark.card("22 MiB")
def test_beside_it_fails(weights): torch.empty(18 << 20, dtype=torch.uint8)

@pytest.mark.card("4 MiB")
def test_too_small(weights): pass
"""
    result = project(code, "--tb=short", "--memlab-json", "out.json")
    result.assert_outcomes(passed=2, failed=2)
    tests = {each["test"]: each["card"] for each in json.loads((project.path / "out.json").read_text())["tests"]}
    assert tests["test_it.py::test_alone"]["reserved_peak"] == 18 << 20
    assert tests["test_it.py::test_beside_it_fails"]["ooms"] == 1
    result.stdout.fnmatch_lines(["*OutOfMemoryError: the fixtures' tensors alone do not fit: CUDA out of memory*"])


# Baselines

CHECK = """
def test_one(memlab, x):
    with memlab.watch() as seen:
        loss = forward(x)
    memlab.check(seen, name="forward")
    loss.backward()
    memlab.check(seen, name="after", within="1 KiB")
"""
MORE = CHECK.replace("forward(x)", "forward(x) + x.tanh().sum()")


def baseline_of(project, name="test_it"):
    return project.path / "__memlab__" / f"{name}.json"


def test_a_baseline_is_made_kept_and_compared_line_by_line(project):
    missing = project(CHECK)
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(
        [
            "check 'forward': there is no baseline in __memlab__/test_it.json; make it and commit the file:",
            "    pytest test_it.py::test_one --memlab-update",
        ]
    )
    made = project.again("--memlab-update")
    made.assert_outcomes(passed=1)
    made.stdout.fnmatch_lines(["baseline written: __memlab__/test_it.json; commit it"])
    text = baseline_of(project).read_text()
    assert len([line for line in text.splitlines() if '"bytes": 1024' in line]) == 2
    assert str(project.path) not in text
    assert json.loads(text)["version"] == 1
    project.again().assert_outcomes(passed=1)
    project(CHECK.replace("def test_one", "\n\n# moved\n\ndef test_one")).assert_outcomes(passed=1)
    result = project(MORE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "check 'forward': 2,048 B saved for backward, 1,024 B in the baseline (+1,024 B)",
            "    + 1,024 B  tanh *  test_it.py:21*",
            "  to accept it: pytest test_it.py::test_one --memlab-update",
        ]
    )
    less = CHECK.replace("forward(x)", "x.sum()")
    result = project(less)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["    - 1,024 B  exp *  test_it.py:12*", "  less than before is told, too:*"])
    assert baseline_of(project).read_text() == text
    project.again("--memlab-update")
    assert '"bytes": 1024' not in baseline_of(project).read_text()


def test_only_what_ran_is_rewritten_and_stale_entries_are_listed(project):
    two = CHECK + CHECK.replace("test_one", "test_two")
    project(two, "--memlab-update")
    before = json.loads(baseline_of(project).read_text())
    project(MORE + MORE.replace("test_one", "test_two"), "--memlab-update", "-k", "test_two")
    after = json.loads(baseline_of(project).read_text())
    assert after["tests"]["test_one"] == before["tests"]["test_one"]
    assert after["tests"]["test_two"] != before["tests"]["test_two"]
    result = project(CHECK.replace('name="after"', 'name="later"'), "--memlab-update")
    result.stdout.fnmatch_lines(
        [
            "stale baseline: __memlab__/test_it.json: test_one, check 'after': the test makes no such check;*",
            "stale baseline: __memlab__/test_it.json: test_two, check 'after': there is no such test;*",
            "stale baseline: __memlab__/test_it.json: test_two, check 'forward': there is no such test;*",
        ]
    )
    assert "stale baseline" not in told(project.again("-k", "test_one"))
    assert "stale baseline" not in told(project.again("test_it.py::test_one"))


def test_another_torch_is_not_checked_and_fails_under_strict(project):
    project(CHECK, "--memlab-update")
    path = baseline_of(project)
    version = ".".join(torch.__version__.split(".")[:2])
    path.write_text(path.read_text().replace(f'"{version}"', '"1.0"'))
    result = project.again()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "NOT CHECKED: test_it.py::test_one",
            f"  check 'forward': the baseline is for torch 1.0, this is torch {version}; add one: *",
        ]
    )
    project.again("--memlab-strict").assert_outcomes(failed=1)
    (project.path / "pytest.ini").write_text("[pytest]\nmemlab_strict = true\n")
    project.again().assert_outcomes(failed=1)
    project.again("--memlab-update")
    assert set(json.loads(path.read_text())["tests"]["test_one"]["forward"]["cpu"]) == {"1.0", version}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON (*); restore it from version control"),
        ('{"format": "memlab baseline", "version": 2}', "it has format 2, newer than the 1 of this memlab; upgrade*"),
        ("[]", "it is no baseline of memlab; move it away"),
        ('{"format": "memlab baseline", "version": 1, "tests": {"a": 3}}', "it is damaged (*"),
        ("\\x00", "it is not JSON *"),
    ],
)
def test_a_damaged_or_newer_baseline_is_wrong_use_and_stays(project, text, reason):
    path = baseline_of(project)
    path.parent.mkdir()
    path.write_text(text)
    for arguments in ([], ["--memlab-update"]):
        result = project(CHECK, *arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {path}: {reason}"])
        assert path.read_text() == text


def test_workers_updates_are_merged(project, pytester):
    pytest.importorskip("xdist")
    tests = "".join(CHECK.replace("test_one", f"test_{index}") for index in range(8))
    tests += "\n@pytest.mark.limit_saved(1023)\ndef test_over(x): forward(x)\n"
    options = ("-p", "memlab.pytest_plugin", "-p", "xdist", "-n", "2", "-p", "no:cacheprovider")
    (project.path / "test_it.py").write_text(HEAD + tests)
    result = pytester.runpytest_subprocess(*options, "--memlab-update", "--memlab-json", "out.json")
    result.assert_outcomes(passed=8, failed=1)
    assert sorted(json.loads(baseline_of(project).read_text())["tests"]) == [f"test_{index}" for index in range(8)]
    assert len(json.loads((project.path / "out.json").read_text())["tests"]) == 9
    project(tests.replace("test_3(", "test_drei("), "-k", "not over").assert_outcomes(passed=7, failed=1, deselected=1)
    path, text = baseline_of(project), baseline_of(project).read_text()
    path.write_text("{")
    (project.path / "test_it.py").write_text(HEAD + CHECK + "\n@pytest.mark.limit_saved(-1)\ndef test_it(): pass\n")
    result = pytester.runpytest_subprocess(*options, "-n", "1", "--memlab-update")
    result.assert_outcomes(failed=2)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines_random(
        [f"{path}: it is not JSON (*", "test_it.py::test_it: limit_saved: a size cannot be negative: -1"]
    )
    assert path.read_text() == "{" != text


# Wrong use


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("limit_saved", "limit_saved: it needs a size, such as limit_saved('6 MiB')"),
        ("limit_growth(steps=3)", "limit_growth: it needs a size, such as limit_growth('6 MiB')"),
        ("limit_saved('6 MiB', exat=True)", "limit_saved: there is no 'exat'; it takes size, exact"),
        ("limit_saved(1, 2)", "limit_saved: too many positional arguments; it takes size, exact"),
        ("limit_saved(1, exact=1)", "limit_saved: exact is True or False, not 1"),
        ("limit_saved(-1)", "limit_saved: a size cannot be negative: -1"),
        ("limit_peak('-6 MiB')", "limit_peak: a size cannot be negative: '-6 MiB'"),
        ("limit_peak('6 MIB B')", "limit_peak: cannot read the size '6 MIB B'*"),
        ("limit_peak(1.5)", "limit_peak: a size is a number of bytes or a text such as '24 GiB', not 1.5"),
        ("limit_peak(1, device='gpu')", "limit_peak: there is no device 'gpu'; write 'cpu', 'cuda' or 'cuda:0'"),
        ("limit_growth(0, steps=1)", "limit_growth: steps must be at least 2, not 1"),
        ("limit_growth(0, warmup=-1)", "limit_growth: warmup must be at least 0, not -1"),
        ("limit_growth(0, steps='5')", "limit_growth: steps is a whole number, not '5'"),
        ("no_graph_left('x')", "no_graph_left: wanted is True or False, not 'x'"),
        ("card(0)", "card: a card of 0 bytes holds nothing; give a larger one"),
    ],
)
def test_a_wrong_marker_is_a_usage_error_before_anything_runs(project, marker, sentence):
    result = project(f"def test_first(): raise SystemExit\n\n@pytest.mark.{marker}\ndef test_it(): pass\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_it.py::test_it: {sentence.replace('[', '[[]')}"])


def test_mb_and_mib_are_told_apart(project):
    code = """
@pytest.mark.limit_peak("1 MB")
def test_mb(): torch.empty(1_048_576, dtype=torch.uint8)

@pytest.mark.limit_peak("1 MiB")
def test_mib(): torch.empty(1_048_576, dtype=torch.uint8)
"""
    result = project(code)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*, 48,576 B over the limit of 1 MB (1,000,000 B)"])


def test_a_fixture_that_cannot_be_set_up_again_is_wrong_use(project):
    code = """
made = []

@pytest.fixture
def only_once():
    if made:
        raise RuntimeError("port is taken")
    made.append(1)

@pytest.fixture
def outer(only_once): pass

@pytest.mark.limit_growth(0)
def test_it(outer): pass

def test_next(): pass
"""
    result = project(code)
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [
            "limit_growth runs the body again and again, and the fixture 'only_once' cannot be set up a second time "
            "(RuntimeError: port is taken); give it a wider scope, or take limit_growth off this test"
        ]
    )


def test_the_fixture_refuses_what_it_cannot_take(project):
    code = """
def test_it(memlab):
    with memlab.watch() as seen:
        pass
    with pytest.raises(TypeError, match="check.. takes what memlab.watch.. gave, not int"): memlab.check(3)
    with pytest.raises(ValueError, match="a check's name is a text"): memlab.check(seen, name=3)
    with pytest.raises(ValueError, match="cannot read the size"): memlab.check(seen, within="a bit")
    found = memlab.growth(lambda: KEPT.append(torch.ones(256)), steps=3, warmup=0)
    assert found.grows and found.bytes_per_step == 1024
"""
    project(code, "--memlab-update").assert_outcomes(passed=1)


def test_a_cuda_limit_without_cuda_is_not_checked(project):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code = "@pytest.mark.limit_peak('1 GiB', device='cuda')\ndef test_it(): pass\n"
    result = project(code)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["NOT CHECKED: test_it.py::test_it", "  limit_peak on cuda: *CUDA*"])
    result = project(code, "--memlab-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not checked: limit_peak on cuda: *CUDA*"])


# Reports


def test_summary_json_junit_and_annotations(project, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    code = """
@pytest.mark.limit_saved("1 KB")
def test_over(x): forward(x)

@pytest.mark.limit_growth("1 MiB")
def test_grows(x): KEPT.append(torch.ones(256))

def test_small(x): x.exp()[:2].exp()

@pytest.mark.limit_growth(0)
def test_nodes():
    loss = forward(WEIGHT); loss.backward(); KEPT.append(loss)
"""
    result = project(code, "--memlab", "--memlab-json", "out.json", "--junitxml", "out.xml")
    result.assert_outcomes(failed=1, passed=3)
    result.stdout.fnmatch_lines(
        [
            "saved for backward at the peak:",
            "     1.01 KiB  test_it.py::test_small",
            "     1.00 KiB  test_it.py::test_*",
            "tensor storages at the peak:",
            "left behind by each run:",
            "     1.00 KiB  test_it.py::test_grows",
            "noticed: test_it.py::test_nodes",
            "  each run leaves * autograd nodes besides 4 B of losses: not bytes of tensors, but Python's memory grows",
            f"::error file={project.path.name}/test_it.py,line=*,title=memlab%3A *%3A%3Atest_over::limit_saved: 1,024*",
        ]
    )
    report = json.loads((project.path / "out.json").read_text())
    tests = {each["test"].partition("::")[2]: each for each in report["tests"]}
    assert report["format"] == "memlab pytest report"
    assert (tests["test_grows"]["growth"], tests["test_grows"]["runs"]) == (1024, 7)
    assert tests["test_small"]["saved_peak"] == 1032
    assert tests["test_over"]["failures"]
    properties = {
        (case.get("name"), each.get("name")): each.get("value")
        for case in ElementTree.parse(project.path / "out.xml").iter("testcase")
        for each in case.iter("property")
    }
    assert properties["test_over", "memlab_saved_peak"] == "1024"
    assert properties["test_grows", "memlab_growth"] == "1024"
    wrong = project.again("--memlab-json", "nowhere/out.json")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["ERROR: --memlab-json nowhere/out.json: there is no folder nowhere; make it first"])


def test_without_markers_and_options_torch_is_not_loaded(project):
    (project.path / "test_it.py").write_text("def test_it(): pass\n\ndef test_more(tmp_path): pass\n")
    code = (
        "import sys, pytest\n"
        "code = pytest.main(['-q', '-p', 'memlab.pytest_plugin'])\n"
        "loaded = {'torch', 'rich', 'numpy', 'memlab.guard.runner', 'memlab.guard.session'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else code)"
    )
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_last_failed_runs_the_check_again(project, pytester):
    options = ("-p", "memlab.pytest_plugin", "--tb=no")
    (project.path / "test_it.py").write_text(
        HEAD + "@pytest.mark.limit_saved(0)\ndef test_over(x): forward(x)\n\ndef test_fine(): pass\n"
    )
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=1, failed=1)
    pytester.runpytest_inprocess(*options, "--lf").assert_outcomes(failed=1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
def test_limits_on_cuda(project):
    code = """
@pytest.fixture
def on_card(): return torch.ones(1 << 20, device="cuda", requires_grad=True)

@pytest.mark.limit_peak((8 << 20) - 1)
def test_below_fails(on_card): on_card.exp() + 1

@pytest.mark.limit_peak(8 << 20)
def test_at(on_card): on_card.exp() + 1

@pytest.mark.limit_peak(8 << 20, device="cuda")
@pytest.mark.limit_saved(4 << 20, exact=True)
@pytest.mark.limit_growth(0, steps=2, warmup=1)
@pytest.mark.no_graph_left
def test_all(on_card): on_card.exp() + 1

def test_check(memlab, on_card):
    with memlab.watch() as seen: on_card.exp()
    memlab.check(seen)
"""
    result = project(code, "--memlab-update")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["limit_peak: 8,388,608 B allocated by torch.cuda at the peak, 1 B over the limit of *"]
    )
    assert list(json.loads(baseline_of(project).read_text())["tests"]["test_check"]["memory"]) == ["cuda"]
