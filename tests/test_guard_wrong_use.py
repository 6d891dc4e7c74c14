"""Wrong use of a memory check is a usage error with a sentence; a check that cannot be made is told as not made."""

import pytest
import torch


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
