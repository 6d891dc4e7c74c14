"""What limit_growth tells of what a run left adds up to what it counts."""

import pytest

CODE = """
import pytest, torch

KEPT, WEIGHT = [], torch.ones(256, requires_grad=True)


@pytest.fixture
def x():
    return torch.ones(256, requires_grad=True)


@pytest.mark.limit_growth(0)
def test_leaves(x):
    KEPT.append({body})
"""
SAVED = "    1,024 B  exp output  test_it.py:14"
BESIDES = " besides, that no graph saved or that a fixture made"


@pytest.mark.parametrize(
    ("body", "left", "told"),
    [
        ("WEIGHT.exp()", 1024, [SAVED]),
        ("WEIGHT.exp() + 1", 2048, [SAVED, "    1,024 B" + BESIDES]),
        ("x.exp()", 1024, [SAVED]),
        ("(x.exp() * x).sum(0)", 2052, [SAVED, "    1,028 B" + BESIDES]),  # each run has an x of its own, and saves it
        ("torch.ones(256)", 1024, ["    1,024 B of a tensor without a graph"]),
    ],
)
def test_lines_add_up(pytester, monkeypatch, body, left, told):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "test_it.py").write_text(CODE.replace("{body}", body))
    result = pytester.runpytest_inprocess("-p", "memlab.pytest_plugin", "-p", "no:cacheprovider")
    lines = result.outlines
    assert f"limit_growth: {left:,} B left behind by each run, {left:,} B over the limit of 0 B" in lines
    first = lines.index("  what the last run left:") + 1
    assert lines[first : lines.index("  held by:")] == told
