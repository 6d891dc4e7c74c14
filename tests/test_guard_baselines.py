"""Baselines: made, kept, compared line by line, merged from workers, and never overwritten when they are damaged."""

import json

import pytest
import torch
from projects import HEAD, baseline_of, told

CHECK = """
def test_one(memlab, x):
    with memlab.watch() as seen:
        loss = forward(x)
    memlab.check(seen, name="forward")
    loss.backward()
    memlab.check(seen, name="after", within="1 KiB")
"""
MORE = CHECK.replace("forward(x)", "forward(x) + x.tanh().sum()")


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
