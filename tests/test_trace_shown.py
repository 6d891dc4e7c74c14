"""Traces as they are told, saved, read again and compared."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Terminal

from memlab import cli
from memlab.report import NotAReport
from memlab.show import _diff, _trace, _trace_live
from memlab.tracing import compare, recorder
from memlab.tracing.trace import Held, Moment, Row, Trace


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
    assert "a trace is shown as json, plain, table, not as 'html'" in memlab_("show", one, "--show", "html")[2]
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
    assert "3 names differ what names hold more in every step" in said
    assert (
        "-4.00 KiB 4.00 KiB -> 0 B gone, kept at a.py:1 -9 B 9 B -> 0 B graphs +7 B 0 B -> 7 B new, born at b.py:2"
        in said
    )
    assert max(len(line.text) for line in _diff.lines(found, 40, 5)) <= 40
    both = compare.compare(side(), compare.Side("x", Moment(0, 8, 0, [row("a.py:1", 8)]), (pile("new", 5),)))
    assert "1 line and 1 name differ" in " ".join(line.text for line in _diff.lines(both, 100, None))
    many = compare.compare(side(), side(*(pile(f"x{index:02}", 100 - index) for index in range(12))))
    assert "and 2 more, +179 B" in " ".join(line.text for line in _diff.lines(many, 100, None))
