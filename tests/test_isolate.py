"""Every arm in a process of its own: whatever happens in one, the others are measured and nothing is left behind."""

import multiprocessing
import os
import time
from pathlib import Path

import psutil
import pytest
import samples
import torch

from memlab import isolate
from memlab.job import Job
from memlab.report import FAILED, HOLDS, REFUTED

DEATHS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended by SIGKILL"),
    "crashed": ("ctypes.string_at(0)", "its process was ended by SIGSEGV"),
    "aborted": ("os.abort()", "its process was ended by SIGABRT"),
    "left": ("os._exit(3)", "its process ended with exit code 3 and no finding"),
    "exited": ("sys.exit(4)", "its process ended with exit code 4 and no finding"),
}


def jobs(path, *arms, **changes):
    return [Job(path, arm, **changes) for arm in arms]


def processes():
    """Return the children of this process that are not the servers of multiprocessing itself."""
    return {p.pid for p in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module", autouse=True)
def server():
    isolate.ask(os.getpid)  # the servers start here, once


def test_a_process_that_dies_is_a_failure_in_words_and_the_others_go_on(tmp_path):
    code = "".join(samples.arm(name, death) for name, (death, _) in DEATHS.items())
    path = samples.write(tmp_path, code, samples.registered(*DEATHS))
    before = processes()
    found = isolate.run(jobs(path, *DEATHS, "keeps"), workers=2)
    assert [finding.arm for finding in found] == [*DEATHS, "keeps"]
    for finding, (_, words) in zip(found, DEATHS.values(), strict=False):
        assert finding.status == FAILED
        assert finding.reason.startswith(f"could not be measured: {words}")
        assert (finding.claim, finding.title) == ("A sample says what it keeps.", finding.arm)
    assert found[-1].status == HOLDS
    assert processes() == before


def test_an_arm_that_takes_too_long_is_ended(tmp_path):
    code = samples.arm("sleeps", "time.sleep(60)") + samples.arm("spins", "while True:", "    yield")
    path = samples.write(tmp_path, code, samples.registered("sleeps", "spins"))
    began, before = time.monotonic(), processes()
    found = isolate.run(
        jobs(path, "sleeps") + jobs(path, "spins", steps=10**9) + jobs(path, "keeps"), timeout=1.5, workers=3
    )
    assert time.monotonic() - began < 20
    assert [finding.status for finding in found[:2]] == [FAILED, FAILED]
    assert found[0].reason == "could not be measured: it took longer than 1.5 s and was ended"
    assert processes() == before


def test_what_an_arm_raises_is_told(tmp_path):
    code = samples.arm("raises", "raise RuntimeError('a reason')") + samples.arm(
        "asserts", "assert x is None, 'x is there'"
    )
    path = samples.write(tmp_path, code, samples.registered("raises", "asserts"))
    raises, asserts = isolate.run(jobs(path, "raises", "asserts"))
    assert (raises.status, raises.reason) == (REFUTED, "the arm raised RuntimeError: a reason")
    assert (asserts.status, asserts.reason) == (REFUTED, "an assertion of the arm failed: x is there")


def test_an_experiment_that_cannot_be_loaded_fails_with_the_line(tmp_path):
    path = samples.write(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("def setup(s):", "def setup(s):\n    {}['missing']"))
    line = text.split("def setup")[0].count("\n") + 2
    assert (
        isolate.run(jobs(path, "keeps"))[0].reason == f"could not be measured: KeyError: 'missing' (sample.py:{line})"
    )
    path.write_text(text.replace("import torch\n", "import torch, no_such_module\n"))
    finding = isolate.run(jobs(path, "keeps"))[0]
    assert finding.status == FAILED
    assert "ModuleNotFoundError: No module named 'no_such_module' (sample.py:6)" in finding.reason


def test_wrong_names_and_sizes_are_errors_that_end_everything(tmp_path):
    path = samples.write(tmp_path, samples.arm("sleeps", "time.sleep(60)"), samples.registered("sleeps"))
    before = processes()
    with pytest.raises(ValueError, match=r"sample:keeps: there is no size 'widht'; did you mean width\?"):
        isolate.run([*jobs(path, "sleeps"), *jobs(path, "keeps", sizes={"widht": 3})], workers=2)
    assert processes() == before
    with pytest.raises(ValueError, match=r"there is no arm 'keep'; did you mean keeps"):
        isolate.run(jobs(path, "keep"))


def test_an_interrupt_here_ends_every_process(tmp_path):
    path = samples.write(tmp_path, samples.arm("sleeps", "yield", "time.sleep(60)"), samples.registered("sleeps"))

    def interrupt(job, row):
        raise KeyboardInterrupt

    before, began = processes(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        isolate.run(jobs(path, "sleeps", "sleeps"), on_row=interrupt, workers=2)
    assert processes() == before
    assert time.monotonic() - began < 10


def test_what_an_arm_prints_comes_back_and_goes_nowhere_else(tmp_path, capfd):
    body = [
        "print('to stdout: ä')",
        "print('to stderr', file=sys.stderr)",
        "os.write(1, b'from C\\n')",
        "os.write(2, b'\\xff')",
    ]
    body.append("print('x' * 300_000)")
    path = samples.write(tmp_path, samples.arm("prints", *body), samples.registered("prints"))
    said = []
    found = isolate.run(jobs(path, "prints", steps=1), on_text=lambda job, text: said.append((job.arm, text)))
    assert found[0].status == HOLDS
    text = "".join(text for _, text in said)
    for part in ("to stdout: ä\n", "to stderr\n", "from C\n", "�", "x" * 300_000):
        assert part in text
    assert capfd.readouterr() == ("", "")


def test_workspaces_of_cublas_are_kept_so_that_they_are_not_of_the_arms_card(tmp_path):
    body = "assert os.environ['TORCH_CUBLAS_WORKSPACE_CACHE'] == '1', 'torch 2.15 keeps none'"
    path = samples.write(tmp_path, samples.arm("looks", body, "while True:", "    yield"), samples.registered("looks"))
    (found,) = isolate.run(jobs(path, "looks"))
    assert found.status == HOLDS, found.reason


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
def test_the_card_of_an_arm_fills_at_the_step_that_is_predicted_on_this_device():
    path = Path(__file__).resolve().parents[1] / "experiments" / "oom_demo.py"
    (found,) = isolate.run(jobs(path, "keep_scores", device="cuda"))
    assert (found.status, found.died) == (HOLDS, found.predicted), found.reason


def test_rows_come_while_the_arm_runs(tmp_path):
    path = samples.write(
        tmp_path, samples.arm("slow", "while True:", "    yield", "    time.sleep(0.05)"), samples.registered("slow")
    )
    rows, findings = [], []
    isolate.run(
        jobs(path, "slow"), lambda job, row: rows.append(row["step"]), lambda job, finding: findings.append(finding.arm)
    )
    assert rows == [1, 2, 3]
    assert findings == ["slow"]


def test_every_arm_starts_fresh(tmp_path):
    body = ["assert not hasattr(torch, 'touched')", "torch.touched = True", "assert torch.initial_seed() == 7"]
    path = samples.write(tmp_path, samples.arm("touches", *body), samples.registered("touches"))
    found = isolate.run(jobs(path, "touches", "touches", steps=1, seed=7))
    assert [finding.status for finding in found] == [HOLDS, HOLDS]
    assert not hasattr(torch, "touched")


def fail():
    raise OSError("no such thing")


def die():
    os._exit(9)


def test_ask():
    assert isolate.ask(max, 2, 3) == 3
    assert isolate.ask(os.getpid) != os.getpid()
    with pytest.raises(isolate.Lost, match="OSError: no such thing"):
        isolate.ask(fail)
    with pytest.raises(isolate.Lost, match="exit code 9"):
        isolate.ask(die)
    with pytest.raises(isolate.Lost, match=r"no answer within 0.2 s"):
        isolate.ask(time.sleep, 30, timeout=0.2)


def start_another(path):
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    path.write_text(str(other.pid))
    time.sleep(60)


def test_what_a_process_has_started_ends_with_it(tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(isolate.Lost, match=r"no answer within 3 s"):
        isolate.ask(start_another, path, timeout=3)
    began = time.monotonic()
    while psutil.pid_exists(int(path.read_text())) and time.monotonic() - began < 10:
        time.sleep(0.05)  # until whoever inherits it has noticed
    assert time.monotonic() - began < 10


def test_no_jobs_no_findings():
    assert isolate.run([]) == []
