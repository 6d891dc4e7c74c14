"""Scripts under memlab: unchanged to themselves, their steps found, what they keep told."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memlab
from memlab import cli
from memlab.tracing.trace import load

PYTHON = [sys.executable, "-m", "memlab"]

LOOKS_AROUND = '''
"""It prints everything that could differ under memlab."""
import atexit, multiprocessing, os, pickle, sys, threading, warnings


class Thing:
    value = 5


def child(queue):
    queue.put((__name__, os.path.basename(sys.argv[0]), Thing.__module__))


def main():
    print(sys.argv, os.path.basename(sys.path[0]), __name__, __file__, __spec__, __doc__, sys.stdin.read())
    print(pickle.loads(pickle.dumps(Thing())).value, sys.modules["__main__"].Thing is Thing)
    warnings.warn("said once", DeprecationWarning)
    atexit.register(print, "at exit")
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(method, queue.get(), flush=True)
        process.join()
        print(process.exitcode, flush=True)
    import torch

    threading.Thread(target=lambda: (threading.main_thread().join(), print("late thread"))).start()
    if os.fork() == 0:
        sys.exit(9)
    print("child ended with", os.waitstatus_to_exitcode(os.wait()[1]))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    model(torch.ones(2, 4))
    print(sys.stdout.errors, sys.stderr.errors, torch.autograd.backward.__name__)
    try:
        model(torch.ones(2, 5))
    except RuntimeError as error:
        raise ValueError("it does not fit") from error


if __name__ == "__main__":
    main()
'''


def run(command, folder, **options):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, input="typed", **options
    )


def test_a_script_cannot_tell(tmp_path):
    (tmp_path / "looks.py").write_text(LOOKS_AROUND)
    bare = run([sys.executable, "looks.py", "--its", "args"], tmp_path)
    traced = run([*PYTHON, "trace", "--json", "out.json", "looks.py", "--its", "args"], tmp_path)
    assert "child ended with 9" in bare.stdout
    assert "ValueError: it does not fit" in bare.stderr
    assert (traced.stdout, traced.returncode) == (bare.stdout, bare.returncode) and bare.returncode == 1
    said, begin = traced.stderr, traced.stderr.index("\nmemlab trace looks.py --its args")
    end = said.index("Traceback")
    left, expected = (re.sub(r"pid=\d+", "", each) for each in (said[:begin] + said[end:], bare.stderr))
    assert left == expected  # the report stands before the traceback, whole and once
    assert load(tmp_path / "out.json").ended == "failed"


WITHOUT_OPTIMIZER = """
import torch

x = torch.ones(3, requires_grad=True)
for _ in range(6):
    x.exp().sum().backward()
"""


def test_nobody_reads_what_the_script_prints(tmp_path):
    (tmp_path / "prints.py").write_text(WITHOUT_OPTIMIZER + "print('x' * 100)\n")
    ended, buffered = {}, os.environ | {"PYTHONUNBUFFERED": ""}
    for name, command in (("bare", [sys.executable]), ("traced", [*PYTHON, "trace"])):
        read, write = os.pipe()
        os.close(read)
        ended[name] = subprocess.run(
            [*command, "prints.py"],
            cwd=tmp_path,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=buffered,
        )
        os.close(write)
    assert ended["traced"].returncode == ended["bare"].returncode == 120
    assert "finished after 6 steps" in ended["traced"].stderr
    assert ended["traced"].stderr.endswith(ended["bare"].stderr.splitlines()[-1] + "\n")


def test_a_full_disk_takes_neither_the_report_nor_the_traceback(own_folder, capsys, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memlab.tracing.trace.write_atomically", full)
    (own_folder / "train.py").write_text(LOOP + "raise ValueError('its own')\n")
    assert cli.main(["trace", "--json", "out.json", "train.py"]) == 2
    said = capsys.readouterr().err
    assert "failed (ValueError) after 6 steps" in said
    assert "ValueError: its own\nmemlab: --json" in said
    assert said.endswith("cannot write it: No space left on device\n")


def test_interrupted(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import time, torch\nx = torch.ones(3, requires_grad=True)\n"
        "for _ in range(4):\n    x.exp().sum().backward()\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*PYTHON, "trace", "waits.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # as Python's own
    assert "interrupted after 4 steps (backward)" in said
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert os.sep + os.path.join("memlab", "tracing") not in said  # noqa: PTH118


LOOP = """
import torch
from torch import nn

model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
other = torch.optim.SGD(model.parameters(), lr=0.1)
for number in range(6):
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    other.step()
"""


@pytest.mark.parametrize(
    ("code", "options", "source", "steps"),
    [
        (LOOP, (), "optimizer.step", 6),
        (LOOP.replace("optimizer.step()", "pass").replace("other.step()", "pass"), (), "backward", 18),
        (
            LOOP.replace(".sum().backward()", "").replace("optimizer.step()", "pass").replace("other.step()", ""),
            (),
            "forward",
            18,
        ),
        (LOOP + "    import memlab\n    memlab.step()\n    memlab.step()\n", (), "memlab.step", 12),
        (LOOP, ("--step-at", "train.py:10"), "train.py:10", 18),
        ("import torch\ntorch.ones(3)\n", (), "", 0),
    ],
)
def test_steps_are_found(trace, code, options, source, steps):
    Path("train.py").write_text(code)
    status, _, said, found = trace(code, *options)
    assert (status, found.source, found.steps, found.ended) == (0, source, steps, "finished"), said


ENDS = """
import sys
try:
    {how}
finally:
    print("cleaned up")
"""


@pytest.mark.parametrize(
    ("how", "status", "ended", "last"),
    [
        ("pass", 0, "finished", ""),
        ("sys.exit()", 0, "finished", ""),
        ("sys.exit(0)", 0, "finished", ""),
        ("sys.exit(None)", 0, "finished", ""),
        ("sys.exit(7)", 7, "exited", ""),
        ("sys.exit('that was all')", 1, "exited", "that was all\n"),
        ("sys.exit('')", 1, "exited", "\n"),
        ("raise KeyboardInterrupt", 130, "interrupted", "KeyboardInterrupt\n"),
        ("raise OSError('disk')", 1, "failed", "OSError: disk\n"),
        ("compile('def (', 'x', 'exec')", 1, "failed", "SyntaxError: invalid syntax\n"),
    ],
)
def test_every_end(trace, how, status, ended, last):
    code, out, said, found = trace(ENDS.format(how=how))
    assert (code, out, found.ended, found.code) == (status, "cleaned up\n", ended, status)
    assert f"\nexited with {status} after no step" in said or ended != "exited"
    assert said.endswith(last)
    assert "tracing" not in said


def test_stops_where_it_is_told(trace):
    code = LOOP.replace("for number", "import atexit\ntry:\n  for number").replace("    ", "      ")
    code += "finally:\n  print('cleaned up', number)\n"
    status, out, said, found = trace(code, "--steps", 4)
    assert (status, out, found.steps, found.ended) == (0, "cleaned up 3\n", 4, "stopped")
    assert "stopped after 4 steps (optimizer.step), as --steps asked" in said
    assert "Traceback" not in said


LEAKS = """
import torch
from torch import nn


def train(steps):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    losses = []
    for _ in range(steps):
        loss = model(torch.ones(32, 64)).mean()
        losses.append(loss)


train(40)
"""


def test_growth_and_the_peak(trace):
    status, _, said, found = trace(LEAKS)
    assert status == 0
    each = 2 * 4 * 32 * 64  # the input, and the output of tanh
    assert found.grows
    assert found.per_step == each + 4
    assert found.peak.saved == 40 * each
    assert sum(row.bytes for row in found.peak.rows) == found.peak.saved
    assert found.peak.by("line") == {"train.py:10": 40 * each}
    assert [moment.step for moment in found.moments] == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40]
    assert all(moment.saved == moment.step * each for moment in found.moments)
    assert sum(found.last.classes.values()) == found.last.live
    assert "grows 16.00 KiB every step" in said
    owner = found.owners[0]  # its frame has gone by the end: it was seen while it ran
    assert (owner.name, owner.per_step, owner.born) == ("losses", each + 4, "train.py:10")
    assert owner.step < found.steps == 40
    assert "python -m memlab show pattern forward_without_backward:numbers_kept" in said


def test_what_of_a_card_is_taken_is_said(trace):
    status, _, said, _ = trace(LEAKS.replace("train(40)", "train(2)"), "--card", "rtx4090")
    assert status == 0
    assert "less 426.00 MiB for the CUDA context and 0 B of others: 23.22 GiB for torch" in said


def test_out_of_memory_on_a_card(trace):
    code = LEAKS.replace("train(40)", "train(10**6)").replace("32, 64", "256, 64")
    status, _, said, found = trace(code, "--card", "4 MiB")
    assert status == 1
    assert (found.ended, found.card, found.simulated) == ("out of memory", 4 << 20, True)
    assert sum(found.last.classes.values()) == found.last.live <= 4 << 20
    assert (found.card_numbers["reserved_peak"], found.card_numbers["ooms"]) == (4 << 20, 1)
    assert "4.00 MiB of 4.00 MiB reserved at most (simulated)" in said
    assert "in pieces between; 1 retry" in said
    assert 0 <= found.last.saved - found.last.step * 2 * 4 * 256 * 64 <= 4 * 256 * 64
    for words in (
        "out of memory (OutOfMemoryError)",
        "of 4.00 MiB (simulated)",
        "filled by",
        "says     CUDA out of memory",
    ):
        assert words in said
    assert said.index("filled by") < said.index("Traceback")
    assert 'train.py", line 14, in <module>' in said
    assert str(Path(memlab.__file__).parent) + os.sep not in said[said.index("Traceback") :]


def test_a_module(trace, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(
        "import sys\nfrom . import other\n"
        "print(__name__, __package__, sys.argv[1:], sys.argv[0].endswith('__main__.py'))"
    )
    (tmp_path / "package" / "other.py").write_text("")
    status, out, _, found = trace("", "-m", "package", arguments=("--steps", "x"))
    assert (status, out, found.command) == (0, "__main__ package ['--steps', 'x'] True\n", ["package", "--steps", "x"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a script to run"),
        (["nowhere.py"], "there is no file nowhere.py"),
        (["."], ". is a folder; name a script in it"),
        (["-m"], "-m takes a module"),
        (["-m", "no_such_module"], "there is no module 'no_such_module'"),
        (["--steps", "0", "x.py"], "--steps must be at least 1"),
        (["--step-at", "x.py", "x.py"], "--step-at takes a file that is there and a line"),
        (["--card", "lots", "x.py"], "--card: there is no card 'lots'"),
        (["--json", "-", "x.py"], "stdout belongs to the script"),
    ],
)
def test_wrong_use(arguments, sentence, own_folder, capsys):
    assert cli.main(["trace", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


IN_A_THREAD = """
import threading, torch

losses, model = [], torch.nn.Linear(64, 64)

def work():
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        losses.append(model(torch.ones(32, 64)).exp().sum())
        optimizer.step()
    print("all steps")

thread = threading.Thread(target=work)
thread.start()
thread.join()
print("joined")
"""


def test_a_loop_in_a_thread_is_traced(trace):
    status, out, _, seen = trace(IN_A_THREAD)
    assert (status, seen.ended, seen.steps, seen.source) == (0, "finished", 20, "optimizer.step")
    assert seen.grows
    assert seen.owners[0].name == "losses"
    assert seen.owners[0].born.endswith("train.py:9")
    assert seen.last.saved == 20 * 32 * 64 * 4 + 32 * 64 * 4 * 20  # inputs that were made here, and exp's outputs
    assert "joined" in out


def test_a_thread_stops_after_so_many_steps_and_the_script_goes_on(tmp_path):
    (tmp_path / "train.py").write_text(IN_A_THREAD)
    command = [*PYTHON, "trace", "--steps", "5", "--json", "out.json", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    seen = load(tmp_path / "out.json")
    assert (seen.ended, seen.steps) == ("stopped", 5)
    assert "all steps" not in done.stdout
    assert "joined" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_line_in_a_thread_ends_steps(trace):
    _, _, _, seen = trace(IN_A_THREAD, "--step-at", "train.py:10")
    assert (seen.steps, seen.source) == (20, "train.py:10")
