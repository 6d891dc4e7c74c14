"""Snapshots on the command line: written by a run, shown to people, as a page and as counters."""

import io
import json
import pickle
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import hostile
import pytest
import recordings
import samples
from recordings import CONFS, events_of, fragmented, line_of, parsed
from samples import Terminal

import memlab
from memlab import cli
from memlab.allocator.settings import Settings
from memlab.snapshots import layout, page, pickles, summary
from memlab.snapshots.timeline import timeline


def test_run_writes_one_file_for_each_arm(tmp_path, monkeypatch, capsys):
    samples.write(tmp_path, samples.arm("dies", "x.new_empty(1 << 22)"), samples.registered("dies"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "sample.py", "--snapshot", "out.pickle", "--card", "2 MiB", "--show", "plain"]) == 1
    assert "The snapshot is written to out.sample.keeps.pickle." in capsys.readouterr().out
    taken = {path.name: pickle.loads(path.read_bytes()) for path in tmp_path.glob("*.pickle")}
    assert sorted(taken) == ["out.sample.dies.pickle", "out.sample.keeps.pickle"]
    assert [page.complaints(pickles.dumps(each)) for each in taken.values()] == [[], []]
    kept = [event for event in events_of(taken["out.sample.keeps.pickle"]) if event["category"] == "activation"]
    assert [event["size"] for event in kept] == [4 * 8 * 64] * 3
    assert kept[0]["frames"][0]["name"] == "keeps"
    assert len(events_of(taken["out.sample.dies.pickle"], "oom")) == 1
    assert cli.main(["show", "out.sample.dies.pickle", "--show", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["ooms"][0]["size"] == 4 << 22


@pytest.mark.parametrize("width", [80, 160])
def test_people_see_no_wrapped_line(recorded, width, tmp_path, monkeypatch):
    from memlab.show import _snapshot

    monkeypatch.setenv("COLUMNS", str(width))
    died = summary.summarise(parsed(fragmented("").snapshot()), CONFS)
    for told in (
        died,
        summary.summarise(parsed(recorded[0])),
        summary.summarise(parsed([])),
        summary.summarise(parsed([hostile.segment()])),
    ):
        out = Terminal()
        _snapshot.show("a file\x1b[31m.pickle", told, out)
        assert max(map(len, out.getvalue().splitlines())) <= width
        assert "\x1b" not in out.getvalue()


def test_the_page_shows_every_byte_by_its_line(recorded, tmp_path, monkeypatch, capsys):
    taken, (model, *_) = recorded
    told = timeline(parsed(taken), 0)
    assert told.moments == sorted(told.moments)
    laid = layout.start(parsed(taken).segments, parsed(taken).histories[0], Settings())
    for event in parsed(taken).histories[0]:
        laid.apply(event)
    assert max(told.allocated) == laid.peak_allocated
    assert max(told.reserved) == laid.peak_reserved
    line = f"{recordings.__file__}:{line_of('model = nn.Sequential')}"
    assert told.lines[line][-1] == sum(-(-each.nbytes // 512) * 512 for each in model.parameters())
    changed = pickle.loads(pickle.dumps(taken))
    for event in changed["device_traces"][0]:
        event["frames"] = [{"filename": "<script>&.py", "line": 1, "name": "f"}]
    monkeypatch.chdir(tmp_path)
    Path("<b>.pickle").write_bytes(pickles.dumps(changed))
    assert cli.main(["show", "<b>.pickle", "--show", "html"]) == 0
    text = capsys.readouterr().out
    open_tags, seen = [], Counter()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen[tag] += 1
            assert not {name for name, _ in attributes} & {"src", "href", "onload"}
            if tag not in ("meta", "path", "!doctype"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Reader().feed(text.replace("/>", ">"))
    assert open_tags == []
    assert (seen["script"], seen["b"], seen["polygon"]) == (0, 0, 1)


def test_wrong_use_of_show_is_one_sentence(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken.pickle").write_bytes(pickles.dumps(recorded[0]))
    Path("other.pickle").write_bytes(pickles.dumps([1, 2, 3]))
    Path("empty.pickle").touch()
    samples.report(samples.finding()).save(Path("report.json"))
    wrong = {
        ("taken.pickle", "--replay", "bogus:1"): "--replay: Unrecognized key 'bogus'",
        ("taken.pickle", "--show", "html", "--replay", ""): "the page shows what was recorded",
        ("taken.pickle", "--show", "markdown"): "a snapshot is shown as html, json, plain, table, not as 'markdown'",
        ("taken.pickle", "--card", "0"): "--card: a card of 0 bytes holds nothing",
        ("taken.pickle", "--card", "8 MiB"): "--card bounds a replay; add --replay SETTINGS, or --replay ''",
        ("other.pickle",): "cannot show other.pickle: it is a pickle, but not a memory snapshot: it has no segments",
        ("empty.pickle",): "cannot show empty.pickle: it is empty",
        ("report.json", "--show", "html"): "a report is shown as json, markdown, perfetto, plain, table, not as 'html'",
        ("report.json", "--replay", ""): "report.json is no memory snapshot; --replay and --card are for those",
    }
    for arguments, sentence in wrong.items():
        assert cli.main(["show", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"memlab: {sentence}")


def test_run_saves_tracks_beside_what_it_shows(tmp_path, monkeypatch, capsys):
    samples.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "sample.py", "--perfetto", "tracks.json", "--json", "report.json", "--show", "plain"]) == 0
    assert "holds" in capsys.readouterr().out
    assert cli.main(["show", "report.json", "--show", "perfetto"]) == 0
    assert Path("tracks.json").read_text(encoding="utf-8") == capsys.readouterr().out
    for out, sentence in {"-": "name a file, or write --show perfetto", "nowhere/x": "there is no folder"}.items():
        assert cli.main(["run", "sample.py", "--perfetto", out]) == 2
        assert sentence in capsys.readouterr().err


def test_perfetto_gets_counters_and_steps():
    from memlab import show

    out = io.StringIO()
    show.way("perfetto")(samples.report(samples.finding(), samples.dead(), samples.skipped()), out)
    trace = json.loads(out.getvalue())
    assert trace["otherData"]["simulated"] == "allocated, reserved"
    events = trace["traceEvents"]
    for event in events:  # the Trace Event Format's rules for each phase
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
        assert event["ph"] in "MCXi"
        assert event["ph"] != "C" or all(isinstance(value, int) for value in event["args"].values())
        assert event["ph"] != "X" or event["dur"] > 0
        assert event["ph"] != "i" or event["s"] in "gpt"
    saved = [event["args"]["bytes"] for event in events if (event["name"], event["pid"]) == ("saved", 1)]
    assert saved == [6144 * step for step in range(1, 6)]
    steps = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    assert [each["name"] for each in steps] == [f"step {step}" for step in range(1, 6)]
    assert all(before["ts"] + before["dur"] == after["ts"] for before, after in pairwise(steps))
    assert [event["name"] for event in events if event["ph"] == "i"] == ["out of memory"]


def test_the_page_on_the_allocator_is_true():
    text = (Path(__file__).parents[1] / "docs" / "allocator.md").read_text(encoding="utf-8")
    exec(text.split("```python")[1].split("```")[0], {})
    named = set(re.findall(r"`(\w+\.py)`", text))
    assert named <= {path.name for path in Path(memlab.allocator.__file__).parent.iterdir()}


@pytest.mark.parametrize("file", ["/home/me/torch/train.py", "C:\\memlab\\train.py", "/memlab/tests/test_it.py"])
def test_a_folder_called_like_a_library_is_the_users(file):
    inside = [{"filename": "/opt/site-packages/torch/nn/modules/linear.py", "line": 3, "name": "forward"}]
    inside += [{"filename": "/src/pytorch/torch/_ops.py", "line": 4, "name": "__call__"}]
    inside += [{"filename": "/src/memlab/memlab/probes/storages.py", "line": 5, "name": "__torch_dispatch__"}]
    inside += [{"filename": "/src/memlab/memlab/dispatch.py", "line": 6, "name": "__torch_dispatch__"}]
    inside += [{"filename": "/build/Python-3.11.7/Objects/methodobject.c", "line": 542, "name": "cfunction_call"}]
    assert summary.where([*inside, {"filename": file, "line": 7, "name": "step"}]) == f"{file}:7"
