"""What pytest keeps for tests has the names that tests know: fixtures' and instances', and no other test's."""

import re

from holders import NEEDS_PACKED

CODE = """
import pytest, torch

KEPT, WEIGHT = [], torch.ones(256, requires_grad=True)
pytestmark = pytest.mark.no_graph_left


class Store:
    def __init__(self):
        self.kept = []


@pytest.fixture(scope="session")
def store():
    return Store()


@pytest.fixture(scope="module")
def outputs():
    return []


@pytest.fixture(scope="module")
def opened():
    bound = []
    yield bound


@pytest.fixture(scope="module")
def lent():
    yield Store()


@pytest.mark.no_graph_left(False)
def test_leaves_a_graph(store):
    KEPT.append(WEIGHT.exp())


def test_object(store):
    store.kept.append(WEIGHT.exp())


def test_list(outputs):
    outputs.append(WEIGHT.exp())


def test_variable_of_a_fixture(opened):
    opened.append(WEIGHT.exp())


def test_without_a_variable(lent):
    lent.kept.append(WEIGHT.exp())


class TestInstance:
    def test_attribute(self):
        self.out = WEIGHT.exp()


@pytest.mark.limit_growth("0", steps=2, warmup=1)
@pytest.mark.no_graph_left(False)
def test_growth(store):
    store.kept.append(WEIGHT.exp())
"""
PATHS = [
    "store.kept (attribute of Store; store is session fixture, test_it.py:13) -> list[0]",
    "outputs (module fixture, test_it.py:18) -> list[0]",
    "bound (local of generator opened(), test_it.py:26) -> list[0]",
    "lent.kept (attribute of Store; lent is module fixture, test_it.py:29) -> list[0]",
    "self.out (attribute of TestInstance; self is instance of TestInstance for test_attribute())",
    "store.kept (attribute of Store; store is session fixture, test_it.py:13) -> list[9]",
]


@NEEDS_PACKED
def test_who_holds_what_a_test_left(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "test_it.py").write_text(CODE)
    result = pytester.runpytest_inprocess("-p", "memlab.pytest_plugin", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=6)
    told = " ".join(" ".join(result.outlines).split())
    said = re.findall(r"held by: (.*?) -> Tensor -> ExpBackward0 holds ([\d,]+) B, ([\d,]+) B alone, born", told)
    assert [path for path, _, _ in said] == PATHS
    assert all(nbytes == alone for _, nbytes, alone in said)
    assert told.count(" alone, born at ") == len(PATHS)  # nobody else is named
    assert "over the limit of 0 B" in told
