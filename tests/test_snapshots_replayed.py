"""Histories replayed: exactly, forwards and backwards, and on cards and settings that were not there."""

import pickle
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import CONFS, MIB, events_of, fragmented, parsed, shape

from memlab import cli
from memlab.allocator import Allocator, OutOfMemory
from memlab.allocator.settings import Settings
from memlab.snapshots import layout, page, pickles, replay, summary

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


def test_what_a_larger_card_serves_is_not_owed_to_the_settings(tmp_path, capsys):
    (path := tmp_path / "died.pickle").write_bytes(pickles.dumps(fragmented("").snapshot()))
    conf = "expandable_segments:True"
    assert cli.main(["show", str(path), "--replay", conf, "--card", "1 GiB"]) == 0
    out = capsys.readouterr().out
    assert "have saved you?" not in out
    assert f"On this card what failed is served under the recorded settings, too; with {conf}, 80.00 MiB" in out


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
    out = capsys.readouterr().out
    told = "another torch: Unrecognized key 'of_the_future' in Accelerator allocator config. So it is not replayed.\n"
    assert f"its settings are of {told}" in out
    changed["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments_reserve:0.5"  # from torch 2.15 on
    (device,) = summary.summarise(parsed(changed), ["expandable_segments:True"]).devices
    assert "another torch" not in device.problem
