"""Snapshots: written so that memory_viz and torch open them, read safely whoever wrote them, replayed exactly."""

import io
import json
import pickle
import re
import resource
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import hostile
import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Terminal
from torch import nn
from torch.cuda import _memory_viz

import memlab
from memlab import cli
from memlab.allocator import Allocator, OutOfMemory
from memlab.allocator.settings import Settings
from memlab.probes.history import _RecordingMode
from memlab.snapshots import content, layout, merge, page, pickles, replay, summary
from memlab.snapshots.pickles import NotASnapshot
from memlab.snapshots.timeline import timeline
from memlab.stacks import is_own
from memlab.storage_history import MOST_NODES, StorageHistory
from memlab.storage_ledger import StorageLedger

CONFS = ["", "expandable_segments:True", "max_split_size_mb:64", "roundup_power2_divisions:4"]
MIB = 1 << 20


def train(model, optimizer, x):
    hidden = model(x)
    part = hidden[:, :3]
    loss = part.square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def recorded():
    """Two training steps under a watch with a history; return the watch and the snapshot taken at its end."""
    torch.manual_seed(0)
    with memlab.watch(card="64 MiB", history=True) as seen:
        model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 300))
        optimizer = torch.optim.Adam(model.parameters())
        x = torch.randn(64, 100)
        for _ in range(2):
            train(model, optimizer, x)
        taken = memlab.snapshot(seen)
    return taken, (model, optimizer, x)


def events_of(snapshot, action="alloc"):
    return [event for event in snapshot["device_traces"][0] if event["action"] == action]


def parsed(snapshot):
    return content.load(io.BytesIO(pickles.dumps(snapshot)))


def shape(segments):
    """Everything of segments but frames, and the sizes that free blocks remember."""
    return [
        (*each[1:6], [(b.address, b.size, b.state, b.requested if b.active else 0) for b in each.blocks])
        for each in segments
    ]


def replayed_plainly(events):
    """Replay a history with sets of bytes and nothing else: ``{segment: size}``, ``{block: requested}``."""
    segments, blocks = {}, {}
    for event in events:
        address, size = event.get("addr"), event["size"]
        match event["action"]:
            case "segment_alloc":
                assert all(address >= a + s or a >= address + size for a, s in segments.items())
                segments[address] = size
            case "segment_free":
                assert segments.pop(address) == size
                assert not any(address <= block < address + size for block in blocks)
            case "alloc":
                assert any(a <= address and address + size <= a + s for a, s in segments.items())
                assert all(address >= a + s or a >= address + size for a, s in blocks.items())
                blocks[address] = size
            case "free_completed":
                assert blocks.pop(address) == size
    return segments, blocks


# --- writing


def test_a_snapshot_of_a_cpu_run_opens_in_the_page_and_in_torchs_own_tools(recorded, tmp_path, capsys):
    taken, _ = recorded
    data = pickles.dumps(taken)
    assert page.complaints(data) == []
    path = tmp_path / "taken.pickle"
    path.write_bytes(data)
    loaded = pickle.loads(path.read_bytes())
    assert loaded == taken
    for draw in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "MemoryViz.js" in draw(loaded)
    assert "alloc" in _memory_viz.trace(loaded)
    assert "Mi" in _memory_viz.segsum(loaded)
    blocks = [block for each in loaded["segments"] for block in each["blocks"] if block["state"] != "inactive"]
    lines = _memory_viz.compare(loaded["segments"], [], format_flamegraph=str)  # its own would fetch a script
    assert lines.count("only_before") >= len(blocks)
    assert f"only_before = {[each['address'] for each in loaded['segments']]}" in capsys.readouterr().out


def test_replaying_the_history_gives_the_segments(recorded):
    taken, _ = recorded
    events = taken["device_traces"][0]
    segments, blocks = replayed_plainly(events)
    assert segments == {each["address"]: each["total_size"] for each in taken["segments"]}
    active = [block for each in taken["segments"] for block in each["blocks"] if block["state"] != "inactive"]
    assert blocks == {block["address"]: block["requested_size"] for block in active}
    again = Allocator(total=64 * MIB)
    for event in events:
        if event["action"] == "alloc":
            assert again.malloc(event["size"], event["stream"]) == event["addr"]
        elif event["action"] == "free_completed":
            again.free(event["addr"])
    assert shape(parsed(again.snapshot()).segments) == shape(parsed(taken).segments)
    laid = layout.Layout(Settings())
    for event in parsed(taken).histories[0]:
        laid.apply(event)
    assert shape(laid.segments()) == shape(parsed(taken).segments)


def line_of(text):
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


def test_what_backward_allocates_has_the_frames_of_its_forward_operator(recorded):
    taken, _ = recorded
    expected = {
        "MeanBackward0": line_of("loss = part"),
        "PowBackward0": line_of("loss = part"),
        "SliceBackward0": line_of("part = hidden"),
        "AddmmBackward0": line_of("hidden = model(x)"),
        "ReluBackward0": line_of("hidden = model(x)"),
    }
    found = {}
    for event in events_of(taken):
        here = [
            frame["line"] for frame in event["frames"] if frame["filename"] == __file__ and frame["name"] == "train"
        ]
        if event["category"] == "backward":
            found.setdefault(event["frames"][0]["name"].removeprefix("backward of "), set()).update(here)
        elif event["user_metadata"] == "addmm":
            assert here == [expected["AddmmBackward0"]]
            assert [frame["name"] for frame in event["frames"]][:2] == ["forward", "_call_impl"]
    assert found == {node: {line} for node, line in expected.items()}
    assert all(event["frames"] for event in events_of(taken))
    assert not any(is_own(frame["filename"]) for event in events_of(taken) for frame in event["frames"])


def test_categories_add_up_to_the_closed_form(recorded):
    taken, _ = recorded
    parameters = 4 * (100 * 200 + 200 + 200 * 300 + 300)
    made = Counter()
    for event in events_of(taken):
        made[event["category"]] += event["size"]
    assert made["parameter"] == parameters
    assert made["backward"] == 2 * (parameters + 4 * 64 * (200 + 200 + 300 + 4 * 3))  # masks, slices, four of the loss
    assert made["activation"] == 4 * 64 * (100 + 2 * (200 + 300))  # the input, and each step's relu and output
    blocks = [block for each in taken["segments"] for block in each["blocks"] if block["state"] != "inactive"]
    assert all(block["frames"] for block in blocks)


def test_a_history_is_kept_only_on_request():
    with memlab.watch() as seen:
        assert type(seen.storages.ledger) is StorageLedger
        assert not isinstance(seen.storages._mode, _RecordingMode)
    with pytest.raises(ValueError, match=r"open it with memlab.watch\(history=True\)"):
        memlab.snapshot(seen)
    with pytest.raises(ValueError, match="leave storages=True"):
        memlab.watch(history=True, storages=False)


def test_a_history_changes_no_gradient_and_is_bounded():
    def gradients(**options):
        torch.manual_seed(0)
        x = torch.randn(8, 16, requires_grad=True)
        with memlab.watch(**options) as seen:
            torch.utils.checkpoint.checkpoint(lambda x: (x @ x.T).exp().sum(), x, use_reentrant=False).backward()
        return x.grad, seen

    plain, _ = gradients()
    kept, seen = gradients(history=True)
    assert torch.equal(plain, kept)
    recomputed = [event for event in events_of(memlab.snapshot(seen)) if event["user_metadata"] == "exp"]
    assert [event["frames"][0]["name"] for event in recomputed] == ["<lambda>"] * 2  # not those of the backward
    ledger = StorageHistory(Allocator(), 50, real=False)
    for number in range(200):
        ledger.begin(None)
        ledger._forward[-number] = ledger._stack
        ledger._note_forward(ledger._stack)
        ledger.give_back(ledger.take(512))
    assert len(ledger._trace.entries) == 50
    assert not ledger._trace.live


def test_nodes_of_a_deep_graph_are_not_all_seen_by_python():
    with memlab.watch(history=True) as seen:
        y = x = torch.ones(1, requires_grad=True)
        for _ in range(MOST_NODES + 100):
            y = y * 1.0
        y.backward()
    assert any("operators of one backward" in sentence for sentence in seen.storages.blind)
    assert x.grad.item() == 1.0
    names = Counter(event["frames"][0]["name"] for event in events_of(memlab.snapshot(seen)))
    assert names["backward of MulBackward0"] == MOST_NODES


def test_the_history_of_a_death_says_what_was_wanted():
    held = []
    with memlab.watch(card="8 MiB", history=True) as seen:
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(MIB, dtype=torch.uint8))
    (oom,) = events_of(memlab.snapshot(seen), "oom")
    assert (oom["size"], oom["device_free"]) == (MIB, 0)
    assert oom["frames"][0]["line"] == line_of("held.append(torch.empty(MIB")
    (device,) = summary.summarise(parsed(memlab.snapshot(seen))).devices
    assert device.capacity == 8 * MIB
    assert device.top == {f"{__file__}:{oom['frames'][0]['line']}": (8 * MIB, 8)}


def test_one_category_is_always_unknown():
    named = {"action": "alloc", "category": "backward", "addr": 0, "size": 1, "stream": 0, "frames": []}
    taken = merge.settle_categories({"segments": [], "device_traces": [[], [named]]})
    assert [event["category"] for event in taken["device_traces"][1]] == ["backward", "unknown"]
    assert page._categories(taken) == []


# --- torch's own snapshot


class Told:
    def __init__(self, name):
        self.name = name

    def describe(self):
        return {"frames": [{"filename": self.name, "line": 1, "name": "f"}], "category": "c", "user_metadata": "op"}


class Seen:
    def __init__(self, time_us, address, nbytes, name):
        self.time_us, self.device, self.address, self.nbytes, self.birth = time_us, 0, address, nbytes, Told(name)


def test_a_storage_belongs_to_the_last_allocation_at_its_address():
    def entry(action, time, size=512, address=4096):
        ours = {"filename": "memlab", "line": 1, "name": "g"}
        return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": time, "frames": [ours]}

    def lifetime(begin, size=512):
        ends = [entry(action, begin + 100, size) for action in ("free_requested", "free_completed")]
        return [entry("alloc", begin, size), *ends]

    events = [*lifetime(1000), *lifetime(2000, 700), *lifetime(3000), entry("alloc", 4000)]
    block = {"address": 4096, "size": 512, "state": "active_allocated", "frames": []}
    snapshot = {
        "segments": [{"device": 0, "address": 4096, "blocks": [block], "frames": []}],
        "device_traces": [events],
    }
    seen = [Seen(1010, 4096, 512, "first"), Seen(3010, 4096, 512, "third"), Seen(4001, 4096, 512, "fourth")]
    merged = merge.merge(snapshot, [*seen, Seen(2010, 4096, 512, "of another size")], lambda name: name == "memlab")
    names = [[frame["filename"] for frame in event["frames"]] for event in merged["device_traces"][0]]
    assert names == [["first"]] * 3 + [[]] * 3 + [["third"]] * 3 + [["fourth"]]
    assert [event["category"] for event in events] == ["c"] * 3 + ["unknown"] * 3 + ["c"] * 4
    assert block["frames"][0]["filename"] == "fourth"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torchs_snapshot_of_a_device_gets_our_frames_and_categories(tmp_path):
    with memlab.watch(history=True) as seen:
        model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 300)).cuda()
        optimizer = torch.optim.SGD(model.parameters())
        train(model, optimizer, torch.randn(64, 100, device="cuda"))
        torch.cuda.synchronize()
    taken = memlab.snapshot(seen, tmp_path / "cuda.pickle")
    assert page.complaints((tmp_path / "cuda.pickle").read_bytes()) == []
    backward = [event for event in events_of(taken) if event["category"] == "backward"]
    assert {event["frames"][0]["name"] for event in backward} >= {"backward of AddmmBackward0"}
    assert line_of("hidden = model(x)") in {frame["line"] for event in backward for frame in event["frames"]}
    parameters = sum(event["size"] for event in events_of(taken) if event["category"] == "parameter")
    assert parameters == 4 * (100 * 200 + 200 + 200 * 300 + 300)
    assert not torch._C._cuda_isHistoryEnabled()


# --- what the page accepts


def test_the_checker_knows_what_the_page_does_not_take(recorded):
    taken, _ = recorded

    def complaints(change, protocol=4):
        changed = pickle.loads(pickle.dumps(taken))
        change(changed)
        return page.complaints(pickle.dumps(changed, protocol=protocol))

    def in_every_event(**values):
        return lambda taken: [event.update(values) for event in taken["device_traces"][0]]

    def first(action):
        return lambda taken: taken["device_traces"][0].remove(events_of(taken, action)[0])

    def freed(taken):  # a parameter, which is still there
        taken["device_traces"][0].append(events_of(taken)[0] | {"action": "free_completed"})

    assert complaints(lambda taken: None, 5) == ["it does not know the pickle protocol 5"]
    assert "pickle instruction SHORT_BINBYTES" in complaints(lambda taken: taken.update(x=b"1"), 3)[0]
    assert "pickle instruction EMPTY_SET" in complaints(lambda taken: taken.update(x={1}))[0]
    assert "cannot hold the integer" in complaints(lambda taken: taken.update(x=1 << 53))[0]
    assert "none is 'unknown'" in complaints(in_every_event(category="backward"))[0]
    assert "where no block is" in complaints(lambda taken: taken.update(segments=[]))[0]
    assert "where no block is" in complaints(first("free_completed"))[0]
    assert "where another one stays" in complaints(freed)[0]
    moved = complaints(lambda taken: taken["segments"][0]["blocks"][1].update(address=1))
    assert "is drawn at" in moved[0]
    assert complaints(lambda taken: taken["segments"][0]["blocks"].pop())[-1].endswith("do not make up its size")


# --- replaying


requests = st.lists(
    st.tuples(st.sampled_from("mmmmfffrse"), st.integers(1, 27), st.integers(0, 2**16), st.sampled_from([0, 0, 0, 7])),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(requests, st.sampled_from(CONFS), st.floats(0, 1))
def test_any_history_leads_to_its_segments_forwards_and_backwards(requests, conf, part):
    card = Allocator(total=1 << 29, conf=conf)
    card.record_history(10_000)
    live = []
    for what, bits, number, stream in requests:
        if what == "m":
            with suppress(OutOfMemory):
                live.append(card.malloc((1 << bits) + number % (1 << bits), stream))
        elif what == "e":
            card.empty_cache()
        elif what == "s":
            card.events_done = not card.events_done
        elif live:
            address = live.pop(number % len(live))
            if what == "r":
                card.record_stream(address, 3)
            card.free(address)
    taken = card.snapshot()
    assert page.complaints(pickles.dumps(taken)) == []
    read, rules = parsed(taken), Settings()
    rules.update(conf)
    history = read.histories[0]
    whole = layout.Layout(rules)
    cut = round(part * len(history))
    late = layout.start(read.segments, history[cut:], rules)
    for index, event in enumerate(history):
        whole.apply(event)
        if index >= cut:
            late.apply(event)
    assert shape(whole.segments()) == shape(late.segments()) == shape(read.segments)
    peaks = (whole.peak_allocated, whole.peak_reserved, whole.allocated, whole.reserved)
    assert peaks == (card.peak_allocated, card.peak_reserved, card.allocated, card.reserved)
    for device in summary.summarise(read, [conf]).devices:
        assert (device.allocated, device.reserved, device.problem) == (card.allocated, card.reserved, "")
    found = replay.history(read, 0, capacity=1 << 29)
    if not any(what in "rs" for what, *_ in requests):
        _, outcome = replay.closest(found)
        assert (outcome.peak_reserved, outcome.died) == (card.peak_reserved, None)


def fragmented(conf):
    """Two blocks in each segment of 20 MiB, some free, none whole: 36 MiB are free, and 18 MiB are not to be had."""
    card = Allocator(total=84 * MIB, conf=conf)
    card.record_history(1000)
    held = [card.malloc(9 * MIB) for _ in range(8)]
    for index in (1, 2, 5, 6):
        card.free(held[index])
    with suppress(OutOfMemory):
        card.malloc(18 * MIB)
    return card


def test_would_expandable_segments_have_saved_you(tmp_path, capsys):
    conf = "expandable_segments:True"
    died, lived = fragmented(""), fragmented(conf)
    path = tmp_path / "died.pickle"
    path.write_bytes(pickles.dumps(died.snapshot()))
    (device,) = summary.summarise(parsed(died.snapshot()), [conf]).devices
    recorded, model, asked = device.replays.recorded, device.replays.model, device.replays.asked[conf]
    assert (recorded.peak_allocated, recorded.peak_reserved) == (died.peak_allocated, died.peak_reserved)
    assert (model.peak_allocated, model.peak_reserved, model.ooms) == (died.peak_allocated, died.peak_reserved, 1)
    assert (asked.saved, asked.ooms, asked.died) == (1, 0, None)
    assert asked.peak_reserved == lived.peak_reserved
    assert cli.main(["show", str(path), "--replay", conf]) == 0
    out, err = capsys.readouterr()
    assert f"Would {conf} have saved you? Yes: what failed is served; 80.00 MiB reserved as before." in out
    assert err == ""


def test_a_block_that_is_not_split_counts_whole():
    card = Allocator(total=1 << 30)
    card.record_history()
    for size in (20_000_000, 3_000_000, 5 * MIB, 1000):
        card.malloc(size)
    (device,) = summary.summarise(parsed(card.snapshot())).devices
    whole = 20 * MIB + 3_000_320 + 5 * MIB + 1024
    assert device.recorded.peak_allocated == device.allocated == card.allocated == whole


def test_the_programs_own_empty_cache_is_told_from_a_retry():
    def releases(emptied):
        card = Allocator(total=64 * MIB)
        card.record_history()
        for address in [card.malloc(12 * MIB) for _ in range(4)]:
            card.free(address)
        if emptied:
            card.empty_cache()
        card.malloc(30 * MIB)
        return replay.history(parsed(card.snapshot()), 0, capacity=64 * MIB), card

    (retried, card), (emptied, _) = releases(False), releases(True)
    assert card.memory_stats()["num_alloc_retries"] == 1
    actions = [event.action for event in retried.events]
    assert actions.count("segment_free") == 4
    assert retried.releases == frozenset()
    assert emptied.releases == frozenset()  # what a retry would have done anyway
    assert replay.history(parsed(card.snapshot()), 0).releases == {actions.index("segment_free")}  # no card, no retry


def test_the_programs_own_empty_cache_on_a_full_card_is_told_from_a_retry():
    card = Allocator(total=64 * MIB)
    card.record_history()
    for address in [card.malloc(12 * MIB) for _ in range(5)]:
        card.free(address)
    card.empty_cache()
    card.malloc(12 * MIB)  # with the cache there would have been no room for a segment, and no need of one
    found = replay.history(parsed(card.snapshot()), 0, capacity=64 * MIB)
    assert found.releases == {[event.action for event in found.events].index("segment_free")}
    assert replay.replay(found, "").reserved == card.reserved == 12 * MIB


def test_a_limit_counts_all_that_is_asked_for_though_only_some_is_mapped():
    card = Allocator(total=1 << 30, fraction=96 / 1024, conf="expandable_segments:True")
    card.record_history()
    card.free(card.malloc(40 * MIB))
    card.malloc(44 * MIB)  # maps 20 MiB more, and is refused where 40 + 44 are over the limit
    with pytest.raises(OutOfMemory):
        card.malloc(50 * MIB)
    found = replay.history(parsed(card.snapshot()), 0)
    assert (found.limited, found.capacity, found.recorded.peak_reserved) == (True, 84 * MIB, 60 * MIB)
    assert replay.replay(found, found.conf).reserved == card.reserved


def test_a_limit_of_the_process_is_taken_for_the_card(tmp_path):
    card = Allocator(total=1 << 30, fraction=0.0625)
    card.record_history()
    with suppress(OutOfMemory):
        while True:
            card.malloc(9 * MIB)
    (device,) = summary.summarise(parsed(card.snapshot()), [""]).devices
    assert (device.ooms[0].free, device.capacity) == ((1 << 30) - 60 * MIB, 60 * MIB)
    assert device.replays.asked[""].ooms == 1


def test_a_history_that_does_not_fit_is_said_and_not_replayed(recorded, tmp_path, capsys):
    taken, _ = recorded
    changed = pickle.loads(pickle.dumps(taken))
    changed["device_traces"][0] = [
        event for event in changed["device_traces"][0] if event["action"] != "free_completed"
    ]
    changed["device_traces"][0] += [dict(event) for event in events_of(taken)[:1]]
    (device,) = summary.summarise(parsed(changed), ["expandable_segments:True"]).devices
    assert device.problem and device.replays is None
    changed = pickle.loads(pickle.dumps(taken))
    changed["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] = "of_the_future:1"
    (tmp_path / "future.pickle").write_bytes(pickles.dumps(changed))
    assert cli.main(["show", str(tmp_path / "future.pickle"), "--replay", ""]) == 0
    assert "its settings are of another torch: Unrecognized key 'of_the_future'" in capsys.readouterr().out


# --- reading


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


# --- the command line


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
    line = f"{__file__}:{line_of('model = nn.Sequential')}"
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
    samples.report(samples.finding()).save(Path("report.json"))
    wrong = {
        ("taken.pickle", "--replay", "bogus:1"): "--replay: Unrecognized key 'bogus'",
        ("taken.pickle", "--show", "html", "--replay", ""): "the page shows what was recorded",
        ("taken.pickle", "--show", "markdown"): "a snapshot is shown as html, json, plain, table, not as 'markdown'",
        ("taken.pickle", "--card", "0"): "--card: a card of 0 bytes holds nothing",
        ("report.json", "--replay", ""): "report.json is no memory snapshot; --replay and --card are for those",
    }
    for arguments, sentence in wrong.items():
        assert cli.main(["show", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"memlab: {sentence}")


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
    assert summary.where([*inside, {"filename": file, "line": 7, "name": "step"}]) == f"{file}:7"
