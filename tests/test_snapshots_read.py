"""Snapshots read safely, whoever wrote them: old ones, hostile ones, damaged ones."""

import io
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import MIB, fragmented, parsed

from memlab import cli
from memlab.snapshots import content, layout, pickles, summary
from memlab.snapshots.pickles import NotASnapshot


def test_what_older_torches_wrote_is_read(recorded):
    taken, _ = recorded
    history = [{"addr": 1 << 21, "real_size": 1000, "frames": [{"filename": "a.py", "line": 3, "name": "f"}]}]
    block = {"size": 1 << 21, "state": "active_awaiting_free", "history": history}
    old = {"device": 1, "address": 1 << 21, "total_size": 1 << 21, "stream": 0, "blocks": [block]}
    read = parsed([old])
    assert read.segments[0].blocks[0][:4] == (1 << 21, 1 << 21, 1000, "active_pending_free")
    assert (read.devices, "device_traces" in read.missing) == ([1], True)
    assert "segment.is_expandable" in read.missing
    for protocol in (2, 3, 4, 5):
        assert content.load(io.BytesIO(pickle.dumps(taken, protocol))) == parsed(taken)


@pytest.mark.parametrize("name", hostile.files())
def test_a_hostile_file_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file.pickle").write_bytes(hostile.files()[name])
    code = cli.main(["show", "file.pickle"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("memlab: cannot show file.pickle: it ")
    assert err.count("\n") == 1 and len(err) < 250
    assert not Path(hostile.MARK).exists()


def test_the_corpus_is_hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("reduce", "global and call", "inst", "obj", "reduce, protocol 5, inside a snapshot"):
        pickle.loads(hostile.CODE[name])
        Path(hostile.MARK).rmdir()


def test_a_hostile_file_takes_bounded_memory(tmp_path):
    for index, data in enumerate(hostile.HUGE.values()):
        (tmp_path / f"{index}.pickle").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from memlab.snapshots import content\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: content.parse(content.pickles.loads(path.read_bytes(), memory=100 << 20))\n"
        "    except content.NotASnapshot: print('refused')"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (400 * MIB, 400 * MIB))

    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, preexec_fn=limit)
    assert done.stdout.split() == ["refused"] * len(files), done.stderr[-500:]


def test_every_limit_is_a_sentence(recorded, monkeypatch):
    data = pickles.dumps(recorded[0])
    with pytest.raises(NotASnapshot, match="too much memory"):
        pickles.loads(data, memory=10_000)
    with pytest.raises(NotASnapshot, match="too long to read"):
        pickles.loads(data, seconds=-1)
    with pytest.raises(layout.Inconsistent, match="longer than -1 s"):
        list(layout.paced([1], -1))
    monkeypatch.setattr(pickles, "LARGEST_FILE", len(data) - 1)
    with pytest.raises(NotASnapshot, match="it is larger than"):
        content.load(io.BytesIO(data))


WHOLE = pickles.dumps(fragmented("").snapshot())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        match data.draw(st.sampled_from(["set", "insert", "cut", "end"])):
            case "set":
                changed[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "insert":
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 8))]
            case "end":
                del changed[max(at, 1) :]
    try:
        summary.summarise(content.load(io.BytesIO(bytes(changed))), ["expandable_segments:True"])
    except NotASnapshot as error:
        assert str(error).startswith("it ")
