"""Scripts under memlab: unchanged to themselves, their steps found, what they keep told."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Terminal

import memlab
from memlab import cli
from memlab.report import NotAReport
from memlab.show import _diff, _trace, _trace_live
from memlab.tracing import code_lines, compare, recorder, stores
from memlab.tracing.trace import Held, Moment, Row, Trace, load

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


@pytest.fixture
def trace(own_folder, capsys):
    """Trace code in this process; return the exit code, stdout, stderr and what was recorded."""

    def go(code, *options, arguments=()):
        (own_folder / "train.py").write_text(textwrap.dedent(code))
        target = [] if "-m" in options else ["train.py"]
        given = ["--json", "out.json", *map(str, options), *target, *arguments]
        status = cli.main(["trace", *given])
        return (status, *capsys.readouterr(), load(own_folder / "out.json"))

    return go


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
    assert (owner.name, owner.per_step, owner.born) == ("losses", each, "train.py:10")
    assert owner.step < found.steps == 40
    assert "python -m memlab show pattern forward_without_backward:numbers_kept" in said


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


CODE = """\
import torch

# all of it
def step(x):
    'What it does.'
    if x:
        y = x.exp()

    return lambda: (
        never()
    )
def never():
    global z
    return 5
for _ in range(3):
    # one of them
    step(torch.ones(()))
"""


@pytest.mark.parametrize("option", [("train.py",), ("-m", "train")])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (999, "the file ends at line 17; the nearest line with code is 17"),
        (18, "the file ends at line 17; the nearest line with code is 17"),
        (2, "no code is on that line; the nearest lines with code are 1 and 4"),
        (3, "no code is on that line; the nearest lines with code are 1 and 4"),
        (5, "no code is on that line; the nearest lines with code are 4 and 6"),
        (13, "no code is on that line; the nearest lines with code are 12 and 14"),
    ],
)
def test_a_line_without_code_is_refused_at_once(option, line, sentence, own_folder, capsys):
    (own_folder / "train.py").write_text(CODE)
    assert cli.main(["trace", "--step-at", f"train.py:{line}", *option]) == 2
    assert capsys.readouterr() == ("", f"memlab: --step-at train.py:{line}: {sentence}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "there is no code in it"),
        (b"x = (\n", "it is not Python: '(' was never closed (other.py, line 1)"),
        (b"x = 1\0\n", "it is not Python: source code "),
    ],
)
def test_a_file_that_cannot_run_is_refused(text, sentence, own_folder, capsys):
    (own_folder / "train.py").write_text("print('ran')")
    (own_folder / "other.py").write_bytes(text)
    assert cli.main(["trace", "--step-at", "other.py:1", "train.py"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--step-at other.py:1: {sentence}" in err


def test_the_lines_with_code_are_those_that_python_tells_a_tracer_of(tmp_path):
    (tmp_path / "train.py").write_text(CODE)
    code, names, ran = compile(CODE, "train.py", "exec"), {}, set()

    def tracer(frame, event, argument):
        if frame.f_code.co_filename == "train.py" and event == "line":
            ran.add(frame.f_lineno)
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        exec(code, names)
        names["step"](names["torch"].ones(()))()
    finally:
        sys.settrace(before)
    refused = set()
    for line in range(1, 30):
        try:
            code_lines.check(tmp_path / "train.py", line)
        except ValueError:
            refused.add(line)
    assert set(range(1, 30)) - refused == ran


def test_a_line_that_never_runs_is_told_at_the_end(trace):
    status, _, said, found = trace(CODE, "--step-at", "train.py:14")
    assert (status, found.steps, found.source) == (0, 0, "train.py:14")
    assert "finished after no step: train.py:14 was not seen to run;" in said
    assert "no step: no optimizer, backward or module was seen" in trace("import torch\n")[2]


def row(line="train.py:1", nbytes=1024, module="", kind="activation"):
    return Row(line, module, "", kind, "MulBackward0", nbytes, 1)


def sample(**changed):
    """Return a trace of a run that leaks."""
    rows = [row("a/rather/long/path/to/a/train.py:37", 3 << 20, "encoder.layers.11.attention"), row("b.py:2", 1 << 20)]
    owner = Held(
        path="losses (local of train(), train.py:31) -> list[412] -> Tensor -> MeanBackward0",
        name="losses",
        bytes=1 << 30,
        exclusive=1 << 30,
        tensors=12772,
        born="train.py:37",
        source="loss = criterion(model(x), y)",
        per_step=4 << 20,
        pattern="kept losses",
        fix="keep loss.item() or loss.detach()",
        cure="forward_without_backward:numbers_kept",
    )
    points = [{"step": k, "saved": k << 20, "peak": k << 20, "live": k << 20} for k in range(1, 40)]
    known = {
        "machine": {"torch": "2.13"},
        "command": ["train.py", "--its", "args"],
        "source": "optimizer.step",
        "steps": 39,
        "points": points,
        "peak": Moment(0, 4 << 20, 0, rows),
        "last": Moment(39, 4 << 20, 5 << 20, rows, {"activation": 4 << 20, "parameter": 1 << 20}),
        "moments": [Moment(3, 1 << 20, 1 << 20, rows[1:])],
        "grows": True,
        "per_step": 1 << 20,
        "owners": [owner],
        "seconds": {"script": 1.5, "owners": 0.5},
    }
    return Trace(**(known | changed))


DEAD = {"ended": "out of memory", "card": 8 << 20, "simulated": True, "oom": "CUDA out of memory. Tried 2 MiB. GPU 0"}


@pytest.mark.parametrize("columns", [40, 80, 160])
@pytest.mark.parametrize("changed", [{}, DEAD, {"owners": [], "grows": False}, {"points": []}])
def test_no_line_is_wrapped(columns, changed, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    _trace.show(sample(**changed), out := Terminal())
    text = "".join(each for each in out.getvalue() if each >= " " or each == "\n").replace("[1m", "").replace("[0m", "")
    text = text.replace("[2m", "").replace("[1;31m", "")
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    if "owners" not in changed and changed != DEAD:
        words = " ".join(text.split())
        assert "pins 1.00 GiB in 12,772 saved tensors, +4.00 MiB every step" in words
        assert "born at train.py:37 loss = criterion(model(x), y)" in words
        assert "keep loss.item() or loss.detach()" in words


def test_a_pipe_gets_plain_lines_and_json_the_trace():
    _trace.show(sample(), out := io.StringIO())
    assert "\033" not in out.getvalue()
    _trace.show(sample(), out := io.StringIO(), "json")
    assert Trace.from_json(out.getvalue()) == sample()


def test_hostile_text_cannot_drive_the_terminal():
    hostile = sample(command=["\x1b[2J"], blind=["\x1b]0;title\x07"], owners=[Held("\x1b[2J", "x", fix="\x07")])
    _trace.show(hostile, out := io.StringIO())
    assert not set(out.getvalue()) & {"\x1b", "\x07"}


@given(st.integers(0, 4000), st.sampled_from(["", "null", "[]", '"x"', "1e999", "{}", "\\"]))
def test_damaged_files_get_a_sentence(cut, put):
    text = sample().to_json()
    damaged = text[: cut % len(text)] + put + text[cut % len(text) + 7 :]
    try:
        trace = Trace.from_json(damaged)
    except NotAReport as error:
        assert str(error)
    else:
        _trace.show(trace, io.StringIO())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"version": 9}, "it is a trace of format 9"),
        ({"format": "memlab report"}, "not a memlab trace"),
        ({"ended": "blown up"}, "no valid ended"),
        ({"peak": []}, "a moment is no mapping"),
        ({"points": [{"step": "one"}]}, "no valid points"),
        ({"extra": 1}, "unknown fields"),
        ({"owners": [{"path": "x"}]}, "name"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(damage, sentence):
    import json

    content = json.loads(sample().to_json()) | damage
    with pytest.raises(NotAReport, match=sentence):
        Trace.from_json(json.dumps(content))


@pytest.fixture
def memlab_(capsys):
    def go(*arguments):
        return (cli.main([str(each) for each in arguments]), *capsys.readouterr())

    return go


def test_show_and_diff(tmp_path, memlab_):
    one, other, fine = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c@2.json"
    sample().save(one)
    more = [row("train.py:1", 5 << 20), row("b.py:2", 512 << 10)]
    sample(peak=Moment(0, sum(each.bytes for each in more), 0, more)).save(other)
    sample().save(fine)
    assert memlab_("show", one)[1].startswith("\nmemlab trace train.py --its args\n")
    status, out, _ = memlab_("diff", one, other)
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "+1.50 MiB 3 lines differ" in lines
    assert lines.index("added, +5.00 MiB") < lines.index("shrunk, -512.00 KiB") < lines.index("gone, -3.00 MiB")
    assert "-512.00 KiB 1.00 MiB -> 512.00 KiB b.py:2, activation" in lines
    assert memlab_("diff", one, other, "--limit", "1.5 MiB")[0] == 0
    status, out, _ = memlab_("diff", one, other, "--limit", "1 MiB")
    assert status == 1
    assert "+1.50 MiB is past the limit of 1.00 MiB" in out
    assert memlab_("diff", f"{one}@3", f"{one}@3") == (
        0,
        f"  1.00 MiB  {one} at the end of step 3\n" * 2 + "       0 B  nothing differs\n",
        "",
    )
    assert memlab_("diff", fine, fine)[0] == 0
    assert "what step 4 kept was not recorded; there are 3" in memlab_("diff", f"{one}@4", one)[2]
    assert "comes the number of a step" in memlab_("diff", f"{one}@x", one)[2]
    assert "cannot read nowhere" in memlab_("diff", "nowhere", one)[2]
    assert memlab_("show", tmp_path)[0] == 2


@given(*[st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1 << 40))] * 2)
def test_the_changes_add_up(before, after):
    def moment(rows):
        return Moment(1, sum(rows.values()), 0, [row(f"{name}.py:1", nbytes) for name, nbytes in rows.items()])

    found = compare.compare(compare.Side("x", moment(before)), compare.Side("y", moment(after)))
    assert sum(change.bytes for change in found.changes) == found.bytes
    assert {change.line for change in found.of("added")} == {f"{name}.py:1" for name in set(after) - set(before)}
    assert {change.line for change in found.of("gone")} == {f"{name}.py:1" for name in set(before) - set(after)}
    for width in (40, 100):
        assert max(len(line.text) for line in _diff.lines(found, width, 5)) <= width


def test_milestones_are_few_and_the_first_steps_are_all():
    found = [step for step in range(1, 100_001) if recorder.is_milestone(step)]
    assert found[:12] == [*range(1, 9), 10, 12, 14, 16]
    assert len(found) < 70


def test_points_stay_few(monkeypatch):
    monkeypatch.setattr(recorder, "MOST_POINTS", 16)
    one = recorder.Recorder()
    for _ in range(1000):
        one.count += 1
        one._keep({"step": one.count, "saved": 0, "peak": one.count, "live": 10 * one.count})
    assert len(one.points) <= 17
    assert one._judge() == (True, 10)
    assert one._grew() == 10
    assert max(point["peak"] for point in one.points) >= 1000 - one.stride


def test_live_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("TERM", "xterm")
    point = {"step": 1234, "saved": 5 << 20, "peak": 6 << 20, "live": 7 << 20, "grew": 4096}
    said = "memlab  step 1,234  saved 5.00 MiB  peak 6.00 MiB  growth +4.00 KiB/step"
    assert _trace_live.text(point, 80) == said
    assert _trace_live.text(point, 50) == "step 1,234  saved 5.00 MiB  +4.00 KiB/step"
    assert _trace_live.text(point, 20) == "step 1,234  saved 5…"
    with _trace_live.watching(out := Terminal()) as seen:
        for _ in range(50):
            seen(point)
    drawn = out.getvalue()
    assert drawn.count("step 1,234") == 1  # rate-limited
    assert "\033[1;19r" in drawn  # the last row does not scroll
    assert "\n" not in drawn and "\r" not in drawn  # what the script has begun to write stays where it is
    assert drawn.endswith("\033[20;1H\033[2K\033[r\0338")  # and is given back
    with _trace_live.watching(out := io.StringIO()) as seen:
        seen(point)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("x += y", "add"),
        ("x -= y", "add"),
        ("x = x + y", "add"),
        ("x = y + x - z", "add"),
        ("x, n = x + y, n + 1", "add"),
        ("x.add_(y)", "add"),
        ("self.x = self.x + y", "add"),
        ("x['loss'] += y", "add"),
        ("x = a * x + (1 - a) * y", "mix"),
        ("x = x + a * (y - x)", "mix"),
        ("x = (x * n + y) / (n + 1)", "mix"),
        ("x = (x + y) / 2", "mix"),
        ("x.mul_(a).add_(y)", "mix"),
        ("x.mul_(a).add_(y, alpha=1 - a)", "mix"),
        ("x.copy_(a * x + y)", "mix"),
        ("x = torch.lerp(x, y, a)", "mix"),
        ("x.lerp_(y, a)", "mix"),
        ("x.append(y)", "put"),
        ("x[k].append(y)", "put"),
        ("x = f(x) + x", "assign"),
        ("_, x = model(y, x)", "assign"),
        ("x = y", "assign"),
        ("x[0] = y", "assign"),
        ("x = x * y", "assign"),
        ("x = []", ""),
        ("x = None", ""),
        ("y = x", ""),
        ("x.clear()", ""),
        ("m.register_forward_hook(lambda m, i, o: x.append(o))", "hook put"),
        ("m.register_forward_hook(lambda m, i, o: y.append(o)); x.append(y)", "put"),
    ],
)
def test_what_a_statement_does_to_a_name(tmp_path, statement, kinds):
    file = tmp_path / "x.py"
    file.write_text(f"def other():\n    x = [1]\n    x.lerp_(y)\n\ndef train():\n    {statement}\n")
    name = "trainer.x" if "self." in statement else "x"
    assert stores.stores(name, f"local of train(), {file}:5") == set(kinds.split())


def test_hooks_by_name_and_what_is_no_place(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "class A:\n    def f(self, m, i, o):\n        self.x.append(o)\n\n    def g(self, m):\n"
        "        m.register_full_backward_hook(self.f)\n\ndef make(x):\n    def h(m, i, o):\n        x.append(o)\n"
        "    return h\n\nz = []\nm.register_forward_hook(make(z))\n"
    )
    assert stores.stores("a.x", f"attribute of A; a is local of train(), {file}:5") == {"put", "hook"}
    assert stores.stores("x", f"closure of make.<locals>.h(), {file}:9") == {"put", "hook"}
    assert stores.stores("x", "nowhere") == stores.stores("x", "local of x(), gone.py:3") == frozenset()


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


def test_a_comparison_tells_which_names_hold_more_every_step():
    def side(*owners):
        return compare.Side("x", Moment(0), owners)

    def pile(name, per_step, holds="tensors", **place):
        return Held(f"{name} -> list", name, per_step=per_step, holds=holds, **place)

    before = side(pile("same", 8), pile("gone", 4096, kept="a.py:1"), pile("graphs", 9, holds="graph"))
    after = side(pile("same", 8), pile("flat", 0), *(pile("new", each, born="b.py:2") for each in (5, 2)))
    found = compare.compare(before, after)
    assert [(each.name, each.place, each.before, each.after) for each in found.piles] == [
        ("gone", "kept at a.py:1", 4096, 0),
        ("graphs", "", 9, 0),
        ("new", "born at b.py:2", 0, 7),
    ]
    said = " ".join(" ".join(line.text for line in _diff.lines(found, 100, None)).split())
    assert "3 lines differ what names hold more in every step" in said
    assert (
        "-4.00 KiB 4.00 KiB -> 0 B gone, kept at a.py:1 -9 B 9 B -> 0 B graphs +7 B 0 B -> 7 B new, born at b.py:2"
        in said
    )
    assert max(len(line.text) for line in _diff.lines(found, 40, 5)) <= 40
    many = compare.compare(side(), side(*(pile(f"x{index:02}", 100 - index) for index in range(12))))
    assert "and 2 more, +179 B" in " ".join(line.text for line in _diff.lines(many, 100, None))
