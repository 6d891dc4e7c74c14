"""Snapshots as they are taken: memory_viz and torch open them, and they hold what happened, by line and category."""

import pickle
from collections import Counter

import pytest
import recordings
import torch
from recordings import MIB, events_of, line_of, parsed, shape, train
from torch import nn
from torch.cuda import _memory_viz

import memlab
from memlab.allocator import Allocator
from memlab.allocator.settings import Settings
from memlab.probes.history import _RecordingMode
from memlab.snapshots import layout, merge, page, pickles, summary
from memlab.stacks import is_own
from memlab.storage_history import MOST_NODES, StorageHistory
from memlab.storage_ledger import StorageLedger


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
            frame["line"]
            for frame in event["frames"]
            if frame["filename"] == recordings.__file__ and frame["name"] == "train"
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
    assert oom["frames"][0]["line"] == line_of("held.append(torch.empty(MIB", __file__)
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
