"""What a session with memory checks reports, to people and to programs, and what it leaves alone."""

import json
from xml.etree import ElementTree

import pytest
from projects import HEAD, session_without


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
    modules = {"torch", "rich", "numpy", "memlab.guard.runner", "memlab.guard.session"}
    done = session_without(modules, project.path, "-p", "memlab.pytest_plugin")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_last_failed_runs_the_check_again(project, pytester):
    options = ("-p", "memlab.pytest_plugin", "--tb=no")
    (project.path / "test_it.py").write_text(
        HEAD + "@pytest.mark.limit_saved(0)\ndef test_over(x): forward(x)\n\ndef test_fine(): pass\n"
    )
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=1, failed=1)
    pytester.runpytest_inprocess(*options, "--lf").assert_outcomes(failed=1)
