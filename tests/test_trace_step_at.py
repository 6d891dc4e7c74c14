"""`memlab trace --step-at`: a line that ends steps, and what is said of one that has no code or never runs."""

import sys

import pytest

from memlab import cli
from memlab.tracing import code_lines

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
