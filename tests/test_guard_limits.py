"""Both sides of every limit, what a failure says, and the limits of an ini file."""

import json

import pytest
import torch
from projects import baseline_of, fails_where_said

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
    fails_where_said(result, "fails")
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
