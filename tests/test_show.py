"""What people and pipes see of a report."""

import fcntl
import importlib
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
import samples
from hypothesis import example, given
from hypothesis import strategies as st
from samples import Terminal

from memlab import show
from memlab.doctor import MEASURED, NOT_HERE, Ability, Examination
from memlab.experiment import Unknown
from memlab.report import FAILED, REFUTED, Finding, Report
from memlab.show import _columns, _doctor, _explanation, _list, _live, _owners, _pages, _reasons, _snapshot, _words
from memlab.snapshots.replay import Outcome
from memlab.snapshots.summary import Replays
from memlab.tracing.explanation import Explanation
from memlab.tracing.trace import Held, Moment

EVERYTHING = (
    samples.finding(),
    samples.refuted(),
    samples.skipped(),
    samples.failed(),
    samples.dead(),
    samples.on_cuda(),
)


def shown(how, *findings, out=None, machine=True):
    out = out or io.StringIO()
    report = samples.report(*findings)
    show.way(how)(report if machine else Report({}, report.findings), out)
    return out.getvalue()


@pytest.fixture(params=[80, 160])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_every_way_is_found_by_its_file():
    assert show.ways() == ["json", "markdown", "perfetto", "plain", "table"]
    with pytest.raises(Unknown, match="did you mean table"):
        show.way("tabel")


def test_a_new_way_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "shout.py").write_text("def show(report, out):\n    out.write(f'{len(report.findings)} FINDINGS!')\n")
    monkeypatch.setattr(show, "__path__", [*show.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "shout" in show.ways()
    assert shown("shout", *EVERYTHING) == "6 FINDINGS!"


def test_people_get_tables_and_pipes_lines():
    assert show.default(Terminal()) == "table"
    assert show.default(io.StringIO()) == "plain"


@pytest.mark.parametrize("how", ["json", "markdown", "perfetto", "plain", "table"])
def test_every_way_shows_every_finding(how):
    text = shown(how, *EVERYTHING)
    assert all(finding.arm in text for finding in EVERYTHING)
    assert "\x1b" not in text  # no colours in a pipe
    assert shown(how).strip()  # and something of an empty report
    assert shown(how, *EVERYTHING, machine=False)


@pytest.mark.parametrize("how", ["markdown", "plain", "table"])
def test_every_way_says_what_matters(how):
    text = " ".join(shown(how, *EVERYTHING).split())
    for words in (
        "+6.00 KiB",
        "sample:wrong is refuted: step 1: saved 6,144 B, expected 4,096 B (+2,048 B)",
        "5 x 4,096 B",
        "was skipped: this torch is built without CUDA",
        "could not be measured: ended by SIGKILL",
        "died at step 6, as predicted",
        "losses (local of train(), train.py:9) -> list",
        "Allocated and reserved are simulated",
        "6 arms: 3 hold, 1 skipped, 1 failed, 1 refuted",
    ):
        assert words in text


def test_json_is_the_report_itself():
    assert Report.from_json(shown("json", *EVERYTHING)) == samples.report(*EVERYTHING)
    assert json.loads(shown("json"))["findings"] == []


def test_plain_is_stable_to_grep(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = shown("plain", *EVERYTHING).splitlines()
    assert sum(line.startswith(("holds", "refuted", "skipped", "failed")) for line in lines) == len(EVERYTHING)
    cells = re.split("  +", lines[1])
    assert cells == ["holds", "sample:kept", *["+6.00 KiB/step"] * 2, *["+6.50 KiB/step"] * 2, "5"]


def test_no_line_of_a_table_is_wrapped(width):
    lines = shown("table", *EVERYTHING).splitlines()
    assert max(map(len, lines)) <= width
    for finding in EVERYTHING:
        rows = [line for line in lines if line.startswith(f"{finding.arm} ") and finding.status in line]
        assert len(rows) == 1
    assert any("Each loss leads to its graph." in line for line in lines) == (width == 160)


@pytest.mark.parametrize("columns", ["100", "80", "72", "60", "50", "40", "20"])
def test_narrow_terminals_lose_words_and_not_findings(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    lines = shown("table", samples.finding("a_rather_long_name_for_an_arm"), samples.refuted()).splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert "…" not in "".join(lines) or int(columns) >= 72
    words = re.sub(r"\s+", "" if columns == "20" else " ", "\n".join(lines))
    assert "a_rather_long_name_for_an_arm" in words
    assert "+6.00 KiB" in words or columns == "20"
    if int(columns) >= 40:
        rows = [line for line in lines if "✓ holds" in line]
        assert len(rows) == 1
        assert rows[0].startswith("a_rather_long_name_for_an_arm ")


def test_a_terminal_gets_colours_unless_it_says_no(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    green = "\x1b[32m"
    assert green in shown("table", samples.finding(), out=Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert green not in shown("table", samples.finding(), out=Terminal())


def test_simulated_is_always_said():
    for how in ("markdown", "plain", "table"):
        assert "simulated" in shown(how, samples.finding())
        assert "simulated" not in shown(how, samples.on_cuda())


def test_the_card_tells_its_story():
    text = shown("table", samples.dead())
    assert "died at 6" in text
    assert "███████████████████████████▍░░" in text  # 36.5 of 40 KiB
    assert "CUDA out of memory. Tried to allocate 2.00 KiB." in text
    assert "total capacity" not in text
    assert "30.00 KiB  train.py:12" in text
    assert "36.00 KiB of the card are free after the setup" in " ".join(text.split())
    assert "5 steps fit, step 6 does not" in " ".join(text.split())


@pytest.mark.parametrize(("predicted", "told"), [(2, "1 step fits, step 2 does not"), (3, "2 steps fit, step 3 does")])
def test_one_step_fits_and_two_fit(predicted, told):
    finding = samples.dead()
    finding.predicted = predicted
    assert told in " ".join(shown("table", finding).split())


@pytest.mark.parametrize(("number", "told"), [(4, "1 more, which alone pins 8 B"), (5, "2 more, which alone pin 16")])
def test_one_owner_pins_and_two_pin(number, told):
    held = [Held(f"kept{index}", f"kept{index}", exclusive=8, bytes=8, tensors=1) for index in range(number)]
    assert told in "\n".join(line.text for line in _owners.owners(held, 80))


@pytest.mark.parametrize(("unseen", "told"), [({"A": 1}, "what A (1) keeps"), ({"A": 1, "B": 1}, "A (1), B (1) keep")])
def test_one_node_keeps_and_two_keep(unseen, told):
    found = Explanation("a tensor", Moment(0), unseen=unseen)
    assert f"{told}\n" in "\n".join(line.text for line in _explanation.lines(found, 80))


@pytest.mark.parametrize(("saved", "verb"), [(1, "is"), (2, "are")])
def test_one_request_is_served_and_two_are(saved, verb):
    recorded, asked = Outcome(8, 8, 8, 8, ooms=3), Outcome(8, 8, 8, 8, ooms=3 - saved, saved=saved)
    replays = Replays(recorded, recorded, {"": asked}, None, "segment", 0)
    assert f"In part: {saved} of 3 requests that failed {verb} served" in _snapshot._verdict("", asked, replays)


def test_some_requests_are_served_on_another_card():
    recorded, asked = Outcome(8, 8, 8, 8, ooms=3), Outcome(8, 8, 8, 8, ooms=1, saved=2)
    replays = Replays(recorded, asked, {"": asked}, None, "segment", 0)
    assert "On this card 2 of 3 are served" in _snapshot._verdict("", asked, replays)


def test_an_arm_that_died_at_the_wrong_step():
    finding = samples.dead()
    finding.died, finding.status, finding.reason = 5, REFUTED, "it died at step 5; the closed form predicts step 6"
    assert "dies died at step 5, not at step 6, as predicted" in shown("plain", finding)
    finding.predicted = None
    assert "dies died at step 5, which nothing predicted" in shown("plain", finding)


def test_where_the_bytes_of_a_card_are():
    lines = [" ".join(line.split()) for line in shown("plain", samples.on_cuda()).splitlines()]
    for line in (
        "NVML, this process 514.00 MiB = context + reserved",
        "context 512.00 MiB what CUDA itself takes",
        "reserved 2.00 MiB = cached + allocated",
        "allocated 44.50 KiB = workspaces + setup + live tensors + rounding",
        "workspaces 8.00 KiB held by libraries before the setup",
        "live tensors 30.02 KiB storages that the arm has made",
        "rounding 2.48 KiB up to 512 B each, and rests too small to split",
    ):
        assert line in lines


def test_hidden_process_bytes_are_said_to_be_hidden():
    finding = samples.on_cuda()
    for row in finding.rows:
        del row["nvml_process"]
    text = shown("plain", finding)
    assert "NVML's count for this process is not available: the driver hides it" in text
    assert "context" not in text


def test_the_same_reason_is_given_once():
    many = [Finding("sample", f"arm_{i}", status="skipped", reason="no CUDA device") for i in range(7)]
    assert shown("plain", *many).count("no CUDA device") == 1
    assert "sample:arm_0 and 6 more were skipped: no CUDA device" in shown("plain", *many)


def test_several_experiments_end_in_an_overview():
    other = samples.finding()
    other.experiment = "another"
    text = shown("table", samples.finding(), samples.refuted(), other)
    assert "✗ sample   1 holds, 1 refuted" in text
    assert "✓ another  1 holds" in text


def test_hostile_text_cannot_drive_the_terminal():
    hostile = samples.finding(
        "arm\x1b[2J", status=FAILED, title="[bold]no[/wrong]", claim="a\nb\x07\ud800 | c", reason="\x1b]0;title\x07"
    )
    for how in ("markdown", "plain", "table"):
        text = shown(how, hostile)
        assert not set(text) & {"\x1b", "\x07", "\ud800"}
    assert "[bold]no[/wrong]" in shown("markdown", hostile).replace("\\", "")
    assert "a b   \\| c" in shown("markdown", hostile)


@pytest.mark.parametrize("how", ["json", "markdown", "perfetto", "plain", "table"])
@pytest.mark.parametrize(
    "strange",
    [
        Finding("x", "y"),
        Finding("", ""),
        Finding("x", "y", status=REFUTED, bill={"saved": {"a": [1, 2]}}),
        Finding("x", "y", status=REFUTED, rows=[{"saved": 1}], expected=[{}], bill={"saved": {"a": [1, 2]}}),
        Finding("x", "y", rows=[{}], expected=[{}], sources={"allocated": "measured"}),
        Finding("x", "y", card=0, died=1, predicted=1),
        Finding("x", "y", card=-5, died=3, rows=[{"allocated": -7}], expected=[{"allocated": 1}, {"allocated": 2}]),
        Finding("x", "y", rows=[{"saved": -3}, {"saved": 5}, {"saved": -9}]),
    ],
)
def test_strange_but_valid_findings_are_shown(how, strange):
    assert shown(how, strange)


def test_steps_in_words():
    assert _words.by_step([]) == "-"
    assert _words.by_step([6144]) == "6.00 KiB"
    assert _words.by_step([0, 0, 0]) == "0 B"
    assert _words.by_step([3072, 2048, 1024]) == "-1.00 KiB/step"
    assert _words.by_step([0, 4096, 0]) == "▁█▁ up to 4.00 KiB"
    assert len(_words.curve(list(range(1000)), width=10)) == 10


def test_a_bill_beside_equal_numbers_says_nothing():
    assert _reasons.beside(samples.finding(status=REFUTED)) == []


def test_columns_fold_their_last():
    assert _columns.align([("a", "b"), ("long", "c")]) == ["a     b", "long  c"]
    assert _columns.align([("a", "b c d e f g h i j k")], width=20) == ["a  b c d e f g h i j", "   k"]
    assert _columns.align([("first", "b c d e f g h i")], width=12) == ["first", "    b c d e", "    f g h i"]
    assert _columns.align([("", "wide " * 9)], width=12)[0] == "    wide"


@given(st.text(alphabet="ab \u0301层🔥⚙\ufe0f-", max_size=60), st.integers(8, 40))
@example("⚙\ufe0f" * 20, 8)
def test_no_folded_line_is_wider_than_the_terminal(text, width):
    from rich.cells import cell_len

    lines = _columns.fold(text, width, "  x ", "    ")
    assert max(map(cell_len, lines)) <= width
    assert max(map(_columns.cells, lines)) <= width
    assert "".join("".join(lines).split()) == "x" + "".join(text.split())


@given(st.lists(st.tuples(*[st.text(alphabet="ab 层🔥", max_size=30)] * 3), min_size=1), st.integers(8, 80))
def test_no_aligned_line_is_wider_than_the_terminal(rows, width):
    lines = _columns.align(rows, (1,), width)
    assert max(map(_columns.cells, lines), default=0) <= width
    said = sorted("".join("".join(row).split()) for row in rows)
    assert "".join(sorted("".join(said))) == "".join(sorted("".join("".join(lines).split())))


def test_columns_of_wide_characters_are_flush():
    assert _columns.align([("层", "x"), ("abc", "y")]) == ["层   x", "abc  y"]
    assert _columns.cut("层层层", 4) == "层…"
    assert _columns.cut("层层", 4) == "层层"
    lines = shown("table", samples.finding("变换器"), samples.finding("plain")).splitlines()
    assert len({_columns.cells(line.split("✓")[0]) for line in lines if "✓ holds" in line}) == 1


def test_the_width_is_that_of_the_stream_and_not_of_stdout():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 57, 0, 0))
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb"):
        assert _columns.width_of(stream) == 57
        assert _columns.size_of(stream) == (57, 33)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert _columns.size_of(stream) == (80, 24)  # a terminal that does not know


def test_a_dumb_terminal_is_as_wide_as_it_is(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "160")
    _pages.write([_pages.Text("x" * 160)], out := Terminal())
    assert out.getvalue() == "x" * 160 + "\n"


ENDED = """
import os, signal, sys, time
from memlab.show._terminal import given_back
{before}
with given_back(lambda: os.write(1, b"restored ")):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({pause})
print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("before", "pause", "code", "said"),
    [
        ("", 30, -signal.SIGTERM, "restored "),
        ("signal.signal(signal.SIGTERM, lambda *given: os.write(1, b'own '))", 0, 0, "own restored went on\n"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0, 0, "restored went on\n"),
    ],
)
def test_a_terminal_is_given_back_by_a_process_that_is_ended(before, pause, code, said):
    command = [sys.executable, "-c", ENDED.format(before=before, pause=pause)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, said, "")


def test_list_and_doctor():
    from memlab.experiment import Summary

    found = {"one": Summary("one", None, "A claim.", {"arm": "Its title."}), "two": "cannot read the experiment"}
    plain, terminal = io.StringIO(), Terminal()
    _list.show(found, plain, arms=False)
    assert plain.getvalue() == "one  A claim.\ntwo  cannot read the experiment\n"
    _list.show(found, terminal, arms=True)
    assert terminal.getvalue() == "one\n  A claim.\n    arm  Its title.\ntwo\n  cannot read the experiment\n"
    abilities = [Ability("saved", MEASURED, "to the byte"), Ability("NVML", NOT_HERE, "no driver")]
    _doctor.show(Examination({"torch": "2.13"}, abilities), out := io.StringIO())
    assert "✓ saved  measured  to the byte\n- NVML   not here  no driver\n" in out.getvalue()


class Job:
    def __init__(self, arm, path):
        self.arm, self.device, self.path = arm, "cpu", path


def test_live_shows_the_card_filling(tmp_path):
    from rich.console import Console

    job, other = Job("dies", tmp_path / "sample.py"), Job("lives", tmp_path / "sample.py")
    console = Console(file=io.StringIO(), width=80)
    picture = _live._Picture()
    picture.begin([job, other])
    for step in range(1, 4):
        row = {"step": step, "steps": 4, "allocated": 10240 * step, "base_allocated": 1024, "card": 40960}
        picture.row(job, row)
    picture.row(other, {"step": 1, "allocated": 0})
    console.print(picture)
    text = console.file.getvalue()
    assert "0 of 2 arms measured" in text
    assert "card: 40.00 KiB (simulated)" in text
    assert "31.00 KiB  step 3" in text
    assert "+10.00 KiB/step" in text
    picture.finding(job, samples.dead())
    picture.finding(other, samples.finding())
    console.print(picture)
    assert "died at 6" in console.file.getvalue()
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


def test_live_is_silent_in_a_pipe():
    err = io.StringIO()
    with _live.watching(err) as view:
        view.say("loading")
        view.begin([])
        view.row(None, {})
        view.finding(None, None)
    assert err.getvalue() == ""


def test_live_cleans_up_behind_itself(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), _live.watching(err := Terminal()) as view:
        view.say("loading")
        raise KeyboardInterrupt
    assert err.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in err.getvalue()  # the cursor is back
