"""What counts as the body's: not what fixtures of any scope make, and each run in a fresh scope of functions."""

import json

from projects import fails_where_said, told


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
    fails_where_said(result, "fail")
    result.assert_outcomes(passed=3, failed=3)


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
    sentence = "OutOfMemoryError: the fixtures' tensors alone do not fit: CUDA out of memory"
    result.stdout.fnmatch_lines([f"*{sentence}*"])
    result.stdout.no_fnmatch_line("*During handling of*")
    assert tests["test_it.py::test_too_small"] is None
