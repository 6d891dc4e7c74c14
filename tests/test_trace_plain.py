"""Plain tensors that pile up, without a graph, under `memlab trace` and `memlab.on_oom`: who holds them is named."""

import gc
import json
import re
import textwrap
import weakref
from pathlib import Path

import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Terminal

import memlab
from memlab import cli, patterns
from memlab.show import _trace
from memlab.storage_ledger import StorageLedger
from memlab.tracing import explanation, holders
from memlab.tracing.since import Since
from memlab.tracing.trace import Held, Moment, Row, Trace, load

pytestmark = [NEEDS_PACKED, pytest.mark.usefixtures("small_heap")]
EACH = 4 * 32 * 64  # bytes of an output

SCRIPT = """
import torch
from collections import deque
from torch import nn


class Trainer:
    seen = None


model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
optimizer = torch.optim.Adam(model.parameters())
trainer, cache, losses, by_step = Trainer(), [], [], {}
trainer.seen = []
fifo = deque(maxlen=6)

def keeper():
    kept = []

    def keep(y):
        kept.append(y)

    return keep


keep = keeper()


def train(steps):
    replay = []
    for step in range(steps):
        y = model(torch.ones(32, 64))
        y.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        STORE


train(40)
"""


@pytest.fixture
def trace(own_folder, capsys):
    """Trace the script with this statement at the end of its loop; return what is said and what was recorded."""

    def go(store, *options):
        Path("train.py").write_text(textwrap.dedent(SCRIPT).replace("STORE", store))
        cli.main(["trace", "--json", "out.json", *map(str, options), "train.py"])
        return capsys.readouterr().err, load(own_folder / "out.json")

    return go


def plain(found):
    return {each.name: each.per_step for each in found.owners if each.holds == "tensors"}


@pytest.mark.parametrize(
    "stores",
    [
        {"cache": "cache.append(y.data)"},
        {"cache": "global cache; cache = [torch.cat([*cache[-1:], y.detach()])]"},
        {
            "cache": "cache.append(y.detach())",
            "replay": "replay.append((y.detach().clone(), step))",
            "trainer.seen": "trainer.seen.append(y.detach().clone())",
        },
        {
            "by_step": "by_step[step] = {'prediction': y.detach()}",
            "kept": "keep(y.detach().clone())",
        },
    ],
    ids=" ".join,
)
def test_who_lets_plain_tensors_pile_up_is_named(trace, stores):
    said, found = trace("; ".join(stores.values()))
    assert found.grows
    assert found.per_step == len(stores) * EACH
    assert plain(found) == dict.fromkeys(stores, EACH)
    words = " ".join(said.split())
    for owner in found.owners[: len(stores)]:
        assert owner.name in stores
        assert (owner.pattern, owner.cure) == ("growing detached cache", "who_keeps:bounded")
        assert f"  {owner.path} ... pins " in said
        assert f"{owner.tensors} tensor{'s' if owner.tensors > 1 else ''} (no graph)" in words
    assert words.count(", +8.00 KiB every step") >= len(stores)
    assert "python -m memlab show pattern who_keeps:bounded" in words


def test_all_that_a_name_holds_is_counted_and_not_what_is_new_alone(trace):
    _, found = trace("cache.append(y.detach())")
    (owner,) = (each for each in found.owners if each.name == "cache")
    assert (owner.bytes, owner.exclusive, owner.tensors) == (40 * EACH, 40 * EACH, 40)


def test_a_run_just_long_enough_to_judge_has_one_look_at_its_end(trace):
    for store in ("cache.append(y.detach())", "cache.append(y.detach().clone())"):
        said, found = trace(store, "--steps", 9)
        assert found.grows
        assert plain(found) == {"cache": EACH}
        assert "(no graph), +8.00 KiB every step" in said


@pytest.mark.parametrize("store", ["fifo.append(y.detach())", "pass", "trainer.last = y.detach()"])
def test_what_stops_growing_is_not_accused(trace, store):
    said, found = trace(store)
    assert not found.grows
    assert found.owners == [] or plain(found) == {}
    assert "pins" not in said


def test_beside_a_leak_what_does_not_grow_is_not_accused(trace):
    """Parameters, gradients, Adam's state, a cache that is full, the last output."""
    _, found = trace("fifo.append(y.detach()); trainer.last = y.data; cache.append(y.detach().clone())")
    assert found.grows
    assert plain(found) == {"cache": EACH}


def test_a_cache_that_fills_between_two_looks_is_not_accused(trace):
    store = "by_step[step % 11] = y.detach(); cache.append(y.detach().clone())"
    _, found = trace(store)
    assert plain(found) == {"cache": EACH}


def test_a_leak_of_graphs_is_told_as_before(trace):
    _, found = trace("losses.append(model(torch.ones(32, 64)).mean())")
    assert found.grows
    (owner,) = (each for each in found.owners if each.per_step)
    assert (owner.name, owner.holds, owner.pattern, owner.per_step) == ("losses", "graph", "kept losses", 2 * EACH + 4)
    assert owner.born == f"train.py:{1 + SCRIPT.splitlines().index('        STORE')}"


def test_beside_graphs_that_save_nothing_any_more_plain_tensors_count(trace):
    _, found = trace("loss = y.detach().requires_grad_().sum(); losses.append((loss, y.detach()))")
    owner = found.owners[0]
    assert (owner.name, owner.holds, owner.bytes) == ("losses", "graph", 0)
    assert owner.per_step == found.per_step == EACH + 4


def test_out_of_memory_on_a_card_names_who_kept_plain_tensors(trace):
    said, found = trace("cache.append(y.detach())", "--card", "4 MiB")
    assert found.ended == "finished"
    said, found = trace("cache.append(torch.zeros(64, 1024))", "--card", "4 MiB")
    assert found.ended == "out of memory"
    assert plain(found) == {"cache": 4 * 64 * 1024}
    assert said.index("cache (global of __main__)") < said.index("Traceback")


def test_out_of_memory_before_growth_can_be_judged(trace):
    _, found = trace("cache.append(torch.zeros(256, 1024))", "--card", "5 MiB")
    assert (found.ended, found.grows) == ("out of memory", False)
    owner = next(each for each in found.owners if each.holds == "tensors")
    assert (owner.name, owner.bytes, owner.pattern) == ("cache", (found.steps - 1) << 20, "growing detached cache")
    assert not any("weight" in each.name or "model" in each.name or "exp_avg" in each.name for each in found.owners)


def test_a_trace_of_it_is_saved_shown_and_compared(trace, capsys):
    said, found = trace("cache.append(y.detach())")
    assert Trace.from_json(found.to_json()) == found
    assert cli.main(["show", "out.json"]) == 0
    assert capsys.readouterr().out == said
    assert cli.main(["diff", "out.json", "out.json"]) == 0
    assert "nothing differs" in capsys.readouterr().out
    content = json.loads(found.to_json())
    for owner in content["owners"]:
        del owner["pinned"]  # a trace that was saved before this was known
    assert [each.name for each in Trace.from_json(json.dumps(content)).owners] == [each.name for each in found.owners]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_it_reads_well_in_terminals(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    known = next(each for each in patterns.KNOWN if each.name == "growing detached cache")
    owner = Held(
        path="trainer.replay (attribute of Trainer; trainer is global of __main__) -> deque[411] -> Tensor",
        name="trainer.replay",
        bytes=412 << 20,
        exclusive=412 << 20,
        tensors=412,
        holds="tensors",
        per_step=1 << 20,
        pattern=known.name,
        fix=known.advice(patterns.Clue("trainer.replay", holds="tensors")),
        cure=known.cure,
    )
    points = [{"step": k, "saved": 0, "peak": 0, "live": k << 20} for k in range(1, 413)]
    peak = Moment(0, 1, 0, [Row("train.py:1", "", "", "activation", "MulBackward0", 1, 1)])
    trace = Trace({}, ["train.py"], steps=412, points=points, peak=peak, grows=True, per_step=1 << 20, owners=[owner])
    _trace.show(trace, out := Terminal())
    said = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(map(len, said.splitlines())) <= columns
    words = " ".join(said.split())
    assert "pins 412.00 MiB in 412 tensors (no graph), +1.00 MiB every step" in words
    assert "pattern growing detached cache" in words
    assert "bound trainer.replay (deque(maxlen=...))" in words


def run_out(predictions):
    while len(predictions) < 5:
        predictions.append(torch.ones(32, 64))
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")


def test_on_oom_names_who_keeps_plain_tensors(capsys):
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    with pytest.raises(torch.OutOfMemoryError), memlab.on_oom():
        run_out([])
    said = capsys.readouterr().err
    assert "  predictions (local of run_out(), " in said
    assert "... pins 40.00 KiB in 5 tensors (no graph)" in said
    accused = re.findall(r"^  (\S+) \(", said, re.MULTILINE)
    assert not any("exp_avg" in each or "model" in each for each in accused)


def test_it_keeps_nothing_alive_and_runs_no_code_of_the_user():
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *given):
            raise AssertionError("the user's code ran")

    kept = [torch.ones(8).as_subclass(Loud) for _ in range(5)]
    gone = weakref.ref(kept[0])
    with pytest.raises(torch.OutOfMemoryError):
        run_out([])
    found = explanation.of_oom(torch.OutOfMemoryError("CUDA out of memory"))
    owner = next(each for each in found.owners if each.name == "kept")
    assert (owner.holds, owner.tensors, owner.bytes) == ("tensors", 5, 5 * 32)
    kept.clear()
    gc.collect()
    assert gone() is None


@settings(deadline=None, max_examples=20)  # each example walks the heap
@given(st.lists(st.booleans(), max_size=20), st.lists(st.booleans(), max_size=20))
def test_what_is_new_since_a_moment(before, after):
    """Storages that stay or go before it, and storages after it; some get the address of one that is gone."""
    ledger = StorageLedger()

    def make(stays, kept):
        tensor = torch.empty(3)
        ledger.see(tensor, 0, True)
        if stays:
            kept.append(tensor)

    old, new = [], []
    for stays in before:
        make(stays, old)
    since = Since(ledger, 3)
    going, staying = old[::2], old[1::2]
    old.clear()
    del going
    for stays in after:
        make(stays, new)
    made = since.made()
    assert {key for key, nbytes in made.items() if nbytes} == {each.untyped_storage()._cdata for each in new}
    assert {key for key, nbytes in made.items() if not nbytes} == {each.untyped_storage()._cdata for each in staying}


def test_a_storage_of_another_size_is_new():
    ledger = StorageLedger()
    tensor = torch.empty(3)
    ledger.see(tensor, 0, True)
    since = Since(ledger, 3)
    assert list(since.made().values()) == [0]
    tensor.resize_(5)
    ledger.see(tensor, 0, False)
    assert list(since.made().values()) == [20]


def test_storages_of_modules_and_optimizers_from_before_are_not_asked_about():
    with memlab.watch() as seen:
        model = torch.nn.Linear(4, 4)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        state = torch.ones(7)
        since = Since(seen.storages.ledger, 3)
        assert list(since.made()) == [state.untyped_storage()._cdata]


@pytest.mark.parametrize(
    ("clue", "name"),
    [
        ({"grows": True, "piles": True}, "growing detached cache"),
        ({"grows": True, "piles": False}, "growing detached cache"),
        ({"grows": False, "elements": 5}, "growing detached cache"),
        ({"grows": False, "elements": 1}, None),
        ({"grows": False, "elements": 1, "kind": "hook"}, None),
        ({"grows": False, "elements": 1, "kind": "traceback"}, "traceback"),
    ],
)
def test_patterns_of_graphs_do_not_fit_plain_tensors(clue, name):
    found = patterns.recognise(patterns.Clue("x", holds="tensors", **clue))
    assert (found.name if found else None) == name


def test_a_rate_from_one_look_is_of_whole_tensors():
    def rate(elements, nbytes, new, holds="tensors"):
        owner = holders.Owner("x", "x", "", "global", nbytes, nbytes, elements, 0, 0, elements, holds=holds)
        return holders._rate_since(owner, new, 6)

    assert rate(9, 900, 600) == rate(8, 800, 500) == 100
    assert rate(16, 1600, 1100) == 200
    assert rate(9, 900, 0) == rate(5, 500, 500) == rate(9, 900, 600, "graph") == rate(6, 0, 0) == 0
