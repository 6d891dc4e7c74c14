"""The command line: what it answers, with which exit code, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import samples

import memlab
from memlab import cli, experiment
from memlab.commands import commands
from memlab.report import load

PYTHON = [sys.executable, "-m", "memlab"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Be in a folder with an experiment that holds, one that does not, and no other experiments known."""
    samples.write(tmp_path)
    keeps = ["kept = []", "while True:", "    kept.append(x.exp())", "    yield"]
    arms = {
        "keeps_twice": keeps,
        "prints": ["print('a word on stdout')"],
        "killed": ["os.kill(os.getpid(), signal.SIGKILL)"],
    }
    code = "".join(samples.arm(name, *body) for name, body in arms.items())
    registered = f"Arm(keeps_twice, saved=half, allocated=output), {samples.registered('prints', 'killed')}"
    samples.write(tmp_path, code, registered, "other")
    monkeypatch.setattr(experiment, "folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def memlab_(capsys):
    """Run the command line in this process; return exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


def test_list(folder, memlab_):
    claim = "A sample says what it keeps."
    assert memlab_("list") == (0, f"other   {claim}\nsample  {claim}\n", "")
    assert memlab_("list", "sample") == (0, f"sample  {claim}\n    keeps  Each output leads to its graph.\n", "")
    (folder / "broken.py").write_text("def (")
    code, out, _ = memlab_("list")
    assert code == 0
    assert "broken  cannot read the experiment" in out


def test_no_arguments_is_wrong_use_and_help(memlab_):
    code, out, err = memlab_()
    assert (code, out) == (2, "")
    assert err.startswith("usage: memlab")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "-h"], ["show", "-h"], ["doctor", "-h"]])
def test_help_is_on_stdout(memlab_, arguments):
    code, out, err = memlab_(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage: memlab")


def test_version(memlab_):
    assert memlab_("--version") == (0, f"memlab {memlab.__version__}\n", "")


WRONG = [
    (["rnu"], "there is no command 'rnu'; did you mean run?"),
    (["run"], "the following arguments are required: NAME; see memlab run --help"),
    (["run", "smaple"], "there is no experiment 'smaple'; did you mean sample?"),
    (["run", "nowhere.py"], "there is no file nowhere.py"),
    (["run", "empty.py"], "empty.py is no experiment: it has no Arm(...)"),
    (["run", "broken.py"], "cannot read the experiment"),
    (["run", "sample", "elsewhere/sample.py"], "two experiments are called sample"),
    (["run", "sample", "--arm", "keep"], "there is no arm 'keep'; did you mean keeps?"),
    (["run", "sample", "--show", "tabel"], "there is no way of showing 'tabel'; did you mean table?"),
    (["run", "sample", "--card", "64x"], "--card: unknown unit 'x' in the size '64x'"),
    (["run", "sample", "--card", "-1"], "--card: a size cannot be negative"),
    (["run", "sample", "--card", "0"], "--card: a card of 0 bytes holds nothing"),
    (["run", "sample", "--steps", "0"], "--steps must be at least 1, not 0"),
    (["run", "sample", "--steps", "many"], "--steps takes a whole number, not 'many'"),
    (["run", "sample", "--seed", "-1"], "--seed must be at least 0, not -1"),
    (["run", "sample", "--timeout", "0"], "--timeout must be at least 1, not 0"),
    (["run", "sample", "--set", "width"], "--set takes a size and a whole number, such as --set width=64, not 'width'"),
    (["run", "sample", "--set", "width=0"], "--set width must be at least 1, not 0"),
    (["run", "sample", "--set", "width=a"], "--set width takes a whole number, not 'a'"),
    (["run", "sample", "--device", "gpu"], "there is no device 'gpu'; write cpu, cuda or cuda:0"),
    (["run", "sample", "--json", "nowhere/report.json"], "there is no folder nowhere; make it first"),
    (["run", "sample", "--snapshot", "-"], "--snapshot -: a snapshot is no text; name a file"),
    (["run", "sample", "--snapshot", "nowhere/out.pickle"], "there is no folder nowhere; make it first"),
    (["run", "sample", "--json", "."], "that is a folder; name a file in it"),
    (["run", "sample", "--sizes", "3"], "'--sizes' means nothing here; see memlab run --help"),
    (["run", "sample", "--dev", "cpu"], "'--dev' means nothing here; see memlab run --help"),
    (["predict", "sample.py", "--batch-arg", "--bs"], "one that begins with a dash is written as --batch-arg=...; see"),
    (["doctor", "sample"], "'sample' means nothing here; see memlab doctor --help"),
    (["show"], "the following arguments are required: REPORT; see memlab show --help"),
    (["show", "nowhere.json"], "cannot read nowhere.json: No such file or directory"),
    (["show", "."], "cannot read .: Is a directory"),
    (["show", "sample.py"], "cannot show sample.py: it is not JSON, as memlab saves it, nor a pickle of protocol 2"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_use_is_one_sentence_and_nothing_is_measured(folder, memlab_, monkeypatch, arguments, sentence):
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "broken.py").write_text("def (")
    (folder / "elsewhere").mkdir()
    samples.write(folder / "elsewhere")
    monkeypatch.setattr("memlab.isolate.run", None)
    monkeypatch.setattr("memlab.isolate.ask", None)
    code, out, err = memlab_(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("memlab: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_terminal_need_not_break_a_sentence_within_a_word(folder, memlab_, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    code, _, err = memlab_("run", "x" * 60, "--device", "cpu")
    assert code == 2
    assert max(len(line) for line in err.splitlines() if "x" * 60 not in line) <= 40
    assert " ".join(err.split()) == f"memlab: there is no experiment '{'x' * 60}'; known: other, sample"


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["", *commands()])
def test_no_line_of_help_is_wrapped(memlab_, monkeypatch, columns, command):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = memlab_(*filter(None, [command]), "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns


def test_a_table_in_help_stays_one(memlab_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = memlab_("diff", "--help")
    assert "memlab diff run.json@10 run.json@100  what was saved at the ends of two steps\n" in out


def test_a_wrong_size_is_found_before_anything_is_measured(folder, memlab_, monkeypatch):
    monkeypatch.setattr("memlab.isolate.run", None)
    code, out, err = memlab_("run", "all", "--set", "widht=3")
    assert (code, out, err) == (2, "", "memlab: other: there is no size 'widht'; did you mean width?\n")


def test_a_card_that_this_machine_could_not_hold_is_refused(folder, memlab_):
    path = folder / "sample.py"
    path.write_text(path.read_text().replace("allocated=output)", "allocated=output, dies=True)"))
    code, _, err = memlab_("run", "sample", "--card", "4000 TiB", "--device", "cpu")
    assert code == 2
    assert "a simulated card holds real tensors: 4000.00 TiB do not fit into the " in err


def test_run_that_holds(folder, memlab_):
    code, out, err = memlab_(
        "run", "sample", "--device", "cpu", "--set", "width=128", "--steps", "2", "--json", "r.json"
    )
    assert (code, err) == (0, "")
    assert "holds    sample:keeps    +4.00 KiB/step  +4.00 KiB/step" in out
    assert "1 arm: 1 holds\nmeasured on cpu, torch " in out
    report = load(Path("r.json"))
    (finding,) = report.findings
    assert (finding.steps, finding.sizes, finding.device, finding.seed) == (2, {"width": 128}, "cpu", 0)
    assert {"memlab", "torch", "python", "platform", "processor", "device"} <= set(report.machine)
    assert memlab_("show", "r.json") == (0, out, "")
    assert memlab_("show", "r.json", "--show", "json") == (0, Path("r.json").read_text(), "")


def test_run_that_does_not_hold(folder, memlab_):
    code, out, err = memlab_("run", "other", "--device", "cpu", "sample")
    assert code == 1
    assert err == "a word on stdout\n"
    assert "refuted  other:keeps_twice" in out
    assert "✗ other:keeps_twice is refuted: step 1: saved 2,048 B, expected 1,028 B (+1,020 B)" in out
    assert "! other:killed could not be measured: its process was ended by SIGKILL" in out
    assert "5 arms: 3 hold, 1 failed, 1 refuted" in out


def test_json_on_stdout_is_json_alone(folder, memlab_):
    code, out, err = memlab_("run", "other", "--arm", "prints", "--device", "cpu", "--json", "-", "--show", "table")
    assert (code, err) == (0, "a word on stdout\n")
    assert [finding["arm"] for finding in json.loads(out)["findings"]] == ["prints"]


def test_a_skipped_claim_does_not_hold(folder, memlab_):
    code, out, _ = memlab_("run", "sample", "--device", "cuda:99")
    assert code == 1
    assert "- sample:keeps was skipped: " in out


def test_the_findings_are_shown_though_the_report_cannot_be_saved(folder, memlab_, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memlab.report.write_atomically", full)
    code, out, err = memlab_("run", "sample", "--device", "cpu", "--json", "r.json")
    assert (code, err) == (2, "memlab: --json r.json: cannot write it: No space left on device\n")
    assert "1 arm: 1 holds" in out


def test_doctor(memlab_):
    code, out, err = memlab_("doctor")
    assert (code, err) == (0, "")
    for word in ("torch", "Python", "CUDA devices", "driver", "allocator", "saved tensors", "allocated, reserved"):
        assert word in out


@pytest.mark.parametrize("argument", ["--help", "list"])
def test_help_and_list_load_neither_torch_nor_rich(argument):
    code = (
        "import sys, memlab.cli; code = memlab.cli.main([sys.argv[1]])\n"
        "heavy = {'torch', 'rich', 'numpy', 'psutil', 'pytest'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    path = tmp_path / "report.json"
    samples.report(*[samples.finding(f"arm_{i}") for i in range(2000)]).save(path)
    with subprocess.Popen([*PYTHON, "show", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_is_too_poor(tmp_path, encoding):
    path = tmp_path / "report.json"
    samples.report(samples.finding(title="ä\ud800"), samples.dead()).save(path)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for how in ("plain", "table", "markdown", "json"):
        done = subprocess.run([*PYTHON, "show", path, "--show", how], capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name != "posix", reason="sessions and signals of POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ending_it_leaves_no_process_and_no_half_report(tmp_path, sent, code):
    body = ["open(f'started', 'w').close()", "time.sleep(300)"]
    path = samples.write(tmp_path, samples.arm("sleeps", *body), samples.registered("sleeps"))
    command = [*PYTHON, "run", path, "--arm", "sleeps", "--device", "cpu", "--json", "r.json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        _wait(lambda: (tmp_path / "started").exists())
        # Ctrl-C reaches the whole group of processes, a kill one alone
        os.killpg(process.pid, sent) if sent == signal.SIGINT else os.kill(process.pid, sent)
        if sent == signal.SIGINT:
            assert process.stderr.readline() == b"memlab: interrupted; nothing was reported\n"
            os.killpg(process.pid, sent)  # once more, while Python ends
        assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == code
    _wait(lambda: not _session(process.pid))
    assert not (tmp_path / "r.json").exists()


def _wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _session(pid):
    """Return the processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
