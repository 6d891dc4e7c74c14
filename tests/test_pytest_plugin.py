"""Experiments as tests: collected by name, measured in their own process, failing with a bill and no traceback."""

import pytest
import samples
from projects import session_without


@pytest.fixture
def checkout(pytester, monkeypatch):
    """Make a checkout with two experiments, an ordinary script beside them and a test file."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others' plugins take a second in every session
    folder = pytester.mkdir("experiments")
    samples.write(folder)
    code = samples.arm("prints", "print('a word')", "assert x is None, 'x is there'") + samples.arm(
        "killed", "os.abort()"
    )
    more = "Arm(keeps, saved=half, allocated=output), " + samples.registered("prints", "killed")
    other = samples.write(folder, code, more, "other")
    other.write_text(other.read_text().replace("    Arm(keeps, saved=output, allocated=output),\n", ""))
    (folder / "script.py").write_text("raise SystemExit('ran')\n")
    (folder / "_private.py").write_text("experiment = Experiment(arms=[])\n")
    pytester.makepyfile(test_ordinary="def test_passes():\n    pass\n")
    return pytester


def run(pytester, *arguments):
    return pytester.runpytest_inprocess("-p", "memlab.pytest_plugin", "-p", "no:cacheprovider", "-ra", *arguments)


def test_every_arm_is_an_item(checkout):
    result = run(checkout, "--collect-only", "-q")
    assert result.outlines[:5] == [
        "experiments/other.py::keeps",
        "experiments/other.py::prints",
        "experiments/other.py::killed",
        "experiments/sample.py::keeps",
        "test_ordinary.py::test_passes",
    ]


def test_a_claim_that_holds_passes_and_others_fail_in_words(checkout):
    result = run(checkout, "experiments", "test_ordinary.py")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "✗ other:keeps is refuted: step 1: saved 2,048 B, expected 1,028 B (+1,020 B)",
            "  at step 3 *expected  measured",
            "  saved  *3,076 B   6,144 B",
            "    half the output  *3 x 1,024 B",
            "    a line too many  *4 B",
            "claim: A sample says what it keeps.",
            "keeps: Each output leads to its graph.",
            "✗ other:prints is refuted: an assertion of the arm failed: x is there",
            "*Captured output*",
            "a word",
            "! other:killed could not be measured: its process was ended by SIGABRT",
            "FAILED experiments/other.py::keeps - *other:keeps is refuted*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py:*")


def test_one_arm_by_its_name(checkout):
    run(checkout, "experiments/sample.py::keeps").assert_outcomes(passed=1)
    run(checkout, "experiments/sample.py", "-k", "keeps").assert_outcomes(passed=1)
    assert run(checkout, "experiments/sample.py::nothing").ret == pytest.ExitCode.USAGE_ERROR


def test_what_cannot_be_measured_is_skipped_with_the_reason(checkout):
    result = run(checkout, "experiments/sample.py", "--memlab-device", "cuda:99")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *: *CUDA*"])


def test_a_wrong_device_is_wrong_use(checkout):
    result = run(checkout, "--memlab-device", "gpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --memlab-device: there is no device 'gpu'; write cpu, cuda or cuda:0"])


def test_only_experiments_are_collected(checkout):
    samples.write(checkout.mkdir("elsewhere"))
    run(checkout, "elsewhere").assert_outcomes()
    run(checkout, "elsewhere/sample.py").assert_outcomes(passed=1)
    mentions = "TEXT = 'experiment = Experiment('\n\n\ndef test_it():\n    pass\n"
    checkout.makepyfile(test_mentions=mentions)
    result = run(checkout, "test_mentions.py", "test_ordinary.py", "--collect-only", "-q")
    assert result.outlines[:2] == ["test_mentions.py::test_it", "test_ordinary.py::test_passes"]


def test_an_experiment_that_is_no_python_is_a_collection_error(checkout):
    checkout.path.joinpath("experiments/broken.py").write_text("experiment = Experiment(\n")
    result = run(checkout, "experiments/broken.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*cannot read the experiment*broken.py*"])


def test_a_wrong_arm_fails_in_words(checkout):
    path = checkout.path / "experiments/sample.py"
    path.write_text(path.read_text() + "\nexperiment.arms.clear()\n")
    result = run(checkout, "experiments/sample.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["sample:keeps: there is no arm 'keeps'; known: none"])


CONFTEST = 'pytest_plugins = ["memlab.pytest_plugin"]\n'


@pytest.mark.parametrize("options", [[], ["-p", "memlab.pytest_plugin"]])
@pytest.mark.parametrize("autoload", ["", "1"])
def test_entry_point_conftest_and_option_agree(checkout, monkeypatch, options, autoload):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", autoload)
    checkout.makeconftest(CONFTEST)
    result = checkout.runpytest_subprocess(*options, "--collect-only", "-q", "experiments/sample.py")
    assert result.ret == 0
    assert result.outlines[0] == "experiments/sample.py::keeps"


def test_a_session_without_experiments_loads_nothing(checkout):
    checkout.path.joinpath("experiments/other.py").unlink()
    checkout.path.joinpath("experiments/sample.py").unlink()
    checkout.makeconftest(CONFTEST)
    modules = {"torch", "rich", "memlab.isolate", "memlab.show", "memlab.experiment"}
    done = session_without(modules, checkout.path, "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 passed" in done.stdout
